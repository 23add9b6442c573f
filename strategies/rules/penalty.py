"""Aggregation that weighs by lengths, of what comes of long local work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.check import ClipNorm, Finite, Natural, Share
from fedsim.recall import MemoryRule
from fedsim.strategies.rules.weighted import Mean
from fedsim.types import Rule, State

LEAST = 2.0**-149  # the least number of float32: who counts still does in the rows' own digits


@dataclass(frozen=True)
class EDiT(MemoryRule):
    """The penalty of EDiT and A-EDiT, arXiv:2412.07210: sum_i w_i x_i, w = softmax(-||x_i||), clipped to norm `clip`.

    A client whose length is more than `z` deviations above its own moving mean does not count, once it took part in
    `warmup` rounds; mean and variance move by `alpha` a round, without such rounds. It needs no f. The paper's factor
    on z that changes with time is 1 here; where nobody would count, all do.
    """

    clip: ClipNorm = 10.0
    z: Finite = 3.0
    alpha: Share = 0.02
    warmup: Natural = 100

    @property
    def inner(self) -> Rule:
        return Mean()

    def own(self, row: Tensor) -> State:
        zero = row.new_zeros((), dtype=torch.float64)
        return {"mean": zero, "variance": zero, "rounds": zero}

    def remember(
        self, own: State, shared: State, rows: Tensor, *, x: Tensor, previous: Tensor | None
    ) -> tuple[State, State, Tensor]:
        rows = rows.detach()
        length, mean, variance = rows.double().norm(dim=1), own["mean"], own["variance"]
        counts = ~((own["rounds"] >= self.warmup) & (length - mean > self.z * variance.sqrt()))
        first = own["rounds"] == 0
        off, move = length - mean, self.alpha * counts
        after = torch.where(first, length, mean + move * off)
        spread = torch.where(first, 0.0, (1 - move) * (variance + move * off.square()))
        whose = counts if counts.any() else torch.ones_like(counts)
        weights = torch.softmax((-length).masked_fill(~whose, -torch.inf), 0)
        total = float((weights @ rows.double()).norm())
        scale = min(1.0, self.clip / total) if total else 1.0
        weights = torch.where(weights > LEAST, (weights * scale).clamp_min(LEAST), 0).to(rows)
        weights = weights * int((weights > 0).sum())  # the inner rule takes the mean of those that count
        moved = {"mean": after, "variance": spread, "rounds": own["rounds"] + 1}
        return moved, shared, weights
