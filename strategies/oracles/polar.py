"""The polar factor U V' of matrices G = U S V', exactly or by products alone; of many at once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from math import sqrt

import torch
from torch import Tensor

from fedsim.check import Chance, Component, Count, NonNegative
from fedsim.strategies.oracles.base import unit

LONG = 2  # times as many columns as rows: from there on products of the short side alone are fewer
STAGE = 3  # quintics in a row of these: what A has lost of small singular values grows with each
Quintic = tuple[float, float, float]  # a, b, c of p(s) = a s + b s^3 + c s^5


class Polar(Component):
    """U V' of matrices (..., m, q), or what stands for it; 0 where a matrix is. The length of G does not matter."""

    @abstractmethod
    def __call__(self, g: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ExactPolar(Polar):
    """U V' by singular value decomposition in float64; singular values that are rounding count as 0.

    These are below max(m, q) times the precision of G's own numbers, times the largest.
    """

    def __call__(self, g: Tensor) -> Tensor:
        return leading(g)


@dataclass(frozen=True)
class NewtonSchulz(Polar):
    """`steps` of Y <- a Y + (b A + c A^2) Y with A = Y Y', from Y = G / ||G||_F: Muon's, singular values near 1.

    With the coefficients of Muon (K. Jordan, 2024) singular values settle between 0.68 and 1.21, not at 1. (1.5, -0.5,
    0) is the classical iteration, which converges; (1.875, -1.25, 0.375) that of order five.
    """

    steps: Count = 5
    coefficients: Quintic = (3.4445, -4.7750, 2.0315)

    def __call__(self, g: Tensor) -> Tensor:
        return composed(unit(g, (-2, -1)), (self.coefficients,) * self.steps)


@dataclass(frozen=True)
class PolarExpress(Polar):
    """`steps` of the best odd quintics, one after the other (arXiv:2505.16932, algorithm 1), from G / (1.01 ||G||_F).

    Each is the minimax approximation of 1 on the interval that singular values in [least, 1] have then got to.
    cushion  an interval is taken to begin at this share of its end at the earliest, which keeps coefficients small
    """

    steps: Count = 5
    least: Chance = 1e-3
    cushion: NonNegative = 0.02407327424182761

    def __call__(self, g: Tensor) -> Tensor:
        return composed(unit(g, (-2, -1)) / 1.01, express(self.steps, self.least, self.cushion))


def leading(g: Tensor, k: int | None = None) -> Tensor:
    """sum_{i <= k} u_i v_i' of matrices (..., m, q), or of all i; what has no length is left out."""
    u, s, vh = torch.linalg.svd(g.double(), full_matrices=False)
    kept = s > max(g.shape[-2:]) * torch.finfo(g.dtype).eps * s[..., :1]
    if k is not None:
        kept[..., k:] = False
    made: Tensor = ((u * kept.unsqueeze(-2)) @ vh).to(g.dtype)
    return made


def largest(g: Tensor, k: int | None = None) -> Tensor:
    """The sum (...,) of the k largest singular values of matrices (..., m, q), or of all."""
    total: Tensor = torch.linalg.svdvals(g.double())[..., :k].sum(-1).to(g.dtype)
    return total


def composed(y: Tensor, quintics: tuple[Quintic, ...]) -> Tensor:
    """p_k(.. p_1(Y)) on the singular values of matrices (..., m, q), by products of their shorter side."""
    lead, tall = y.shape[:-2], y.shape[-2] > y.shape[-1]
    y = (y.mT if tall else y).reshape(-1, *((y.shape[-1], y.shape[-2]) if tall else y.shape[-2:]))
    if LONG * y.shape[1] <= y.shape[2]:
        for start in range(0, len(quintics), STAGE):
            y = _factor(y @ y.mT, quintics[start : start + STAGE]) @ y
    else:
        for a, b, c in quintics:
            gram = y @ y.mT
            y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    y = y.mT if tall else y
    return y.reshape(*lead, *y.shape[-2:])


def _factor(gram: Tensor, quintics: tuple[Quintic, ...]) -> Tensor:
    """W with p_k(.. p_1(Y)) = W Y, from A = Y Y' alone: W <- q(A) W, A <- A q(A)^2 with q(A) = a + b A + c A^2."""

    def q(gram: Tensor, a: float, b: float, c: float) -> Tensor:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        return factor

    factor = whole = q(gram, *quintics[0])
    for quintic in quintics[1:]:
        gram = gram @ factor @ factor
        factor = q(gram, *quintic)
        whole = factor @ whole
    return whole


@cache
def express(steps: int, least: float, cushion: float = 0.0) -> tuple[Quintic, ...]:
    """The quintics of `PolarExpress`, to ten digits: the last bits of a solver are no part of a result."""
    low, high, found = least, 1.0, list[Quintic]()
    for _ in range(steps):
        a, b, c = minimax(max(low, cushion * high), high)
        if cushion * high > low:  # the error is to be the same on both ends of what is really there
            ends = sum(a * s + b * s**3 + c * s**5 for s in (low, high))
            a, b, c = (2 / ends * value for value in (a, b, c))
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
        found.append((float(f"{a:.10g}"), float(f"{b:.10g}"), float(f"{c:.10g}")))
    return tuple(found)


def minimax(low: float, high: float) -> Quintic:
    """The odd quintic that is nearest to 1 on [low, high], by Remez exchange: it errs by +-E at four points in turn."""
    if low / high > 1 - 5e-6:  # the limit: p, p' and p'' at the one point
        return 1.875 / high, -1.25 / high**3, 0.375 / high**5
    inner = (3 * low + high) / 4, (low + 3 * high) / 4
    error = float("inf")
    for _ in range(100):
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], 1)
        a, b, c, found = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        if abs(found - error) <= 1e-15:
            break
        error, root = found, sqrt(9 * b * b - 20 * a * c)
        inner = sqrt((-3 * b - root) / (10 * c)), sqrt((-3 * b + root) / (10 * c))  # where p' = 0
    return a, b, c
