"""The examples of a device, from its own files or its own code; they never leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.check import Invalid
from fedsim.config.catalog import imported
from fedsim.deploy.terms import Terms
from fedsim.types import Dataset, Examples

LABEL = "y"  # the column of a table that holds the labels; the others, in their order, are the inputs


def examples(terms: Terms) -> Dataset:
    """The examples that the terms name; raises `Invalid` where there are none, or what no clip bounds."""
    said = f"data = {terms.data}"
    try:
        held_x, held_y = _read(terms.data)
        x = torch.tensor(np.asarray(held_x), dtype=torch.float32)
        y = torch.tensor(np.asarray(held_y), dtype=torch.int64)
    except Exception as error:  # NumPy and pandas have many for a file that is none of theirs
        raise Invalid(f"{said}: no examples x and y in there ({error})") from None
    if (
        x.ndim < 2
        or x.shape[:1] != y.shape
        or not len(y)
        or int(y.min()) < 0
        or int(y.max()) >= terms.classes
    ):
        raise Invalid(
            f"{said}: inputs {tuple(x.shape)}, labels {tuple(y.shape)}: must be x (m, ...) and y (m,), "
            f"m at least one, labels from 0 to {terms.classes - 1} (classes = {terms.classes})"
        )
    broken = int((~x.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise Invalid(
            f"{said}: {broken} of {len(x)} examples with NaN or Inf: all must be finite, since no clip "
            "bounds what such an example does to a message"
        )
    return Dataset(Examples(x, y), Examples(x[:0], y[:0]), terms.classes)


def _read(data: str) -> tuple[Any, Any]:
    if ":" in data and not Path(data).exists():
        x, y = imported(data, "data")()
        return x, y
    path = Path(data)
    if path.suffix in (".csv", ".parquet"):
        import pandas as pd

        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        return table.drop(columns=LABEL).to_numpy(np.float32), table[LABEL].to_numpy(np.int64)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        return held["x"], held["y"]
