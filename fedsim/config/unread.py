"""The data of an experiment on a device that has its own: kept as they were written, since nobody loads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.check import Invalid
from fedsim.types import Data, Dataset


@dataclass(frozen=True)
class Unread(Data):
    """A data set that lies elsewhere; `table` is its definition, as it was sent."""

    table: Any

    def load(self) -> Dataset:
        raise Invalid("data: the experiment's lie elsewhere; this device has its own")
