"""Mixers that need no neighbours: bucketing, and the clipping of norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fedsim.check import ClipNorm, Count
from fedsim.strategies.kernels.base import TwoHookMixer
from fedsim.strategies.kernels.gram import ORIGIN, Gram
from fedsim.strategies.rules.geometric import root


@dataclass(frozen=True)
class Bucketing(TwoHookMixer):
    """Means of buckets of s rows, dealt at random (Karimireddy et al., arXiv:2006.09365, Algorithm 1).

    The last bucket may be smaller. At most f of the ceil(n / s) buckets hold Byzantine rows: f stays.
    """

    s: Count = 2

    random = True

    def weights(self, gram: Gram, f: int) -> Tensor:
        order = torch.randperm(gram.n, generator=Generator().manual_seed(gram.seed))
        bucket = torch.empty_like(order).index_copy(0, order, torch.arange(gram.n) // self.s)
        member = torch.nn.functional.one_hot(bucket, self.count(gram.n)).double()
        return (member / member.sum(0)).T

    def max_f(self, n: int) -> int:
        return n

    def count(self, n: int) -> int:
        return -(-n // self.s)


@dataclass(frozen=True)
class Clipping(TwoHookMixer):
    """x_i min(1, tau / ||x_i||)."""

    tau: ClipNorm

    @property
    def anchors(self) -> tuple[str, ...]:
        return (ORIGIN,)

    def weights(self, gram: Gram, f: int) -> Tensor:
        return clipped(gram, root(gram.to(gram.point(ORIGIN))), torch.tensor(self.tau, dtype=torch.float64))

    def max_f(self, n: int) -> int:
        return n


@dataclass(frozen=True)
class ARC(TwoHookMixer):
    """Adaptive robust clipping: the floor(2 (f / n) (n - f)) largest norms are cut to the next.

    Allouah et al., arXiv:2405.14432.
    """

    @property
    def anchors(self) -> tuple[str, ...]:
        return (ORIGIN,)

    def weights(self, gram: Gram, f: int) -> Tensor:
        norms = root(gram.to(gram.point(ORIGIN)))
        cut = 2 * f * (gram.n - f) // gram.n
        return clipped(gram, norms, norms.sort().values[gram.n - cut - 1])


def clipped(gram: Gram, norms: Tensor, tau: Tensor) -> Tensor:
    """Weights that cut the norms (n,) of the rows to tau."""
    return gram.completed((tau / norms).clamp_max(1).diag())
