"""Differential privacy of a run: from a budget to a noise multiplier, from what was released to an epsilon.

The noise multiplier z is the standard deviation of the noise over the L2 sensitivity of a release, the
furthest that neighbouring data can move it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from fedsim.accounting import (
    Release,
    composed_mu,
    grouped,
    nominal_multiplier,
    shuffle_bound,
    shuffle_separation,
)
from fedsim.batches import Adjacency, Batches
from fedsim.check import (
    LEAST_CLIP,
    MOST_CLIP,
    Chance,
    Component,
    Finite,
    FiniteClipNorm,
    Invalid,
)
from fedsim.privacy.base import Floats, Level, Privacy
from fedsim.privacy.plan import Plan, Rounds
from fedsim.privacy.response import RandomizedResponse
from fedsim.schedule import Schedule, rate

__all__ = ["CentralDP", "ExampleDP", "MessageDP", "Quantile", "RandomizedResponse"]

CLIP = "privacy.clip"  # where a client's state keeps a clip that adapts


# ---------------------------------------------------------------- where the noise goes
@dataclass(frozen=True)
class Quantile(Component):
    """A clip that every client adapts to its gradients: Andrew et al., arXiv:1905.03871, algorithm 1.

    C <- C exp(-speed (b - target)) after every gradient, b the noisy share of its examples within C. The count and
    the gradient are one Gaussian release of multiplier z: 1/z^2 is split, `spend` of it for the count.
    """

    start: FiniteClipNorm
    target: Chance = 0.5
    speed: Finite = 0.2
    spend: Annotated[float, Ge(1e-6), Le(0.99)] = 0.01


@dataclass(frozen=True)
class ExampleDP(Privacy):
    """Every example's gradient clipped to L2 norm `clip`, noise on the batch gradient (arXiv:1607.00133).

    by_layer  each of L layers by itself, to clip / sqrt(L): the same sensitivity
    """

    level: ClassVar[Level] = "example"
    unit: ClassVar[str] = "one example"

    clip: FiniteClipNorm | Schedule | Quantile
    by_layer: bool = False

    def adjacency(self, batches: Batches) -> Adjacency:
        return batches.adjacency

    def client_sensitivity(self, batches: Batches, sizes: NDArray[np.int64], bound: float | None) -> Floats:
        return batches.share(sizes)

    def bound(self, round: int) -> float:
        """The clip of a round; where it adapts, the first one. Raises `Invalid` where a schedule leaves the range."""
        if isinstance(self.clip, Quantile):
            return self.clip.start
        bound = rate(self.clip, round)
        if not LEAST_CLIP <= bound <= MOST_CLIP:
            allowed = f"allowed is from {LEAST_CLIP:g} to {MOST_CLIP:g}"
            raise Invalid(f"ExampleDP.clip = {self.clip!r}: {bound:.3g} in round {round}; {allowed}")
        return bound

    @property
    def scheduled(self) -> bool:
        return super().scheduled or isinstance(self.clip, Schedule)

    def require(self, plan: Plan, rounds: int, moved: float) -> None:
        super().require(plan, rounds, moved)
        for round in range(rounds):
            self.bound(round)

    def counts_rounds(self, batches: Batches) -> bool:
        return super().counts_rounds(batches) and type(batches).releases is Batches.releases

    def sensitivity(self, round: int) -> float:
        return 1 / sqrt(1 - self.clip.spend) if isinstance(self.clip, Quantile) else 1.0

    def count_scale(self, plan: Plan, round: int) -> float:
        """Standard deviation of the noise on the share of examples within the clip, over `client_sensitivity`.

        Examples count as 1/2 or -1/2, so that one more, or another, moves the share by half of what it moves gradients.
        """
        assert isinstance(self.clip, Quantile)
        return self.multiplier(plan) * float(self.factors((round,))[0]) / sqrt(self.clip.spend) / 2

    def releases(self, plan: Plan, rounds: Rounds, z: float) -> tuple[Release, ...]:
        steps = np.array(rounds, np.int64)[:, None] * plan.steps + np.arange(plan.steps)
        together = z / sqrt(
            plan.gradients
        )  # k gradients of one batch are one Gaussian of sensitivity sqrt(k)
        noise = np.broadcast_to(together * self.factors(rounds)[:, None], steps.shape)
        return plan.batches.releases(steps.reshape(-1), noise.reshape(-1), plan.smallest)

    def warnings(self, plan: Plan) -> list[str]:
        updates = int(plan.smallest / float(plan.batches.expected(np.array([plan.smallest]))[0]))
        sigma = self.multiplier(plan) * (2 if plan.batches.adjacency == "replace-one" else 1)
        if updates < 2 or sigma >= shuffle_bound(updates):
            return super().warnings(plan)
        return [
            *super().warnings(plan),
            f"noise of {sigma:.3g} times the clip is under the shuffle bound 1/sqrt(2 ln M) = "
            f"{shuffle_bound(updates):.3g} at M = {updates} updates an epoch (arXiv:2601.10237): adversaries "
            f"may separate neighbours by kappa >= {shuffle_separation(updates):.3g} of at most 0.707",
        ]


@dataclass(frozen=True)
class MessageDP(Privacy):
    """Noise on each message, which the method clips to L2 norm tau: sensitivity 2 tau (replace-one).

    calibration  "exact": the least noise for the budget; "paper": sigma = (tau / epsilon) sqrt(T ln(1/delta))
                 of arXiv:2603.23472, section 6, with a nominal epsilon: 3 at delta 4e-4 is 8.9 accounted
    """

    level: ClassVar[Level] = "message"
    unit: ClassVar[str] = "one example, or all that a client has"

    calibration: Literal["exact", "paper"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration == "paper" and self.epsilon is None:
            raise Invalid("MessageDP.calibration = 'paper' needs epsilon, the nominal one")

    def adjacency(self, batches: Batches) -> Adjacency:
        return "replace-one"

    def client_sensitivity(self, batches: Batches, sizes: NDArray[np.int64], bound: float | None) -> Floats:
        if bound is None:
            raise Invalid(
                "MessageDP: noise without clipping is not private; choose a method with a finite tau"
            )
        return np.full(len(sizes), bound)

    def sensitivity(self, round: int) -> float:
        return 2.0

    def releases(self, plan: Plan, rounds: Rounds, z: float) -> tuple[Release, ...]:
        return grouped(z * self.factors(rounds))

    def multiplier(self, plan: Plan) -> float:
        if self.calibration == "paper" and self.epsilon is not None:
            return nominal_multiplier(self.epsilon, self.delta, max(map(len, plan.rounds)))
        return super().multiplier(plan)

    def statement(self, plan: Plan, rounds: frozenset[Rounds]) -> str:
        accounted = super().statement(plan, rounds)
        if self.calibration == "exact":
            return accounted
        return f"{accounted} (nominal epsilon = {self.epsilon:g} of arXiv:2603.23472, which drops constants)"

    def warnings(self, plan: Plan) -> list[str]:
        mu = max(composed_mu(self.releases(plan, rounds, self.multiplier(plan))) for rounds in plan.rounds)
        drowned = 2 / mu * sqrt(plan.parameters / plan.clients)
        if drowned < 1:
            return super().warnings(plan)
        return [
            *super().warnings(plan),
            f"message-level noise of {plan.clients} honest clients over the run is {drowned:.2g} times the "
            f"furthest that their mean message can move the {plan.parameters} parameters: expect little "
            "learning (20 clients on the digits stayed at accuracy 0.17 at an accounted epsilon of 8, 0.42 "
            "at 30); use ExampleDP, or many more clients",
        ]


@dataclass(frozen=True)
class CentralDP(Privacy):
    """Noise on the mean of the messages, from a server that everybody trusts (DP-FedAvg, arXiv:1710.06963).

    The method clips its messages to L2 norm tau, so one client moves the mean of k by 2 tau / k at most. A cohort drawn
    afresh for each round amplifies, as long as it stays secret. Where clients keep a state, what they send may tell in
    which rounds they took part before; then nothing amplifies, and each pays in full for its own rounds. Only the
    models are private, not the messages.
    """

    level: ClassVar[Level] = "central"
    unit: ClassVar[str] = "one client"
    all_pay: ClassVar[bool] = True

    def adjacency(self, batches: Batches) -> Adjacency:
        return "replace-one"

    def client_sensitivity(self, batches: Batches, sizes: NDArray[np.int64], bound: float | None) -> Floats:
        return np.zeros(len(sizes))  # clients add no noise

    def sensitivity(self, round: int) -> float:
        return 1.0

    def releases(self, plan: Plan, rounds: Rounds, z: float) -> tuple[Release, ...]:
        amplified = plan.secret and plan.active < 1
        return grouped(z * self.factors(rounds), *(("fixed", plan.active) if amplified else ()))

    def warnings(self, plan: Plan) -> list[str]:
        if self.delta < 1 / plan.clients:
            return self._in_name_only(plan)
        return [
            *self._in_name_only(plan),
            f"delta = {self.delta:g} is not below 1/n = {1 / plan.clients:.3g}, one over the honest clients",
        ]
