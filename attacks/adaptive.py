"""Adversaries that try out the rule before they send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.attacks.forecast import Forecast, Path
from fedsim.attacks.objective import Aim, Objective, aim_of
from fedsim.attacks.search import first_best, known, strongest
from fedsim.attacks.vector import ALIE, Line
from fedsim.check import Count, Finite
from fedsim.types import Attack, Knowledge, State, Target, View

Damage = Callable[[Tensor], Tensor]  # of factors (k,)
SCALES = torch.tensor(
    [1, 1.1, 1.25, 1.5, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4, 0.2], dtype=torch.float64
)  # of the last search's factor


@dataclass(frozen=True)
class Adaptive(Attack):
    """`attack` with the factor in [-bound, bound] that does most damage to the rule at hand, chosen anew each round.

    `objective` is what counts as damage (`objective.aim_of`): "distance" from the mean of the honest rows that the rule
    sees (arXiv:2302.01772), "reverse", "progress" or "drift". The rules of this package are searched on inner products
    and a sample of columns; any other rule is run once for each of about 130 factors. `grid` sets how many. Between two
    searches, in every `every`-th round, the last factor is sent, or a part of it, or a little more, as is worst then.
    """

    attack: Line = ALIE()
    objective: Objective = "distance"
    bound: Finite = 100.0
    grid: Count = 32
    every: Count = 1

    @property
    def needs(self) -> frozenset[Knowledge]:
        return self.attack.needs | {"rule"}

    def forge(self, view: View) -> Tensor:
        return self.remember(view, {})[0]

    def remember(self, view: View, memory: State) -> tuple[Tensor, State]:
        target = target_of(view)
        origin, direction = self.attack.line(view)
        at = origin.expand(view.f, direction.shape[-1])
        aim, after = aim_of(self.objective, target.honest_mean(target.receive(at)), target, memory)
        damage, path = damage_along(view, origin, direction, aim)
        if "factor" in memory and view.round % self.every:
            factor = worst_of(damage, SCALES * float(memory["factor"]))
        else:
            factor = strongest(damage, path.factors(self.bound, self.grid))
            if self.every > 1:
                after = {**after, "factor": torch.tensor(factor, dtype=torch.float64)}
        return at.add(direction, alpha=factor), after


def best_factor(view: View, origin: Tensor, direction: Tensor, aim: Aim, bound: float, grid: int) -> float:
    """The t with which f rows origin + t * direction do most damage."""
    damage, path = damage_along(view, origin, direction, aim)
    return strongest(damage, path.factors(bound, grid))


def worst_of(damage: Damage, factors: Tensor) -> float:
    """The one of a few factors that does most damage, among equals the first."""
    return first_best(factors, known(damage(factors)))


def damage_along(view: View, origin: Tensor, direction: Tensor, aim: Aim) -> tuple[Damage, Path]:
    """The damage, by factor, of f rows origin + t * direction, (d,) or (f, d)."""
    target = target_of(view)
    path = Path.through(target, origin, direction, view.f)

    def run(factors: Tensor) -> Tensor:
        answers = (target(origin.add(direction, alpha=float(t)).expand(view.f, -1)) for t in factors)
        return torch.stack([aim(answer) for answer in answers]).double().cpu()

    return (Forecast(path, aim) if Forecast.knows(path) else run), path


def target_of(view: View) -> Target:
    assert view.target is not None, "the attack was not granted what it needs"
    return view.target
