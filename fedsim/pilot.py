"""An adversary's own copy of the federation, on which it tries out attacks before it sends anything.

The copy draws batches, noise and cohorts at addresses of its own: what it foretells is the training, not its luck. It
runs on the vector engine, whatever the run itself is on, so that all engines come to the same choice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import inf, isfinite

import numpy as np
import torch

from fedsim import engines
from fedsim.check import Invalid
from fedsim.federation import Federation
from fedsim.keys import Keys
from fedsim.spec import Experiment
from fedsim.standing import Standing
from fedsim.states import States
from fedsim.task import evaluate
from fedsim.timing import RoundTimes
from fedsim.types import Attack, Examples, Pilot

EXAMPLES = 2000  # of the honest clients, on which damage is measured
POINTS = 5  # rounds at which it is, in the last quarter of a stage


def under(fed: Federation, attack: Attack) -> Federation:
    """The federation as this attack works on it."""
    acting = copy.copy(fed)
    acting.experiment = replace(fed.experiment, attack=attack)
    vars(acting).pop("triggered", None)  # a backdoor's, of another attack
    return acting


def require_none(experiment: Experiment) -> None:
    """Raise `Invalid` where the attack needs pilot runs, and nobody has the data for them."""
    attack = experiment.attack
    if attack is not None and attack.rehearse(0, experiment.rounds) is not None:
        raise Invalid(
            f"attack = {type(attack).__name__}: chooses by pilot runs on a copy of all clients' data, which nobody has "
            "where clients are devices; name one of its members, or use fedsim.run"
        )


def chosen(
    fed: Federation, live: Standing, pilot: Pilot, tell: Callable[[float], None] = lambda done: None
) -> int:
    """The place of the member that does most damage from where the run stands; among equals the first.

    `tell` is called with the share of the pilot that is done. Raises `Invalid` where no member is defined for the task.
    """
    left = {place: Rehearsed.start(fed, live, member) for place, member in enumerate(pilot.members)}
    count = sum(len(left) if not k else pilot.stages[k - 1][1] for k in range(len(pilot.stages)))
    done, refused = 0, Invalid("")
    for rounds, keep in pilot.stages:
        damages = {}
        for place, rehearsed in left.items():
            try:
                left[place], damages[place] = rehearsed.until(live.round + rounds)
            except Invalid as error:  # flipped labels where there are none, say
                refused = error
            done += 1
            tell(min(1.0, done / count))
        best = sorted(damages, key=lambda place: damages[place], reverse=True)[:keep]
        if keep > 1 and live.member in damages and live.member not in best:
            best[-1] = live.member  # of which the last stage tells most
        for place in left.keys() - set(best):
            left[place].live.states.close()
        left = {place: left[place] for place in best}
    if not left:
        raise refused
    place, found = next(iter(left.items()))
    found.live.states.close()
    return place


@dataclass(frozen=True)
class Rehearsed:
    """How far a pilot of one member has come."""

    fed: Federation
    live: Standing

    @classmethod
    def start(cls, fed: Federation, live: Standing, member: Attack) -> Rehearsed:
        copied = under(fed, member)
        seed = blake2b(f"{fed.experiment.seed}/pilot".encode(), digest_size=6).digest()
        copied.keys = copied.choice = Keys(int.from_bytes(seed, "little"), fed.experiment.clients)
        states = States.start(fed.client_state(), fed.computing, space=fed.space)
        if live.round:
            clients = np.arange(fed.computing)
            kept = {name: value.clone() for name, value in live.states.of(clients).items()}
            states = states.after(clients, kept)
        server, times = (
            replace(live.server, memory={}),
            RoundTimes.of(copied, live.round, live.seconds, live.late),
        )
        return cls(copied, replace(live, server=server, states=states, ledger=None, times=times))

    def until(self, end: int) -> tuple[Rehearsed, tuple[float, float]]:
        """At round `end`, and the mean damage over the last quarter of the way: share misclassified, then loss."""
        ask, live, damages = engines.Everyone(engines.get("vector")), self.live, []
        measured = set(np.linspace((live.round + 3 * end) // 4 + 1, end, POINTS).astype(int).tolist())
        examples = honest_examples(self.fed)
        while live.round < end:
            asked = live.asked(self.fed)
            states = live.states.of(asked)
            live, _ = live.after(self.fed, *ask(self.fed, states, live.told(self.fed), live.round, asked))
            if live.round in measured:
                damages.append(damage(self.fed, live, examples))
        damages = damages or [damage(self.fed, live, examples)]  # a stage that has nowhere left to go
        wrong, loss = (sum(column) / len(damages) for column in zip(*damages, strict=True))
        return replace(self, live=live), (wrong, loss)


def honest_examples(fed: Federation) -> Examples:
    """Some of what the honest clients hold, at even steps."""
    held = int(fed.sizes[: fed.experiment.honest].sum())
    places = torch.linspace(0, held - 1, min(held, EXAMPLES), dtype=torch.float64).long()
    return fed.train.part(places.to(fed.device))


def damage(fed: Federation, live: Standing, examples: Examples) -> tuple[float, float]:
    """The share of examples that the model misclassifies, 0 without classes, and their mean loss."""
    found = evaluate(fed.model, fed.loss, live.x(fed), examples)
    loss = found["loss"] if isfinite(found["loss"]) else inf
    return 1 - found.get("accuracy", 1.0), loss
