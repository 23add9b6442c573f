"""Minimum-diameter averaging: the tightest n - f rows, found exactly.

Rows farther apart than t are in conflict. n - f rows of diameter t or less are what is left when at most f rows that
cover all conflicts go: a vertex cover, which a search tree finds in time exponential in f alone, and far less where
a few rows are in most of the conflicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.check import Count, Invalid
from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.strategies.kernels.gram import Gram
from fedsim.strategies.rules.weighted import average


@dataclass(frozen=True)
class MDA(TwoHookRule):
    """The mean of the n - f rows with the least largest distance between two (El Mhamdi et al., arXiv:1905.03853).

    Of equal diameters: the lowest rows, as in a list of all subsets in order. Raises `Invalid` where the search takes
    more than `steps`.
    """

    steps: Count = 1_000_000

    def weights(self, gram: Gram, f: int) -> Tensor:
        return average(torch.tensor(_Search(gram.distances.detach(), f, self.steps).tightest()), gram.n)


class _Search:
    def __init__(self, squared: Tensor, f: int, steps: int) -> None:
        self.squared, self.f, self.n, self.steps, self.left = squared, f, len(squared), steps, steps

    def tightest(self) -> list[int]:
        """The members of the subset."""
        diameters = self.squared.unique().tolist()
        low, high = 0, len(diameters) - 1
        while low < high:
            half = (low + high) // 2
            if self._coverable(self._conflicts(diameters[half]), self.f):
                high = half
            else:
                low = half + 1
        return self._lowest(self._conflicts(diameters[low]))

    def _conflicts(self, diameter: float) -> list[int]:
        """For each row the set of those farther away than a squared diameter, as the bits of an integer."""
        bits = (self.squared > diameter).tolist()
        return [sum(1 << j for j, far in enumerate(row) if far) for row in bits]

    def _lowest(self, conflicts: list[int]) -> list[int]:
        """The first n - f rows, in order, that can be kept together."""
        kept: list[int] = []
        gone = 0
        for i in range(self.n):
            if not gone >> i & 1:
                without = gone | conflicts[i]
                rest = [0 if without >> j & 1 else c & ~without for j, c in enumerate(conflicts)]
                if self._coverable(rest, self.f - without.bit_count()):
                    kept.append(i)
                    gone = without
                else:
                    gone |= 1 << i
        return kept[: self.n - self.f]

    def _coverable(self, conflicts: list[int], most: int) -> bool:
        """Whether some `most` rows or fewer are in all conflicts."""
        self.left -= 1
        if self.left < 0:
            raise Invalid(
                f"MDA: n = {self.n}, f = {self.f}: no answer after {self.steps} steps; "
                "raise MDA.steps, or take GeometricMedian or Chain(NNM(), TrimmedMean())"
            )
        degrees = [c.bit_count() for c in conflicts]
        largest = max(degrees)
        if largest == 0:
            return most >= 0
        if sum(degrees) > 2 * most * largest or _disjoint(conflicts) > most:
            return False
        i = degrees.index(1) if 1 in degrees else -1
        if i >= 0:  # the other end of a lone conflict is as good as this one, or better
            return self._coverable(_without(conflicts, conflicts[i]), most - 1)
        i = degrees.index(largest)
        return self._coverable(_without(conflicts, 1 << i), most - 1) or (
            largest <= most and self._coverable(_without(conflicts, conflicts[i]), most - largest)
        )


def _without(conflicts: list[int], gone: int) -> list[int]:
    return [0 if gone >> j & 1 else c & ~gone for j, c in enumerate(conflicts)]


def _disjoint(conflicts: list[int]) -> int:
    """The size of some set of conflicts no two of which share a row: so many rows a cover has at the least."""
    free, count = (1 << len(conflicts)) - 1, 0
    for i, c in enumerate(conflicts):
        if free >> i & 1 and c & free:
            free &= ~(1 << i) & ~((c & free) & -(c & free))
            count += 1
    return count
