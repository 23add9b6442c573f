"""Coordinate rules behind noise of their own, which draws a median of unlike rows towards their mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from fedsim.check import NonNegative
from fedsim.strategies.base import TwoHookRule
from fedsim.strategies.coordinate import Median
from fedsim.strategies.mixed import Mixed
from fedsim.strategies.sign import MajorityVote


@dataclass(frozen=True)
class Noisy(TwoHookRule):
    """A rule on x_i + noise * xi_i, where all entries of xi_i are independent standard normal numbers."""

    noise: NonNegative = 1e-3

    random = True

    def answer(self, mixed: Mixed, f: int) -> Tensor:
        def work(block: Tensor, columns: slice) -> Tensor:
            generator = Generator(block.device).manual_seed(mixed.seed + columns.start)
            shape = block.shape if block.stride(1) == 1 else block.T.shape
            noise = block.new_empty(shape).normal_(generator=generator)  # slow where it is not contiguous
            noise = noise if block.stride(1) == 1 else noise.T
            return self.reduce(noise.mul_(self.noise).add_(block), f)

        return mixed.vector(work)


@dataclass(frozen=True)
class NoisyMedian(Median, Noisy):
    """Coordinate-wise median behind noise (Chen et al., arXiv:1906.01736, Algorithm 4)."""

    def kappa(self, n: int, f: int) -> None:
        return None


@dataclass(frozen=True)
class NoisyMajorityVote(MajorityVote, Noisy):
    """Majority vote on signs behind noise (Chen et al., arXiv:1906.01736, Algorithm 3)."""
