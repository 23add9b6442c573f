"""Weights from norms and angles, or from nothing at all."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fedsim.check import Natural
from fedsim.machine.threads import one_thread
from fedsim.strategies.kernels.base import TwoHookRule, checked
from fedsim.strategies.kernels.gram import ORIGIN, Gram
from fedsim.strategies.kernels.kept import summed
from fedsim.types import Kept

PLAIN = 2**24  # numbers up to which the way through the hooks takes long beside the mean


def average(members: Tensor, n: int) -> Tensor:
    """Weights (1, n) of the mean of some rows."""
    return torch.zeros(1, n, dtype=torch.float64).index_fill(1, members, 1 / len(members))


@dataclass(frozen=True)
class Mean(TwoHookRule):
    """The mean of all rows, which a single Byzantine row moves anywhere."""

    averages: ClassVar[bool] = True

    @one_thread()
    def __call__(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        if rows.numel() <= PLAIN:
            self.require(checked(rows), f)
            mean = rows.new_full((len(rows),), 1 / len(rows)) @ rows
            if isfinite(mean.detach().sum()):
                return mean
        return super().__call__(rows, f, previous=previous, generator=generator)

    @one_thread()
    def of_table(
        self, rows: Tensor, f: int, kept: Kept, *, previous: Tensor | None, generator: Generator | None
    ) -> Tensor:
        self.require(checked(rows), f)
        mean = summed(rows, kept) / len(rows)
        if isfinite(mean.sum()):
            return mean
        kept.new.clear()
        return self(rows, f, previous=previous, generator=generator)

    def weights(self, gram: Gram, f: int) -> Tensor:
        return torch.full((1, gram.n), 1 / gram.n, dtype=torch.float64)

    def max_f(self, n: int) -> int:
        return n - 1

    def sensitivity(self, bound: float, n: int, f: int) -> float | None:
        return 2 * bound / (n - f)  # Byzantine rows may drop out, with NaN


@dataclass(frozen=True)
class CGE(TwoHookRule):
    """Comparative gradient elimination: the mean of the n - f rows of least norm (arXiv:2008.04699).

    Equal norms: the lowest rows are kept.
    """

    @property
    def anchors(self) -> tuple[str, ...]:
        return (ORIGIN,)

    def weights(self, gram: Gram, f: int) -> Tensor:
        return average(gram.to(gram.point(ORIGIN)).argsort(stable=True)[: gram.n - f], gram.n)


@dataclass(frozen=True)
class FLTrust(TwoHookRule):
    """Trust bootstrapped from one row g that the server vouches for (Cao et al., arXiv:2012.13995).

    sum_i c_i (||g|| / ||x_i||) x_i / sum_i c_i with c_i = max(0, cos(x_i, g)), over the other rows; 0 where
    all c_i are 0. `trusted` is the place of g among the rows. All the others may be Byzantine.
    """

    trusted: Natural = 0

    @property
    def anchors(self) -> tuple[str, ...]:
        return (ORIGIN,)

    def weights(self, gram: Gram, f: int) -> Tensor:
        root, origin = gram.place(self.trusted), gram.point(ORIGIN)
        squared = gram.squared[origin, : gram.n].clamp_min(torch.finfo(torch.float64).tiny)
        along = gram.inner[root] - gram.inner[origin]  # seen from some centre, and then from the origin
        dot = (along - along[origin])[: gram.n]
        cosine = dot / (squared.sqrt() * squared[root].sqrt())  # the product of the squares may vanish
        trust = cosine.clamp(0, 1).index_fill(0, torch.tensor([root]), 0)
        total = trust.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return gram.completed((trust / total * (squared[root] / squared).sqrt())[None])

    def max_f(self, n: int) -> int:
        return n - 1 if n > 1 else -1
