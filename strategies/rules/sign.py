"""Votes on signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.strategies.kernels.base import TwoHookRule


@dataclass(frozen=True)
class MajorityVote(TwoHookRule):
    """sign(sum_i sign(x_i)) by coordinate, with sign(0) = 0 (Bernstein et al., arXiv:1810.05291).

    `ties` is the answer where the votes are even: 0, 1 or -1.
    """

    ties: Literal[0, 1, -1] = 0

    def reduce(self, block: Tensor, f: int) -> Tensor:
        vote = block.sign().sum(0).sign()
        return vote if self.ties == 0 else torch.where(vote == 0, float(self.ties), vote)

    def row_influence(self, block: Tensor, f: int) -> Tensor:
        """The share of the votes that went with the answer."""
        agree = (block.sign() == self.reduce(block, f)).to(block)
        return (agree / agree.sum(0).clamp_min(1)).sum(1)
