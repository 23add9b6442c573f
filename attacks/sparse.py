"""Attacks that choose their places: where a message has room for few numbers, or others cast few votes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.attacks.vector import HONEST, honest_of
from fedsim.check import NonNegative, Share
from fedsim.types import Attack, Knowledge, View


@dataclass(frozen=True)
class Concentrated(Attack):
    """-s on a share of the places, 0 elsewhere, scaled to `factor` times the median norm of the honest messages.

    s is the honest mean. `places` "largest": where |s_j| is largest; no other row of this norm and as many places has
    a smaller product with s. "rarest": where the fewest honest rows are not 0, of these where
    |s_j| is largest: a rule has least to compare with there. A `TopK` of this share lets it pass as it is.
    """

    share: Share = 0.01
    factor: NonNegative = 1.0
    places: Literal["largest", "rarest"] = "largest"
    needs: ClassVar[frozenset[Knowledge]] = HONEST

    def forge(self, view: View) -> Tensor:
        honest = honest_of(view)
        s = honest.mean(0)
        order = s.abs().argsort(descending=True, stable=True)
        if self.places == "rarest":
            votes = torch.where(s == 0, len(honest) + 1, (honest != 0).sum(0))
            order = order[votes[order].argsort(stable=True)]
        there = order[: max(1, round(self.share * len(s)))]
        row = torch.zeros_like(s).index_copy_(0, there, -s[there])
        norm = self.factor * honest.norm(dim=1).median()
        scaled: Tensor = row * (norm / row.norm().clamp_min(1e-30))
        return scaled.expand(view.f, -1)


@dataclass(frozen=True)
class FillVote(Attack):
    """Votes where they count alone: f against the honest majority where it is at most f, none elsewhere.

    With v the sum of the honest signs, f votes win where |v| < f and tie where |v| = f. Where v = 0 they decide alone:
    against the honest mean, and against +1 where that is 0 too. Sizes rank the places, for messages that have room
    for few: first those that turn most votes, 1 + |v| / f, last the ties, 1/2.
    """

    needs: ClassVar[frozenset[Knowledge]] = HONEST

    def forge(self, view: View) -> Tensor:
        honest = honest_of(view)
        v, mean = honest.sign().sum(0), honest.mean(0)
        side = torch.where(v != 0, v.sign(), torch.where(mean < 0, -1.0, 1.0))
        size = torch.where(v.abs() < view.f, 1 + v.abs() / view.f, torch.where(v.abs() == view.f, 0.5, 0.0))
        return (-side * size).expand(view.f, -1)
