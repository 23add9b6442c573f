"""Coordinate rules behind noise of their own, which draws a median of unlike rows towards their mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fedsim.check import NonNegative
from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.strategies.kernels.mixed import Mixed
from fedsim.strategies.rules.coordinate import Median
from fedsim.strategies.rules.sign import MajorityVote


@dataclass(frozen=True)
class Noisy(TwoHookRule):
    """A rule on x_i + noise * xi_i, where all entries of xi_i are independent standard normal numbers."""

    noise: NonNegative = 1e-3

    random = True

    def answer(self, mixed: Mixed, f: int) -> Tensor:
        # by the shape of the rows alone, not by blocks or threads, is the noise at a place
        width, short = mixed.rows.cached, mixed.rows.short

        def drawn(block: Tensor, start: int) -> Tensor:
            generator = Generator(block.device).manual_seed(mixed.seed + start)
            noise = block.new_empty(block.shape if short else block.T.shape).normal_(generator=generator)
            return noise if short else noise.T  # as the block lies: elsewhere it would be slow to add

        def work(block: Tensor, columns: slice) -> Tensor:
            parts = [
                drawn(part, columns.start + i * width) for i, part in enumerate(block.split(width, dim=1))
            ]
            noise = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
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
