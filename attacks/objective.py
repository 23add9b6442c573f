"""What an adversary counts as damage: an answer of the rule far from a point, or against a direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedsim.types import State, Target

Objective = Literal["distance", "reverse", "progress", "drift"]
KEPT = 0.9  # of what is remembered, in each round


@dataclass(frozen=True)
class Aim:
    """The damage of an answer (d,): ||answer - point||, or with `against` minus its length along `point`, (d,)."""

    point: Tensor
    against: bool

    def __call__(self, answer: Tensor) -> Tensor:
        done: Tensor = (answer - self.point).norm()
        if self.against:
            done = -(answer @ self.point) / self.point.norm()
        return done


def aim_of(objective: Objective, s: Tensor, target: Target, memory: State) -> tuple[Aim, State]:
    """The aim of a round whose honest mean, as the rule sees it, is s (d,); the memory before and after.

    "distance"  from s (arXiv:2302.01772); "reverse": against s. These two look at one round and remember nothing
    "progress"  against u, the honest means so far: u <- 0.9 u + 0.1 s. What noise of a round points against does not
                count, the way that training takes does
    "drift"     ||D + answer - s||, D <- 0.9 (D + answer - s) of the rounds before: a push counts most where it goes on
                with the last ones, as the momentum of a server or of clients carries them on
    """
    if objective == "distance":
        return Aim(s, against=False), memory
    if objective == "reverse":
        return Aim(s, against=True), memory
    if objective == "progress":
        u = KEPT * memory["u"] + (1 - KEPT) * s if "u" in memory else s.clone()
        return Aim(u, against=True), {**memory, "u": u}
    drift = s.new_zeros(s.shape)
    if "drift" in memory and target.previous is not None:
        drift = KEPT * (memory["drift"] + target.previous - memory["s"])
    return Aim(s - drift, against=False), {**memory, "drift": drift, "s": s.clone()}
