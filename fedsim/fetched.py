"""Batches that are fetched when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from fedsim.types import Batch, Inputs


class Steps(Batch):
    """The batches of several local steps, ([k,] steps, b, ...), each fetched when its turn comes; all, if asked for."""

    def __init__(self, fetch: Callable[[Tensor, Tensor], Batch], place: Tensor, weight: Tensor) -> None:
        self.__dict__.update(
            fetch=fetch, place=place, drawn=weight
        )  # where examples are, and what they weigh

    fetch: Callable[[Tensor, Tensor], Batch]
    place: Tensor
    drawn: Tensor

    @cached_property
    def whole(self) -> Batch:
        return self.fetch(self.place, self.drawn)

    @property
    def x(self) -> Inputs:
        return self.whole.x

    @property
    def y(self) -> Tensor:
        return self.whole.y

    @property
    def weight(self) -> Tensor:
        return self.drawn

    def part(self, clients: slice | int | Tensor) -> Batch:
        return Steps(self.fetch, self.place[clients], self.drawn[clients])

    def split(self, steps: int) -> Iterator[Batch]:
        for i in range(steps):
            yield replace(self.fetch(self.place.select(-2, i), self.drawn.select(-2, i)), step=i)
