"""The examples of a device, from its own files or its own code; they never leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.config.catalog import imported
from fedsim.deploy.terms import Terms
from fedsim.held import tensor
from fedsim.types import Dataset, Examples, Inputs, on_inputs

LABEL = "y"  # the labels' column of a table, and their array; of a table all other columns are the inputs


def examples(terms: Terms) -> Dataset:
    """The examples that the terms name; raises `Invalid` where there are none, or what no clip bounds.

    As in a simulation whole numbers stay whole, tokens for one; others are float32.
    """
    said = f"data = {terms.data}"
    try:
        held_x, held_y = _read(terms.data)
        x: Inputs = on_inputs(lambda part: tensor(part, "x"), held_x)
        y = _labels(tensor(held_y, LABEL), terms.classes)
    except Exception as error:  # NumPy and pandas have many for a file that is none of theirs
        raise Invalid(f"{said}: no examples x and y in there ({error})") from None
    parts = [x] if isinstance(x, Tensor) else [*(x.values() if isinstance(x, dict) else x)]
    if not parts or any(part.shape[:1] != y.shape[:1] or part.dim() < 1 for part in parts) or not y.numel():
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise Invalid(
            f"{said}: inputs {shapes}, labels {tuple(y.shape)}: must be x (m, ...), one array or several, and "
            "y (m, ...), m at least one"
        )
    whole = torch.stack([part.isfinite().view(len(y), -1).all(1) for part in [*parts, y]]).all(0)
    if broken := int((~whole).sum()):
        raise Invalid(
            f"{said}: {broken} of {len(y)} examples with NaN or Inf: all must be finite, since no clip "
            "bounds what such an example does to a message"
        )
    return Dataset(Examples(x, y), Examples(x, y).part(slice(0, 0)), terms.classes)


def _labels(y: Tensor, classes: int) -> Tensor:
    """Labels as the terms have them: numbers to be met where there are no classes."""
    if not classes:
        return y.float()
    whole = y.long()
    if not torch.equal(whole.to(y.dtype), y) or (
        y.numel() and not 0 <= int(y.min()) <= int(y.max()) < classes
    ):
        raise Invalid(
            f"labels that are no classes: allowed are labels from 0 to {classes - 1} (classes = {classes}), or "
            "classes = 0 for numbers to be met"
        )
    return whole


def _read(data: str) -> tuple[Any, Any]:
    """Inputs, one array, or several as a tuple or by name, and labels."""
    if ":" in data and not Path(data).exists():
        x, y = imported(data, "data")()
        return x, y
    path = Path(data)
    if path.suffix in (".csv", ".parquet"):
        import pandas as pd

        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        return table.drop(columns=LABEL).to_numpy(np.float32), table[LABEL].to_numpy()
    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        names = [name for name in held.files if name != LABEL]
        x = held["x"] if "x" in names else {name: held[name] for name in names}
        return x, held[LABEL]
