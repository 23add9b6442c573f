"""Tables of one example a row, by pandas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.check import Chance, File, Finite, Invalid, Natural
from fedsim.datasets.files import assembled, located, require_room
from fedsim.types import Data, Dataset, Examples

if TYPE_CHECKING:
    import pandas as pd

ROWS = 50_000  # read at a time


@dataclass(frozen=True)
class Table(Data):
    """A .csv or .parquet file of one example a row, by pandas.

    Table("patients.csv", label="ill", owner="hospital", scale=(("age", 50.0, 20.0),))

    label     the column to be told; `kind` "classes": whole numbers from 0 on, or words, numbered in sorted
              order; "numbers": to be met by Squared or Huber
    owner     the column of whose a row is, for the split `Natural`; features: the columns that are told from, by
              default all others; columns of words become a column of 0 and 1 for each word, in sorted order
    scale     (column, a, b), constants: (value - a) / b; also of the label where it is a number
    fill      what stands for a missing feature; without it a missing one is refused
    test      the share of the rows, of each owner's, that are drawn for testing, or another file
    Which words and classes there are is read off the whole file, for which no privacy accounts, as a private run notes:
    number them where it is secret.
    """

    path: File
    label: str
    owner: str | None = None
    features: tuple[str, ...] = ()
    kind: Literal["classes", "numbers"] = "classes"
    scale: tuple[tuple[str, float, Finite], ...] = ()
    fill: float | None = None
    test: Chance | File = 0.2
    seed: Natural = 0

    def load(self) -> Dataset:
        names = self._names(located(self.path, "Table.path"))
        parts = [self._read(located(self.path, "Table.path"), names)]
        if isinstance(self.test, str):
            parts.append(self._read(located(self.test, "Table.test"), names))
        sizes = [len(part.label) for part in parts]
        x = np.concatenate([_numbered(name, [part.features[name] for part in parts]) for name in names], 1)
        y, classes = self._labels(np.concatenate([part.label for part in parts]))
        pieces = [
            Examples(*both) for both in zip(torch.from_numpy(x).split(sizes), y.split(sizes), strict=True)
        ]
        owners: list[Any] = [part.owner for part in parts] if self.owner else [None, None]
        where = f"Table {self.path}"
        if isinstance(self.test, float):
            made = assembled(pieces[0], self.test, self.seed, where, owners[0], classes=classes)
        else:
            made = assembled(pieces[0], pieces[1], self.seed, where, owners[0], owners[1], classes=classes)
        words = [name for name in names if parts[0].features[name].dtype == object]
        return replace(
            made, reveals=(*(f"which words column {name!r} holds" for name in words), *self._told())
        )

    def _told(self) -> tuple[str, ...]:
        return (f"which classes label {self.label!r} has",) if self.kind == "classes" else ()

    def _names(self, path: Path) -> list[str]:
        """The features, in order; raises `Invalid` where a column is missing."""
        columns = [str(name) for name in next(_chunks(path, None)).columns]
        wanted = {"label": self.label, "owner": self.owner, **{f"features[{i}]": f for i, f in
                  enumerate(self.features)}, **{f"scale[{i}]": s[0] for i, s in enumerate(self.scale)}}  # fmt: skip
        for part, name in wanted.items():
            if name is not None and name not in columns:
                raise Invalid(
                    f"Table.{part} = {name!r}: {path} has no such column; it has {', '.join(columns)}"
                )
        names = [n for n in self.features or columns if n not in (self.label, self.owner)]
        if not names:
            raise Invalid(f"Table: {path} has no column beside {self.label!r} to tell it from")
        return names

    def _read(self, path: Path, names: list[str]) -> _Rows:
        rows, held = _Rows(), 0
        columns = list(dict.fromkeys([*names, self.label, *([self.owner] if self.owner else [])]))
        for chunk in _chunks(path, columns):
            for name in names:
                rows.put(name, self._feature(chunk[name], name, path))
            rows.labels.append(self._present(chunk[self.label], path).to_numpy())
            if self.owner:
                rows.owners.append(self._present(chunk[self.owner], path).astype(str).to_numpy())
            held += 4 * len(chunk) * len(columns)
            require_room(held, f"Table {path}")
        return rows

    def _feature(self, column: pd.Series[Any], name: str, path: Path) -> NDArray[Any]:
        if self.fill is None:
            self._present(column, path)
        if _words(column):
            return (
                column.fillna("" if self.fill is None else str(self.fill)).astype(str).to_numpy(dtype=object)
            )
        if column.dtype.kind not in "biuf":
            raise Invalid(
                f"Table.features: column {name!r} of {path} holds {column.dtype}; must be numbers or words"
            )
        values = column.astype("float64").fillna(0.0 if self.fill is None else self.fill)
        return self._scaled(values.to_numpy(), name).astype(np.float32)

    def _scaled(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        for column, a, b in self.scale:
            values = (values - a) / b if column == name else values
        return values

    def _present(self, column: pd.Series[Any], path: Path) -> pd.Series[Any]:
        if (gone := column.isna().to_numpy()).any():
            row = int(column.index[gone][0])
            raise Invalid(
                f"Table: row {row} of {path} has nothing in column {column.name!r}; allowed are whole rows, or for "
                "features a number to `fill` in"
            )
        return column

    def _labels(self, values: NDArray[Any]) -> tuple[Tensor, int]:
        where = f"Table.label = {self.label!r}"
        if self.kind == "numbers":
            if values.dtype.kind not in "biuf":
                raise Invalid(f"{where}: holds words; for these kind must be 'classes'")
            return torch.from_numpy(self._scaled(values.astype(np.float64), self.label).astype(np.float32)), 0
        if values.dtype.kind not in "biuf":
            classes, numbers = np.unique(values.astype(str), return_inverse=True)
            return torch.from_numpy(numbers.astype(np.int64)), len(classes)
        odd = [v for v in (values.min(), values.max()) if not isfinite(v)] or values[values != values.round()]
        if len(odd) or values.min() < 0:
            value = float(odd[0] if len(odd) else values.min())
            raise Invalid(
                f"{where}: holds {value:g}; classes must be words or whole numbers from 0 on, and for numbers to be "
                "met kind must be 'numbers'"
            )
        return torch.from_numpy(values.astype(np.int64)), int(values.max()) + 1


@dataclass
class _Rows:
    """What was read of a file: each feature, the labels and the owners, in pieces."""

    pieces: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    labels: list[NDArray[Any]] = field(default_factory=list)
    owners: list[NDArray[Any]] = field(default_factory=list)

    def put(self, name: str, piece: NDArray[Any]) -> None:
        self.pieces.setdefault(name, []).append(piece)

    @property
    def features(self) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate(pieces) for name, pieces in self.pieces.items()}

    @property
    def label(self) -> NDArray[Any]:
        return np.concatenate(self.labels)

    @property
    def owner(self) -> NDArray[Any]:
        return np.concatenate(self.owners)


def _numbered(name: str, parts: list[NDArray[Any]]) -> NDArray[np.float32]:
    """A feature (N, 1); of words (N, words), 1 in the column of the row's word."""
    whole = np.concatenate(parts)
    if whole.dtype != object:
        return whole.astype(np.float32)[:, None]
    words, numbers = np.unique(whole.astype(str), return_inverse=True)
    if len(words) > 1000:
        raise Invalid(
            f"Table.features: column {name!r} has {len(words)} different words; allowed are 1000: leave it out"
        )
    require_room(
        4 * len(whole) * len(words), f"Table.features: column {name!r}, a column for each of its words"
    )
    return np.eye(len(words), dtype=np.float32)[numbers]


def _words(column: pd.Series[Any]) -> bool:
    return str(column.dtype) in ("object", "str", "string", "category") or column.dtype.kind == "O"


def _chunks(path: Path, columns: list[str] | None) -> Iterator[pd.DataFrame]:
    """The rows of a file, some thousand at a time; raises `Invalid` where it is none of its kind."""
    import pandas as pd  # slow to import

    try:
        if path.suffix == ".parquet":
            try:
                from pyarrow.parquet import ParquetFile
            except ImportError:
                raise Invalid("Table: .parquet needs pyarrow; pip install 'fedsim-robust[parquet]'") from None
            start = 0
            for batch in ParquetFile(path).iter_batches(ROWS, columns=columns):
                frame = batch.to_pandas()
                frame.index = pd.RangeIndex(start, start + len(frame))
                start += len(frame)
                yield frame
        else:
            with pd.read_csv(path, usecols=columns, chunksize=ROWS, skipinitialspace=True) as reader:
                yield from reader
    except Invalid:
        raise
    except Exception as error:  # both have many for a file that is none of its own
        raise Invalid(f"Table {path}: not a readable table ({' '.join(str(error).split())[:120]})") from None
