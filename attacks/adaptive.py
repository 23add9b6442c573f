"""Adversaries that try out the rule before they send."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.attacks.forecast import Forecast, Objective, Path
from fedsim.attacks.search import strongest
from fedsim.attacks.vector import ALIE, Line
from fedsim.check import Count, Finite
from fedsim.types import Attack, Knowledge, Target, View


@dataclass(frozen=True)
class Adaptive(Attack):
    """`attack` with the factor in [-bound, bound] that does most damage to the rule at hand, chosen anew each round.

    `objective` "distance" is ||answer - s||, s the mean of the honest rows that the rule sees (arXiv:2302.01772);
    "reverse" is minus the length of the answer along s. The rules of this package are searched on inner products and a
    sample of columns; any other rule is run once for each of about 130 factors. `grid` sets how many.
    """

    attack: Line = ALIE()
    objective: Objective = "distance"
    bound: Finite = 100.0
    grid: Count = 32

    @property
    def needs(self) -> frozenset[Knowledge]:
        return self.attack.needs | {"rule"}

    def forge(self, view: View) -> Tensor:
        origin, direction = self.attack.line(view)
        return push(view, origin, direction, self.objective, self.bound, self.grid)


def push(
    view: View, origin: Tensor, direction: Tensor, objective: Objective, bound: float, grid: int
) -> Tensor:
    """The rows (f, d) on the line origin + factor * direction that do most damage."""
    target = target_of(view)
    path = Path.through(target, origin, direction, view.f)

    def at(factor: float) -> Tensor:
        return origin.add(direction, alpha=factor).expand(view.f, -1)

    def run(factors: Tensor) -> Tensor:
        answers = (target(at(float(t))) for t in factors)
        return torch.stack([damage(answer, path.s, objective) for answer in answers]).double().cpu()

    tried = Forecast(path, objective) if Forecast.knows(path) else run
    return at(strongest(tried, path.factors(bound, grid)))


def damage(answer: Tensor, s: Tensor, objective: Objective) -> Tensor:
    """How bad an answer (d,) is for the honest mean s: ||answer - s||, or minus its length along s."""
    done: Tensor = (answer - s).norm() if objective == "distance" else -(answer @ s) / s.norm()
    return done


def target_of(view: View) -> Target:
    assert view.target is not None, "the attack was not granted what it needs"
    return view.target
