"""Files of data: where they lie, whether they fit the memory, and how what was read becomes a data set."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.machine.memory import available
from fedsim.types import Dataset, Examples, Inputs, on_inputs

MOST_CLASSES = 1_000_000  # each client's are counted, one by one


def data_root() -> Path:
    """The folder of the data sets: FEDSIM_DATA, else `data` in the working directory."""
    return Path(os.environ.get("FEDSIM_DATA", "data"))


def located(path: str, field: str) -> Path:
    """A file or folder as its path stands, else from the folder FEDSIM_DATA on; raises `Invalid`."""
    for place in (Path(path).expanduser(), data_root() / path):
        if place.exists():
            return place
    raise Invalid(
        f"{field} = {path!r}: not found, neither from {Path.cwd()} on nor in {data_root().absolute()}"
    )


def require_room(size: float, field: str) -> None:
    """Raise `Invalid` where so many bytes of numbers, and a copy as they are dealt, do not fit the memory."""
    if 2 * size > (left := available()):
        raise Invalid(
            f"{field}: {size / 2**30:.1f} GiB of numbers, and as much again when they are dealt, with "
            f"{left / 2**30:.1f} GiB of memory left; allowed is what fits, such as a part of the file"
        )


def apart(total: int, share: float, seed: int, owners: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The training and test examples among `total`, in order: round(share * total) drawn at random are for testing.

    Where examples have owners, round(share * m) of the m of each; at least one example on either side.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator)
    if owners is None:
        held = min(max(1, round(share * total)), total - 1)
        return order[held:].sort().values, order[:held].sort().values
    owned = order[owners[order].argsort(stable=True)]
    sizes = torch.bincount(owners).tolist()
    parts = [piece.split([round(share * m), m - round(share * m)]) for piece, m in
             zip(owned.split(sizes), sizes, strict=True)]  # fmt: skip
    test, train = (torch.cat([part[side] for part in parts]).sort().values for side in (0, 1))
    if not len(test) or not len(train):
        return apart(total, share, seed)
    return train, test


def codes(*values: Any) -> list[Tensor]:
    """Names of owners as numbers 0, 1, ... in sorted order, the same in all of the arrays."""
    whole = np.concatenate([np.asarray(v).astype(str) if np.asarray(v).dtype == object else np.asarray(v)
                            for v in values])  # fmt: skip
    numbers = torch.from_numpy(np.unique(whole, return_inverse=True)[1].astype(np.int64))
    return list(numbers.split([len(v) for v in values]))


def matched(x: Inputs, y: Tensor, field: str) -> Examples:
    """Inputs and labels as examples; raises `Invalid` where their numbers differ."""
    counts: list[int] = []
    on_inputs(lambda t: counts.append(len(t) if t.dim() else 0), x)
    if y.dim() == 0 or any(count != len(y) for count in counts):
        told = " and ".join(map(str, dict.fromkeys(counts)))
        raise Invalid(f"{field}: {told} inputs and {y.numel()} labels; must be one label for each input")
    if len(y) and not y.is_floating_point():
        for label in (int(y.min()), int(y.max())):
            if not 0 <= label < MOST_CLASSES:
                raise Invalid(
                    f"{field}: the label {label}; classes must be numbered from 0 on, below {MOST_CLASSES:,}"
                )
    return Examples(x, y)


def assembled(
    whole: Examples,
    test: Examples | float,
    seed: int,
    field: str,
    owners: Sequence[Any] | None = None,
    test_owners: Sequence[Any] | None = None,
    classes: int | None = None,
) -> Dataset:
    """A data set of examples and others for testing, or a share of them; classes as many as the labels name."""
    if len(whole) < 2:
        raise Invalid(f"{field}: {len(whole)} examples; must be two or more")
    groups: list[Tensor] = []
    if owners is not None:
        if len(owners) != len(whole):
            raise Invalid(f"{field}: {len(owners)} owners of {len(whole)} examples; must be one for each")
        groups = codes(owners, *([] if test_owners is None else [test_owners]))
    if isinstance(test, float):
        train, held = apart(len(whole), test, seed, groups[0] if groups else None)
        groups = [groups[0][train], groups[0][held]] if groups else []
        whole, test = whole.part(train), whole.part(held)
    if classes is None:
        numbers = whole.y.is_floating_point() or test.y.is_floating_point()
        classes = 0 if numbers else 1 + max(int(part.y.max()) for part in (whole, test) if len(part))
    return Dataset(whole, test, classes, *groups)


def downloaded(source: Callable[..., Any], root: Path) -> None:
    """torchvision's own download, put into place file by file once it is whole; nothing where `root` has the
    set.
    """
    try:
        source(root)
    except RuntimeError:
        with tempfile.TemporaryDirectory(dir=".", prefix="data-") as part:
            source(part, download=True)
            for file in (found for found in Path(part).rglob("*") if found.is_file()):
                place = root / file.relative_to(part)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
