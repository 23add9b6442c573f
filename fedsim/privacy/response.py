"""Randomized response: clients flip the signs that they send."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.accounting import Release, grouped
from fedsim.batches import Adjacency, Batches
from fedsim.check import Invalid
from fedsim.privacy.base import Floats, Level, Privacy
from fedsim.privacy.binomial import response_chance, response_epsilon
from fedsim.privacy.plan import Plan, Rounds

GRID = 2**24  # numbers in [0, 1) that decide a flip lie on so many points
LEAST_FLIPS = 2.0**-20


@dataclass(frozen=True)
class RandomizedResponse(Privacy):
    """Each of d signs that a client sends is flipped with chance p = Phi(-1 / (2 z sqrt(d))) (Warner, 1965).

    That is the sign of the message with Gaussian noise of multiplier z on it; no clip is needed, for a sign is bounded.
    Bits are +1 or -1: a 0 is sent as either, by a fair coin. "auto" accounts for the flips themselves, exactly
    (`fedsim.privacy.binomial`); the other accountants, and noise that changes with the round, for that Gaussian, which
    bounds it. p is rounded up to a multiple of 2^-24, the grid of the numbers that decide.
    """

    level: ClassVar[Level] = "message"
    unit: ClassVar[str] = "one example, or all that a client has"

    def adjacency(self, batches: Batches) -> Adjacency:
        return "replace-one"

    def client_sensitivity(self, batches: Batches, sizes: NDArray[np.int64], bound: float | None) -> Floats:
        return np.ones(len(sizes))

    def sensitivity(self, round: int) -> float:
        return 1.0

    def releases(self, plan: Plan, rounds: Rounds, z: float) -> tuple[Release, ...]:
        return grouped(z * self.factors(rounds))

    @property
    def _binomial(self) -> bool:
        return self.accountant == "auto" and self.schedule is None

    def multiplier(self, plan: Plan) -> float:
        if self.noise is not None or not self._binomial:
            return super().multiplier(plan)
        assert self.epsilon is not None
        bits = plan.parameters * max(map(len, plan.rounds))
        return _noise_of_flips(response_chance(bits, self.epsilon, self.delta)) / sqrt(plan.parameters)

    def flips(self, plan: Plan, round: int) -> float:
        """The chance p of a round, a multiple of 2^-24."""
        z = self.multiplier(plan) * float(self.factors((round,))[0]) * sqrt(plan.parameters)
        return ceil(NormalDist().cdf(-1 / (2 * z)) * GRID) / GRID

    def require(self, plan: Plan, rounds: int, moved: float) -> None:
        super().require(plan, rounds, moved)
        for round in range(rounds):
            p = self.flips(plan, round)
            if not LEAST_FLIPS <= p < 0.5:
                raise Invalid(
                    f"RandomizedResponse: signs flipped with chance {p:.3g} in round {round}; allowed is from "
                    f"{LEAST_FLIPS:.3g} to below 1/2, where nothing of them is left"
                )

    def _account(self, plan: Plan, rounds: frozenset[Rounds]) -> tuple[float, str]:
        if not self._binomial:
            return super()._account(plan, rounds)
        bits = plan.parameters * max(map(len, rounds), default=0)
        return response_epsilon(bits, self.flips(plan, 0), self.delta), "exact binomial composition"

    def warnings(self, plan: Plan) -> list[str]:
        told = (1 - 2 * self.flips(plan, 0)) * sqrt(plan.clients)
        if told >= 1:
            return super().warnings(plan)
        return [
            *super().warnings(plan),
            f"flipped signs of {plan.clients} honest clients who all agree lie {told:.2g} deviations from a tie: "
            "expect little learning; allow more, send fewer parameters or take many more clients",
        ]


def _noise_of_flips(p: float) -> float:
    """The deviation, over 2, of the noise on +-1 whose sign is flipped with chance p."""
    return -1 / (2 * NormalDist().inv_cdf(p))
