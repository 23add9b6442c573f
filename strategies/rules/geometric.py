"""Rules that walk to a point: geometric medians and centred clipping; the weights change step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.check import Chance, ClipNorm, Count, Finite
from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.strategies.kernels.gram import ORIGIN, PREVIOUS, Gram


@dataclass(frozen=True)
class GeometricMedian(TwoHookRule):
    """argmin_y F(y) = sum_i ||x_i - y||, by Weiszfeld's iteration (at a row: Vardi and Zhang, PNAS 2000).

    It stops where ||grad F|| <= tolerance * n, so that F is within 2 * tolerance of its minimum, relatively
    and at any scale; or after `iterations`. Where a row is the answer it is returned; of several, their mean.
    """

    tolerance: Chance = 1e-6
    iterations: Count = 1000

    def weights(self, gram: Gram, f: int) -> Tensor:
        inner, distances = gram.inner[: gram.n, : gram.n], root(gram.distances)
        sums = distances.sum(1)
        first = int(sums.argmin())
        pull = torch.where(gram.distances[first] > 0, 1 / distances[first], 0.0)
        here = torch.zeros_like(pull).index_fill(0, torch.tensor([first]), 1.0)
        away = pull - pull.sum() * here
        force = root(away @ inner @ away)  # of the rows elsewhere
        at_home = (gram.distances[first] == 0).sum()
        if force <= at_home:
            best = sums <= sums[first] * (1 + 1e-9)
            return (best.double() / best.sum())[None]
        w = here + (1 - at_home / force) * (pull / pull.sum() - here)
        norms, along = inner.diagonal(), inner @ w
        for _ in range(self.iterations):
            pull = positive(torch.add(norms, along, alpha=-2) + w @ along).rsqrt()
            total = pull.sum()
            new = pull / total
            ahead = inner @ new
            slope = total * total * ((new - w) @ (ahead - along))  # squared
            w, along = new, ahead
            if slope <= (self.tolerance * gram.n) ** 2:
                break
        return w[None]

    def kappa(self, n: int, f: int) -> float:
        return 4 * (1 + f / (n - 2 * f)) ** 2


@dataclass(frozen=True)
class RFA(TwoHookRule):
    """Smoothed Weiszfeld steps, w_i ~ 1 / max(nu, ||x_i - y||) (Pillutla et al., arXiv:1912.13445).

    `nu` is absolute: with rows nearer to each other than that it is the mean. `start` is the mean, or the
    origin as in ByzFL, whose GeometricMedian is RFA(nu=0.1, start="origin").
    """

    nu: Finite = 1e-6
    iterations: Count = 3
    start: Literal["mean", "origin"] = "mean"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (ORIGIN,)

    def weights(self, gram: Gram, f: int) -> Tensor:
        w = torch.full((gram.n,), 1 / gram.n, dtype=torch.float64)
        if self.start == "origin":
            w = w * 0
        for _ in range(self.iterations):
            pull = 1 / root(gram.to_mixture(gram.completed(w[None])[0])).clamp_min(self.nu)
            w = pull / pull.sum()
        return w[None]


@dataclass(frozen=True)
class CenteredClipping(TwoHookRule):
    """v <- v + mean_i (x_i - v) min(1, tau / ||x_i - v||), `iterations` times.

    Karimireddy et al., arXiv:2012.10333. v starts at the previous aggregate, and at 0 where there is none.
    """

    tau: ClipNorm
    iterations: Count = 1

    @property
    def anchors(self) -> tuple[str, ...]:
        return (PREVIOUS,)

    def weights(self, gram: Gram, f: int) -> Tensor:
        start = gram.point(PREVIOUS)
        v = gram.unit(start)
        for step in range(self.iterations):
            squared = gram.to_mixture(v) if step else gram.to(start)
            factor = (self.tau / root(squared)).clamp_max(1) / gram.n
            v = v * (1 - factor.sum()) + gram.padded(factor[None])[0]
        return v[None]


def root(squares: Tensor) -> Tensor:
    """Square roots whose gradient is finite at 0."""
    return positive(squares).sqrt()


def positive(squares: Tensor) -> Tensor:
    return squares.clamp_min(torch.finfo(squares.dtype).tiny)
