"""Mimic: all Byzantine clients repeat one honest client, who then counts f + 1 times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.attacks.vector import HONEST, honest_of
from fedsim.check import Count, Natural
from fedsim.types import Attack, Knowledge, State, View


@dataclass(frozen=True)
class Mimic(Attack):
    """Copy one honest row (Karimireddy, He, Jaggi, arXiv:2006.09365): nothing about it is an outlier.

    `victim` None is the paper's heuristic in the form of the authors' code. In the first `warmup` rounds t =
    0, 1, ... the honest mean is averaged over rounds, mu, and one step of the power method a round follows
    the direction of the largest spread: u = sum_i <x_i - mu, z> (x_i - mu), z <- t/(1+t) z + u / ((1+t)
    ||u||), z of length 1. The row with the largest <x_i, z> is copied; the last client chosen stays the
    victim after the warm-up, and where it does not take part, that row is copied again. A number names the
    victim by its place among the honest rows of a round.
    """

    victim: Natural | None = None
    warmup: Count = 1
    needs: ClassVar[frozenset[Knowledge]] = HONEST

    def forge(self, view: View) -> Tensor:
        return self.remember(view, {})[0]

    def remember(self, view: View, memory: State) -> tuple[Tensor, State]:
        honest = honest_of(view)
        t = int(memory["t"]) if memory else 0
        if self.victim is None and t < self.warmup:
            memory = self._look(t, honest, view, memory)
        if self.victim is None:
            there = (_ids(view) == int(memory["victim"])).nonzero()  # which a resumed run has on its device
            place = int(there[0]) if len(there) else int((honest @ memory["z"]).argmax())
        else:
            place = self.victim % len(honest)
        return honest[place].expand(view.f, -1), memory

    def _look(self, t: int, honest: Tensor, view: View, memory: State) -> State:
        """Round t of the warm-up."""
        mu = honest.mean(0)
        if t == 0:
            z = torch.randn(mu.shape, generator=view.generator, device=mu.device)
        else:
            z, mu = memory["z"], (t * memory["mu"] + mu) / (1 + t)
        off = honest - mu
        step = (off @ z) @ off
        z = t / (1 + t) * z + step / step.norm().clamp_min(1e-30) / (1 + t)
        z = z / z.norm().clamp_min(1e-30)
        return {"t": torch.tensor(t + 1), "mu": mu, "z": z, "victim": _ids(view)[(honest @ z).argmax().cpu()]}


def _ids(view: View) -> Tensor:
    """Whose the honest rows are; their places, where clients have no numbers."""
    return torch.arange(len(honest_of(view))) if view.ids is None else view.ids
