"""Rules that look at each coordinate for itself: one column of n numbers at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.strategies.kernels.columns import ordered, rowwise


@dataclass(frozen=True)
class Median(TwoHookRule):
    """Coordinate-wise median (Yin et al., arXiv:1803.01498).

    `even` says what the median of an even number is: the mean of the two middle values, or the lower one.
    """

    even: Literal["mean", "lower"] = "mean"

    def reduce(self, block: Tensor, f: int) -> Tensor:
        low, high = (len(block) - 1) // 2, len(block) // 2
        return middle(ordered(block, (low, low + 1 if self.even == "lower" else high + 1)), self.even)

    def kappa(self, n: int, f: int) -> float | None:
        return 4 * (1 + f / (n - 2 * f)) ** 2


@dataclass(frozen=True)
class TrimmedMean(TwoHookRule):
    """Coordinate-wise mean without the f lowest and the f highest values (Yin et al., arXiv:1803.01498)."""

    def reduce(self, block: Tensor, f: int) -> Tensor:
        kept = (f, len(block) - f)
        return mean(ordered(block, kept)[slice(*kept)])

    def kappa(self, n: int, f: int) -> float:
        return 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f))


@dataclass(frozen=True)
class MeanAroundMedian(TwoHookRule):
    """Coordinate-wise mean of the n - f values nearest to the median (Xie et al., arXiv:1802.10116).

    Of two values equally far from it on either side the lower one is nearer.
    """

    def reduce(self, block: Tensor, f: int) -> Tensor:
        m, half = len(block), (len(block) - 1) // 2
        ends = [(i, i + 1) for i in (*range(f), *range(m - f, m))]
        z = ordered(block, *ends, (f, half), (half, m // 2 + 1), (m // 2 + 1, m - f))
        return nearest_mean(z, middle(z), f)


@dataclass(frozen=True)
class Phocas(TwoHookRule):
    """Coordinate-wise mean of the n - f values nearest to the trimmed mean (Xie et al., arXiv:1805.09682).

    Of two values equally far from it on either side the lower one is nearer.
    """

    def reduce(self, block: Tensor, f: int) -> Tensor:
        m = len(block)
        z = ordered(block, *((i, i + 1) for i in (*range(f), *range(m - f, m))), (f, m - f))
        return nearest_mean(z, mean(z[f : m - f]), f)


def middle(z: Tensor, even: str = "mean") -> Tensor:
    """The median (b,) of sorted columns (m, b)."""
    m = z.shape[0]
    low, high = z[(m - 1) // 2], z[m // 2]
    if m % 2 or even == "lower":
        return low.clone()
    return torch.add(low / 2, high, alpha=0.5)  # the sum of two large numbers may be none


def mean(z: Tensor) -> Tensor:
    """The mean (b,) of columns (m, b)."""
    return z.new_full(z.shape[:1], 1 / z.shape[0]) @ z


def nearest_mean(z: Tensor, centre: Tensor, drop: int) -> Tensor:
    """The mean (b,) of the keep = m - drop values of sorted columns (m, b) that are nearest to a centre (b,).

    They are neighbours, so of z[t], z[t + keep], z[t + 2 keep], ... exactly one is among them: the nearest. Those
    without a rival, z[drop] to z[keep - 1], may stand in any order.
    """
    keep, centre = len(z) - drop, centre.detach()
    best, sure = rowwise(z[: min(drop, keep)]), z[drop:keep]
    for start in range(keep, len(z), keep):
        rival = rowwise(z[start : start + keep])
        held = best[: len(rival)]
        below, above = centre - held.detach(), rival.detach() - centre
        nearer = torch.le(below, above, out=below)  # 1 or 0: a product is far quicker than a choice
        held = torch.addcmul(rival * (1 - nearer), held, nearer)
        best = held if len(rival) == len(best) else torch.cat([held, best[len(rival) :]])
    weight = z.new_full((len(z),), 1 / keep)
    return torch.addmv(weight[: len(sure)] @ sure, best.T, weight[: len(best)])
