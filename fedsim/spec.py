"""An experiment as one frozen value; to and from dict, JSON and TOML; its fingerprint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from inspect import isfunction
from math import ceil
from pathlib import Path
from typing import Any, Literal, cast

import tomli_w

from fedsim.asynchronous import Asynchronous
from fedsim.batches import Batches, Full
from fedsim.check import Component, Count, Invalid, Natural
from fedsim.clock import Clock, Tape
from fedsim.config.catalog import Allowed, component
from fedsim.config.codec import decode, encode, read_toml
from fedsim.method import Method
from fedsim.privacy import RandomizedResponse
from fedsim.privacy.base import Privacy
from fedsim.recall import MemoryRule
from fedsim.task import Task
from fedsim.types import Attack, Knowledge, Rule, Split

__all__ = ["Experiment"]


@dataclass(frozen=True, kw_only=True)
class Experiment(Component):
    """One federation: who learns what from which data, who attacks, who defends, and what stays private.

    clients     n, all of them; the last `byzantine` ids are Byzantine
    f           how many Byzantine clients the server assumes (default: as many as there are)
    split       how examples are dealt; also a function deal(dataset, n, rng) -> one list of places a client
    dealt       who holds data: "all" clients, or the "honest" ones alone (as where a paper adds attackers)
    cohort      clients drawn afresh for each round (default: all)
    knowledge   what the adversary is granted; an attack that needs more is refused
    attacked    where forged rows enter: as the "message", or in the server's "memory" row that the rule sees
    clock       seconds that clients take, so that rounds and the run have a length (default: no time is simulated); or
                the tape of a run on devices
    Raises `Invalid` where the parts do not fit together.
    """

    task: Task
    method: Method
    rule: Rule
    attack: Attack | None = None
    split: Split
    privacy: Privacy | None = None
    batches: Batches = Full()
    clients: Count = 25
    byzantine: Natural = 0
    f: Natural | None = None
    dealt: Literal["all", "honest"] = "all"
    cohort: Count | None = None
    knowledge: tuple[Knowledge, ...] = ("own", "honest")
    attacked: Literal["message", "memory"] = "message"
    rounds: Count = 100
    evaluate_every: Count = 10
    seed: Natural = 0
    clock: Clock | Tape | None = None

    def __post_init__(self) -> None:
        if isfunction(deal := cast(object, self.split)):
            object.__setattr__(self, "split", component(deal, (Split,))())
        super().__post_init__()
        self._check_counts()
        self._check_attack()
        self._check_privacy()
        self._check_asynchronous()
        self._check_clock()

    @property
    def honest(self) -> int:
        return self.clients - self.byzantine

    @property
    def active(self) -> int:
        """Clients that take part in a round."""
        return self.cohort or self.clients

    @property
    def rows(self) -> int:
        """Rows that the rule sees in a round in which nobody is missing; the fewest of an asynchronous method."""
        if isinstance(self.method, Asynchronous):
            return self.method.rows(self.clients)
        return self.clients if self.method.server_memory else self.active

    @property
    def f_round(self) -> int:
        """f among these rows: the assumed share of all clients, rounded up. Missing replies do not lower it."""
        if isinstance(self.method, Asynchronous):
            return self.method.byzantine_rows(self.f_total, self.clients)
        return ceil(self.f_total * self.rows / self.clients)

    @property
    def f_total(self) -> int:
        """f among all clients; a cohort may hold them all."""
        return self.byzantine if self.f is None else self.f

    def _check_counts(self) -> None:
        if 2 * self.byzantine >= self.clients:
            most = (self.clients - 1) // 2
            raise Invalid(
                f"byzantine = {self.byzantine}: at most {most} of {self.clients} clients, less than half"
            )
        if self.active > self.clients:
            raise Invalid(f"cohort = {self.cohort}: at most the number of clients, {self.clients}")
        if self.method.peer and self.active < self.clients:
            raise Invalid(
                f"cohort = {self.cohort}: among peers ({type(self.method).__name__}) all clients take part"
            )
        if self.method.peer and isinstance(self.rule, MemoryRule):
            raise Invalid(
                f"rule = {type(self.rule).__name__}: remembers clients at a server; among peers "
                f"({type(self.method).__name__}) there is none"
            )
        if self.rows < 1:
            raise Invalid(
                f"method = {self.method!r}: leaves no row of {self.clients} clients; allowed is at least one"
            )
        self.rule.require(self.rows, self.f_round)

    def _check_attack(self) -> None:
        attack = self.attack
        if attack is None:
            if self.dealt == "honest" and self.byzantine:
                raise Invalid(
                    f"dealt = 'honest' with attack = none: the {self.byzantine} Byzantine clients have nothing to "
                    f"send; allowed is byzantine = 0 (with f = {self.f_total} for the rule), or dealt = 'all'"
                )
            return
        name = type(attack).__name__
        if not self.byzantine:
            raise Invalid(
                f"attack = {name} with byzantine = 0: an attack needs at least one Byzantine client"
            )
        missing = sorted(attack.needs - set(self.knowledge))
        if missing:
            raise Invalid(
                f"attack = {name} needs the knowledge {missing[0]!r}, granted: {', '.join(self.knowledge) or 'none'}; "
                f"grant it with knowledge = {sorted({*self.knowledge, *missing})}"
            )
        if self.dealt == "honest" and attack.works_on_data:
            raise Invalid(
                f"dealt = 'honest': {name} needs Byzantine clients that hold data; allowed is 'all'"
            )

    def _check_privacy(self) -> None:
        if self.privacy is None or self.privacy.level == "example":
            return
        name, method, rule = (type(part).__name__ for part in (self.privacy, self.method, self.rule))
        if isinstance(self.privacy, RandomizedResponse):
            if not self.method.responds:
                raise Invalid(
                    f"privacy = {name}: {method} does not send signs, which are what it flips; allowed are SignSGD, "
                    "Signum and HeavyTailSign"
                )
            return
        bound = self.method.message_bound
        if bound is None:
            raise Invalid(
                f"privacy = {name}: {method} sends messages without a bound, and noise without clipping is not "
                "private; choose a method with a finite tau, or ExampleDP"
            )
        if self.privacy.level != "central":
            return
        if self.attack is not None and not self.attack.needs <= {"own"}:
            raise Invalid(
                f"privacy = {name}: {type(self.attack).__name__} makes its rows of what honest clients sent, so that "
                "one of them moves the mean by more than 2 tau / k; allowed are attacks that need only their own rows"
            )
        if self.method.by_examples:
            raise Invalid(
                f"privacy = {name}: {method} weighs clients by their examples, so that one with many moves the mean by "
                "more than 2 tau / k; allowed is method.weights = 'equal'"
            )
        if self.method.server_memory or self.method.peer:
            raise Invalid(
                f"privacy = {name}: {method} aggregates more than the messages of a round; choose another method"
            )
        if self.rule.sensitivity(bound, self.rows, self.f_round) is None:
            raise Invalid(f"privacy = {name}: how far one client moves {rule} is not known; allowed is Mean")
        if self.f is not None and self.f < self.byzantine:
            raise Invalid(
                f"f = {self.f}: {name} must assume all {self.byzantine} Byzantine clients, whose rows may drop out"
            )

    def _check_asynchronous(self) -> None:
        """What an asynchronous method needs, and what does not combine with one."""
        if not isinstance(self.method, Asynchronous):
            return
        name, clock, privacy = type(self.method).__name__, self.clock, self.privacy
        deadline = clock.deadline if isinstance(clock, Clock) else None
        refused = {
            f"clock.deadline = {deadline}: ends rounds": deadline is not None,
            f"cohort = {self.cohort}: is drawn for a round": self.cohort is not None,
            "attacked = 'memory': is of rounds": self.attacked == "memory",
            f"rule = {type(self.rule).__name__}: remembers clients by rounds": isinstance(
                self.rule, MemoryRule
            ),
            "the method's uplink or downlink: draws places for a round": bool(
                self.method.uplink or self.method.downlink
            ),
            "attack: knows the rule, and what it would see of a round": bool(
                self.attack and "rule" in self.attack.needs
            ),
            "privacy: is central, and adds noise to a round's mean": bool(
                privacy and privacy.level == "central"
            ),
            "privacy: has a schedule, by rounds": bool(privacy and privacy.scheduled),
        }
        for what, given in refused.items():
            if given:
                raise Invalid(f"{what}, and {name} has none; choose another, or a synchronous method")
        if privacy and privacy.epsilon is not None:
            raise Invalid(
                f"privacy.epsilon = {privacy.epsilon:g} with {name}: how many messages a client sends follows from the "
                "clock; give the noise, and stop_at_epsilon where a client is to stop"
            )

    def _check_clock(self) -> None:
        if isinstance(self.clock, Tape) and not isinstance(self.method, Asynchronous):
            raise Invalid(
                f"clock = Tape with method = {type(self.method).__name__}: a tape has arrivals, this method rounds; "
                "allowed is a Clock"
            )
        if isinstance(self.clock, Clock) and self.clock.work is not None:
            self._check_work(self.clock.work)
        if not isinstance(self.clock, Clock) or self.clock.late == "cut":
            return
        if self.cohort is not None or self.method.peer:
            which = f"cohort = {self.cohort}" if self.cohort else f"method = {type(self.method).__name__}"
            raise Invalid(
                f"clock.late = 'carried' with {which}: a late message joins a round of all clients at a server; "
                "allowed is late = 'cut'"
            )

    def _check_work(self, work: float) -> None:
        """What allows a client to stop after some of its local steps."""
        name = type(self.method).__name__
        refused = {
            f"method = {name}: its clients do all local steps": not self.method.may_stop,
            f"task.l2 = {self.task.l2:g}: every local step shrinks the model": self.task.l2 > 0,
            f"privacy = {type(self.privacy).__name__}: every local step adds noise": bool(
                self.privacy and self.privacy.level == "example"
            ),
        }
        for what, given in refused.items():
            if given:
                raise Invalid(
                    f"clock.work = {work:g} with {what}, whatever the time; allowed are FedAvg, MinibatchSGD, "
                    "DualLocalSGD, DecayingLocalSGD and FedBuff, without l2 and with no privacy or MessageDP"
                )

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = encode(self)
        if self.clock is None:
            del data["clock"]  # so that experiments without one keep their fingerprint
        return data

    def to_json(self) -> str:
        """One line, the same for equal experiments; infinities as the strings "inf" and "-inf"."""
        return json.dumps(_finite(self.to_dict()), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name this definition and no other."""
        return sha256(self.to_json().encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any], own: Allowed = False) -> Experiment:
        """The inverse of `to_dict`; `own` as in `codec.decode`: which components of a user's own it may name."""
        return decode(cls, data, own=own)

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        return decode(cls, json.loads(text))

    @classmethod
    def from_toml(cls, path: Path) -> Experiment:
        """An experiment from a file; raises `Invalid` where it cannot be read."""
        return decode(cls, read_toml(path))


def _finite(value: Any) -> Any:
    """JSON has no infinity: write it as a word that decodes to it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if value in (float("inf"), float("-inf")) else value
