"""An adversary that tries attacks out on training, not on a round, and keeps to the most damaging one."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, NoReturn

from annotated_types import MinLen
from torch import Tensor

from fedsim.attacks.adaptive import Adaptive
from fedsim.attacks.hidden import MinMax
from fedsim.attacks.mimic import Mimic
from fedsim.attacks.vector import IPM, SignFlip
from fedsim.check import Count, Finite, Invalid
from fedsim.types import Attack, Batch, Knowledge, Pilot, State, View

LEFT = 3  # of so many members one goes on to the next stage of a pilot

MEMBERS: tuple[Attack, ...] = (
    Adaptive(IPM(), "reverse", grid=8, every=5),
    IPM(0.1),
    IPM(10.0),
    MinMax("unit"),
    Mimic(),
    SignFlip(),
)


@dataclass(frozen=True)
class Portfolio(Attack):
    """The one of `members` that does most damage to training, as pilot runs on a copy of the federation tell.

    The choice is made `choices` times, at even distances, the first time before the first round. Each member then runs
    the training from where the run stands towards the next choice, with batches and noise of the adversary's own
    drawing; damage is what the honest clients' examples are in the last quarter misclassified, or lose where they have
    no classes. A third of the members goes on as far again, the one that the run has met among them, and the worst is
    the next. All pilots together take `pilot` times the run's rounds.

    Pilots take data of all clients and the rule, beside what its members need: `fedsim.run` has them on the engines
    loop, vector and grid; ray, a deployment and Flower's strategy have not, and refuse. A member that is not defined
    for the task is left out.
    """

    members: Annotated[tuple[Attack, ...], MinLen(1)] = MEMBERS
    pilot: Finite = 3.0
    choices: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(isinstance(member, Portfolio) for member in self.members):
            raise Invalid("Portfolio.members: holds a Portfolio; allowed are attacks that need no pilot")

    @property
    def needs(self) -> frozenset[Knowledge]:
        pilots: frozenset[Knowledge] = frozenset({"honest", "rule"})
        return pilots.union(*(member.needs for member in self.members))

    @property
    def poisons(self) -> bool:
        return any(member.poisons for member in self.members)

    @property
    def works_on_data(self) -> bool:
        return any(member.works_on_data for member in self.members)

    def rehearse(self, round: int, rounds: int) -> Pilot | None:
        apart = ceil(rounds / self.choices)
        if round % apart:
            return None
        horizon = min(apart, rounds - round)
        return Pilot(self.members, tuple(stages(len(self.members), self.pilot * horizon, horizon)))

    def member(self, place: int) -> Attack:
        return self.members[place]

    def forge(self, view: View) -> Tensor:
        self._refuse()

    def remember(self, view: View, memory: State) -> tuple[Tensor, State]:
        self._refuse()

    def poison(self, batch: Batch, classes: int) -> Batch:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Invalid(
            "attack = Portfolio: chooses by pilot runs on a copy of the federation, which there is none of here; name "
            "one of its members, or use fedsim.run with the engine loop, vector or grid"
        )


def stages(members: int, budget: float, horizon: int) -> list[tuple[int, int]]:
    """How far each stage of a pilot goes, in rounds from its start, and how many members go on from it, in the end 1.

    Stages are equally long, and take the budget, in rounds of a member, together: what a member does in a few rounds
    tells little of what it does in many. None goes beyond the horizon, or less than a round further.
    """
    counts = [members]
    while counts[-1] > 2:
        counts.append(max(2, ceil(counts[-1] / LEFT)))
    length, found = max(1, int(budget / sum(counts))), []
    for number, after in enumerate([*counts[1:], 1], 1):
        found.append((min(horizon, number * length), after))
    return found
