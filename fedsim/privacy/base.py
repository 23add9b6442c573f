"""What every kind of privacy has: a budget, a noise multiplier, what a run spends of it, and how a report says so."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.accounting import ACCOUNTANTS, Accountant, Release, calibrate
from fedsim.batches import Adjacency, Batches
from fedsim.check import (
    LEAST_DEVIATION,
    LEAST_MOVE,
    LEAST_NOISE,
    MOST_NOISE,
    Chance,
    Component,
    Finite,
    Invalid,
    NoiseMultiplier,
)
from fedsim.privacy.plan import Ids, Payers, Plan, Rounds
from fedsim.privacy.promise import in_name_only, loose
from fedsim.schedule import Schedule

Level = Literal["example", "message", "central"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Privacy(Component):
    """A Gaussian mechanism with its budget: give exactly one of `epsilon` and `noise`.

    epsilon          what the whole run may spend at `delta`; the noise multiplier follows from it
    noise            the noise multiplier itself (standard deviation over sensitivity)
    schedule         a factor on the noise multiplier that changes with the round (default: 1)
    stop_at_epsilon  the run ends before the round that would spend more
    accountant       "exact", "rdp", "prv" or "gdp"; "auto" takes the lower of exact and RDP, where both are valid
    """

    level: ClassVar[Level]
    unit: ClassVar[str]
    all_pay: ClassVar[bool] = (
        False  # every client pays for every round: who takes part is secret, and that amplifies
    )

    epsilon: Finite | None = None
    noise: NoiseMultiplier | None = None
    schedule: Schedule | None = None
    stop_at_epsilon: Finite | None = None
    delta: Chance = 1e-5
    accountant: Literal["auto", "exact", "rdp", "prv", "gdp"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epsilon is None) == (self.noise is None):
            name = type(self).__name__
            raise Invalid(
                f"{name}: epsilon = {self.epsilon} and noise = {self.noise}: give exactly one of the two"
            )

    @abstractmethod
    def adjacency(self, batches: Batches) -> Adjacency:
        """Which data sets are neighbours."""

    @abstractmethod
    def client_sensitivity(self, batches: Batches, sizes: NDArray[np.int64], bound: float | None) -> Floats:
        """The part of each client's sensitivity that stays the same from round to round, (k,).

        `bound` is the L2 bound of a message, None where there is none.
        """

    @abstractmethod
    def sensitivity(self, round: int) -> float:
        """The other part: the L2 sensitivity over `client_sensitivity`, example-level also over the clip."""

    @abstractmethod
    def releases(self, plan: Plan, rounds: Rounds, z: float) -> tuple[Release, ...]:
        """What a client's releases in these rounds are to an accountant, at noise multiplier z."""

    def payers(self, ids: Ids, clients: int, secret: bool) -> Payers:
        """Who of the honest clients, those below `clients`, pays for a round in which clients `ids` take part.

        secret  whether nothing tells later who they were
        """
        honest = ids[ids < clients]
        return None if (self.all_pay and secret) or len(honest) == clients else honest

    @property
    def scheduled(self) -> bool:
        """Whether anything changes with the round."""
        return self.schedule is not None

    def counts_rounds(self, batches: Batches) -> bool:
        """Whether what a client pays depends on the number of its rounds alone, not on which ones they are."""
        return self.schedule is None

    def factors(self, rounds: Rounds) -> Floats:
        """The schedule's factors on the noise multiplier in these rounds."""
        return (
            np.ones(len(rounds)) if self.schedule is None else np.array([self.schedule.at(t) for t in rounds])
        )

    def multiplier(self, plan: Plan) -> float:
        """The noise multiplier z (before the schedule) that keeps the run within its budget; raises `Invalid`."""
        return _calibrated(self, plan) if self.noise is None else self.noise

    def scale(self, plan: Plan, round: int) -> float:
        """The standard deviation of a round's noise over `client_sensitivity`, example-level also over the clip."""
        return self.multiplier(plan) * float(self.factors((round,))[0]) * self.sensitivity(round)

    def require(self, plan: Plan, rounds: int, moved: float) -> None:
        """Raise `Invalid` where the noise of one of so many rounds is more, or less, than float32 carries.

        `moved`: the least sensitivity of a release over the bound of its norm.
        """
        name = type(self).__name__
        if moved < LEAST_MOVE:
            raise Invalid(
                f"{name}: {self.unit} moves a release by {moved:.2g} of its bound only; allowed is at least "
                f"{LEAST_MOVE:g}: float32 has seven digits, so take smaller batches or fewer clients a round"
            )
        multipliers = self.multiplier(plan) * self.factors(tuple(range(rounds)))
        for round, z in enumerate(multipliers.tolist()):
            if z * moved < LEAST_DEVIATION and z >= LEAST_NOISE:
                raise Invalid(
                    f"{name}: noise of {z * moved:.2g} times the bound of what it is added to, in round {round}; "
                    f"allowed is at least {LEAST_DEVIATION:g}: float32 has seven digits and would round it away"
                )
            if not LEAST_NOISE <= z <= MOST_NOISE:
                raise Invalid(
                    f"{name}: a noise multiplier of {z:.3g} in round {round}; allowed is from "
                    f"{LEAST_NOISE:g} to {MOST_NOISE:g}: beyond that float32 loses the noise, or what it is added to"
                )

    def spent(self, plan: Plan, rounds: frozenset[Rounds]) -> float:
        """The epsilon that the accountant stands behind for every client, from the rounds of each."""
        return self._account(plan, rounds)[0]

    def statement(self, plan: Plan, rounds: frozenset[Rounds]) -> str:
        """Epsilon with all that it means nothing without: delta, unit, adjacency, accountant."""
        epsilon, accountant = self._account(plan, rounds)
        return (
            f"epsilon = {epsilon:.4g} at delta = {self.delta:g}, unit: {self.unit}, "
            f"{self.adjacency(plan.batches)}, {accountant}"
        )

    def warnings(self, plan: Plan) -> list[str]:
        """What a user should know before starting or trusting such a run."""
        return [*self._in_name_only(plan), *loose(self.delta, plan.smallest)]

    def _in_name_only(self, plan: Plan) -> list[str]:
        return in_name_only(self.spent(plan, plan.rounds), self.multiplier(plan))

    def accountants(self, plan: Plan) -> list[Accountant]:
        """The accountants in use; raises `Invalid` where the one asked for is not valid for the sampling."""
        kinds = {release.sampling for release in self.releases(plan, (0,), 1.0)}
        valid = {name: a for name, a in ACCOUNTANTS.items() if kinds <= a.valid}
        if self.accountant == "auto":
            return [valid[name] for name in ("exact", "rdp") if name in valid]
        if self.accountant not in valid:
            raise Invalid(
                f"{type(self).__name__}.accountant = {self.accountant!r} is not valid for batches = "
                f"{type(plan.batches).__name__}; allowed: auto, {', '.join(valid)}"
            )
        return [valid[self.accountant]]

    def paid(self, plan: Plan, rounds: frozenset[Rounds], z: float) -> set[tuple[Release, ...]]:
        """All that clients who took part in these rounds may have paid."""
        return {self.releases(own, each, z) for own in plan.by_size() for each in rounds}

    def bill(self, plan: Plan, rounds: Rounds, size: int | None = None) -> tuple[Release, ...]:
        """What a client of `size` examples pays that takes part in these rounds.

        Of unknown size: the most that one may pay, of those in the plan.
        """
        z = self.multiplier(plan)
        if size is not None:
            return self.releases(plan.of_size(size), rounds, z)
        return max(
            (self.releases(own, rounds, z) for own in plan.by_size()),
            key=lambda paid: self._least_bound(plan, {paid}),
        )

    def _account(self, plan: Plan, rounds: frozenset[Rounds]) -> tuple[float, str]:
        """What the client pays that pays most, and whose bound that is."""
        return self._least_bound(plan, self.paid(plan, rounds, self.multiplier(plan)) or {()})

    def _least_bound(self, plan: Plan, paid: set[tuple[Release, ...]]) -> tuple[float, str]:
        """The lowest of the bounds in use that holds for all of `paid`, and whose it is."""
        bounds = [
            (max(_epsilon(a, each, self.delta) for each in paid), a.title) for a in self.accountants(plan)
        ]
        return min(bounds)


@cache
def _epsilon(accountant: Accountant, history: tuple[Release, ...], delta: float) -> float:
    return accountant.epsilon(history, delta)


@cache
def _calibrated(privacy: Privacy, plan: Plan) -> float:
    """The smallest noise multiplier with which an accountant in use keeps the budget."""
    assert privacy.epsilon is not None

    return min(
        calibrate(a, lambda z: privacy.paid(plan, plan.rounds, z), privacy.epsilon, privacy.delta)
        for a in privacy.accountants(plan)
    )
