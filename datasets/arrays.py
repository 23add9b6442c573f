"""Data of one's own as arrays: in memory, or in an .npz file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.check import Chance, File, Finite, Invalid, Natural
from fedsim.datasets.files import assembled, located, matched, require_room
from fedsim.held import held_tensors, tensor, value_of
from fedsim.types import Data, Dataset, Examples, Inputs


@dataclass(frozen=True)
class Arrays(Data):
    """Arrays in memory: inputs x (N, ...), one array or a tuple or dict of several, and labels y (N, ...).

    Arrays(x, y); Arrays(x, y, owner=hospital, test=(x_test, y_test))

    owner  whose each example is, (N,): numbers or names, for the split `Natural`
    test   (x, y) to test with, or the share of the examples, of each owner's, that are drawn at random for it
    Whole numbers stay whole, others are float32; whole labels are classes from 0 on. A definition names arrays by a
    digest of what is in them: it has a fingerprint, and elsewhere it can be read but not run.
    """

    x: Any
    y: Any
    owner: Any | None = None
    test: Any = 0.2
    seed: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = self.owner
        if owner is not None and not isinstance(owner, str):
            each = np.asarray(owner).ravel().tolist()
            gone = [
                at for at, who in enumerate(each) if who is None or (isinstance(who, float) and isnan(who))
            ]
            if gone:
                raise Invalid(
                    f"Arrays.owner: has nothing for example {gone[0]}; must be a number or a name for each"
                )
            owner = np.unique(np.asarray(owner).astype(str), return_inverse=True)[1]
            object.__setattr__(self, "owner", held_tensors(owner, "Arrays.owner"))
        for name in ("x", "y"):
            object.__setattr__(self, name, held_tensors(getattr(self, name), f"Arrays.{name}"))
        if isinstance(self.test, tuple | list) and len(self.test) == 2:
            pair = [held_tensors(part, "Arrays.test") for part in self.test]
            object.__setattr__(self, "test", tuple(pair))
        elif not (isinstance(self.test, float) and 0 < self.test < 1):
            raise Invalid("Arrays.test: must be a share above 0 and below 1, or a pair of arrays (x, y)")

    def load(self) -> Dataset:
        whole = matched(value_of(self.x, "Arrays.x"), value_of(self.y, "Arrays.y"), "Arrays")
        owners = None if self.owner is None else value_of(self.owner, "Arrays.owner").numpy()
        if isinstance(self.test, float):
            return assembled(whole, self.test, self.seed, "Arrays", owners)
        pair = [value_of(part, "Arrays.test") for part in self.test]
        return assembled(whole, matched(pair[0], pair[1], "Arrays.test"), self.seed, "Arrays", owners)


@dataclass(frozen=True)
class Npz(Data):
    """Arrays of an .npz file of NumPy: inputs under `x` (several names: inputs by name), labels under `y`.

    Npz("sensors.npz"); Npz("mnist.npz", x="x_train", y="y_train", test=("x_test", "y_test"), scale=(0, 255))

    owner  the name of an array that says whose each example is
    scale  (a, b), constants: inputs are (x - a) / b
    test   the share of the examples that are drawn for testing, another file, or the names of two arrays
    """

    path: File
    x: str | tuple[str, ...] = "x"
    y: str = "y"
    owner: str | None = None
    scale: tuple[float, Finite] | None = None
    test: Chance | File | tuple[str, str] = 0.2
    seed: Natural = 0

    def load(self) -> Dataset:
        path = located(self.path, "Npz.path")
        names = (self.x,) if isinstance(self.x, str) else self.x
        owner = () if self.owner is None else (self.owner,)
        more = self.test if isinstance(self.test, tuple) else ()
        found = _read(path, (*names, self.y, *owner, *more), "Npz")
        whole = self._examples(found, names, self.y)
        owners = None if self.owner is None else found[self.owner]
        if isinstance(self.test, float):
            return assembled(whole, self.test, self.seed, f"Npz {path}", owners)
        if isinstance(self.test, tuple):
            if len(names) > 1:
                raise Invalid(
                    f"Npz.test = {self.test}: inputs are {len(names)} arrays; allowed is a share or a file"
                )
            held = self._examples(found, self.test[:1], self.test[1])
            return assembled(whole, held, self.seed, f"Npz {path}", owners)
        other = _read(located(self.test, "Npz.test"), (*names, self.y, *owner), "Npz.test")
        held = self._examples(other, names, self.y)
        theirs = None if self.owner is None else other[self.owner]
        return assembled(whole, held, self.seed, f"Npz {path}", owners, theirs)

    def _examples(self, found: dict[str, Any], names: tuple[str, ...], label: str) -> Examples:
        parts = {name: self._scaled(tensor(found[name], f"Npz.x = {name!r}")) for name in names}
        x: Inputs = parts if len(parts) > 1 else parts[names[0]]
        return matched(x, tensor(found[label], f"Npz.y = {label!r}"), f"Npz {self.path}")

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale is None else x.float().sub_(self.scale[0]).div_(self.scale[1])


def _read(path: Path, names: tuple[str, ...], field: str) -> dict[str, Any]:
    """The arrays of these names; raises `Invalid` where one is missing, or they do not fit the memory."""
    try:
        with zipfile.ZipFile(path) as packed:
            sizes = {item.filename.removesuffix(".npy"): item.file_size for item in packed.infolist()}
        if missing := [name for name in names if name not in sizes]:
            raise Invalid(f"{field} {path}: has no array {missing[0]!r}; it has {', '.join(sorted(sizes))}")
        require_room(sum(sizes[name] for name in names), f"{field} {path}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except Invalid:
        raise
    except Exception as error:  # NumPy has many for a file that is none of its own
        raise Invalid(f"{field} {path}: not an .npz file of plain arrays ({str(error)[:120]})") from None
