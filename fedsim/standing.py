"""Where a run stands between two rounds: all that changes from one round to the next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.downlink import mean_bits
from fedsim.federation import Federation, Ids
from fedsim.privacy.ledger import Ledger
from fedsim.round import Messages, Seen, Server, attempt
from fedsim.states import States
from fedsim.timing import Late, RoundTimes, in_time
from fedsim.types import State

UNACCOUNTED = (
    "no epsilon: the noise of this deployment is derived from the experiment's seed, which hides nothing"
)

OUTSIDE = (
    "outside of the guarantee: the record's accuracy, loss, deviation, honest_norm, gradient_norm and weights by "
    "round, and what it says of clients' own models, which are worked out from data and messages as they are; a "
    "checkpoint, which holds what clients keep"
)


@dataclass(frozen=True)
class Standing:
    """The next round, the server, what clients keep, what was paid; `written` bytes of metrics belong to it.

    Whoever asks the clients uses it alike: while `goes_on`, the clients `asked` get what is `told`, and `after` their
    messages the run stands one round further. On a clock it has `seconds` behind it, messages that are `late`, and the
    `times` of the next round.
    heard  (n,) the round whose broadcast each client holds, -1 for none
    bits   that a client sent and was told: the mean of those who took part in a round, summed over rounds
    member the place of the attack that the adversary has chosen among several (`Attack.rehearse`)
    """

    round: int
    server: Server
    states: States
    ledger: Ledger | None
    late: Late
    written: int = 0
    seconds: float = 0.0
    times: RoundTimes | None = None
    heard: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    bits: tuple[float, float] = (0, 0)
    member: int | None = None

    @classmethod
    def start(cls, fed: Federation, first: State, file: Path | None = None) -> Standing:
        """Before the first round; `first` is what is kept of a client that has not answered yet, in `file` at last."""
        states = States.start(first, fed.computing, space=fed.space, file=file)
        late, heard = Late.none(fed, first), np.full(fed.computing, -1)
        times = RoundTimes.of(fed, 0, 0.0, late)
        return cls(0, Server.start(fed), states, opened(fed), late, times=times, heard=heard)

    @classmethod
    def at(cls, fed: Federation, saved: dict[str, Any], states: States) -> Standing:
        """At a checkpoint, with the states that lie beside it."""

        ledger, round, seconds = opened(fed), saved["round"], saved["simulated_seconds"]
        server, late = Server(**to_device(fed, saved["server"])), Late.load(saved["late"], fed.device)
        return cls(
            round,
            server,
            states,
            ledger and ledger.load(saved),
            late,
            saved["metrics_bytes"],
            seconds,
            RoundTimes.of(fed, round, seconds, late),
            saved["heard"].numpy(),
            tuple(saved["bits"]),
            saved.get("member"),
        )

    def goes_on(self, fed: Federation) -> bool:
        """Whether rounds are left, the privacy budget affords another, and it ends before the clock's horizon."""
        clock = fed.experiment.clock
        if self.round >= fed.experiment.rounds or (clock and self.times and self.times.ends > clock.end):
            return False
        return self.ledger is None or self.ledger.affords(self._members(fed))

    def asked(self, fed: Federation) -> Ids:
        """The clients that are asked in the next round: those of its cohort that compute.

        Whose message will be cut off is not asked: it leaves nothing behind but what it pays.
        """
        clock, times = fed.experiment.clock, self.times
        ids = self._members(fed)
        if clock and times:
            ids = times.answer if clock.late == "carried" else times.on_time
        return ids[ids < fed.computing]

    def _members(self, fed: Federation) -> Ids:
        """Those of the next round's cohort who get the model."""
        return fed.cohort(self.round) if self.times is None else self.times.asked

    def told(self, fed: Federation) -> State:
        """What they are told."""
        return self.server.told(fed.experiment.method)

    def after(
        self, fed: Federation, states: State, messages: Messages, answered: Ids
    ) -> tuple[Standing, Seen | None]:
        """After the round in which clients `answered` sent these messages; None where they are too few.

        Then server and clients stay, and only the round is over. Who was asked has paid for it.
        """
        clock, times, late = fed.experiment.clock, self.times, self.late
        there = members = self._members(fed)
        if clock and times and clock.late == "carried":
            now, late = in_time(times, late, states, messages, answered)
            there, states, messages = now.ids, now.states, Messages(now.rows)
            answered = there[there < fed.computing]
        elif times:
            there = times.on_time
        server, seen = attempt(fed, self.server, messages, answered, there, self.round)
        kept = self.states.after(answered, states) if seen else self.states
        asked, heard, bits = self.asked(fed), self.heard.copy(), self.bits
        if len(asked):
            told = mean_bits(fed, self.told(fed), self.heard[asked])
            bits = (bits[0] + fed.uplink_bits(self.round), bits[1] + told)
        if seen:
            heard[asked if clock and clock.late == "carried" else answered] = self.round
        ledger, seconds = self.ledger and self.ledger.charge(members), times.ends if times else 0.0
        done, member = self.round + 1, self.member
        coming = RoundTimes.of(fed, done, seconds, late)
        return Standing(
            done, server, kept, ledger, late, self.written, seconds, coming, heard, bits, member
        ), seen

    @property
    def torn(self) -> bool:
        """Whether it is within a step, and so no checkpoint: never, a step gives another one."""
        return False

    def whole(self) -> AbstractContextManager[list[bool]]:
        """A step and its line of the record; an interrupt leaves what was before."""
        return nullcontext([])

    def at_line(self, written: int) -> Standing:
        """The same with so many bytes of metrics."""
        return replace(self, written=written)

    def traffic(self, fed: Federation) -> dict[str, float]:
        """Bits that a client has sent and was told."""
        return {"uplink_bits": self.bits[0], "downlink_bits": self.bits[1]}

    def x(self, fed: Federation) -> Tensor:
        """The model (d,) to evaluate; among peers that of node 0, which is honest."""
        return self.server.x[0] if fed.experiment.method.peer else self.server.x

    def promised(self, fed: Federation, stopped: bool) -> Ledger | None:
        """The ledger of what is promised: where the run chose its end by what it saw, that of all its rounds.

        Until a round that is fixed beforehand an epsilon holds; until one that is chosen by what came out, that of the
        longest run holds, of which the shorter one is a part.
        """
        ledger, timed = self.ledger, fed.experiment.clock is not None  # then fewer than a cohort may pay
        for round in range(self.round, fed.experiment.rounds if stopped else 0):
            if ledger and (timed or ledger.affords(fed.cohort(round))):
                ledger = ledger.charge(fed.cohort(round))
        return ledger

    def notes(self, fed: Federation, stopped: Sequence[str] = ()) -> list[str]:
        """What a report says: of privacy, the statement first, then warnings; who stopped it; what pilots chose."""
        return [*self._noted(fed, stopped), *self._chosen(fed)]

    def _noted(self, fed: Federation, stopped: Sequence[str]) -> list[str]:
        ended = [self._ended(fed, stopped)] if stopped else []
        ledger = self.promised(fed, bool(stopped))
        if ledger is None or self.ledger is None:
            return noted(fed, None, ended)
        limit = ledger.privacy.stop_at_epsilon
        early = f"stopped after round {self.round}: one more would exceed stop_at_epsilon = {limit}"
        if not stopped and self.round < fed.experiment.rounds and not ledger.affords(self._members(fed)):
            ended = [early]
        return noted(fed, ledger, ended)

    def _chosen(self, fed: Federation) -> list[str]:
        """Which attack pilot runs have chosen."""
        attack = fed.experiment.attack
        if attack is None or self.member is None:
            return []
        aside = "" if self.ledger is None else ", outside of the guarantee"
        return [
            f"attack: the adversary's pilot runs on a copy of all clients' data{aside} chose "
            f"{attack.member(self.member)!r}"
        ]

    def _ended(self, fed: Federation, stopped: Sequence[str]) -> str:
        """Who stopped the run, on what, and what that means for the guarantee."""
        said = f"stopped after round {self.round} by {', '.join(stopped)}"
        if not fed.experiment.task.data.held_out:
            said += "; the test examples themselves told when, Holdout(data) puts others in their place"
        if self.ledger is None:
            return said
        return (
            f"{said}; epsilon is that of all {fed.experiment.rounds} rounds ({self.ledger.epsilon:.4g} was spent), "
            "since what came out chose the last one; the examples that were looked at are outside of the guarantee"
        )

    def dump(self) -> dict[str, Any]:
        """The checkpoint, without the clients' states."""
        now = self.server
        server = {
            "state": now.state,
            "previous": now.previous,
            "memory": now.memory,
            "recall": now.recall,
            "sent": now.sent,
        }
        ledger = self.ledger.dump() if self.ledger else {}
        timed = {"simulated_seconds": self.seconds, "late": self.late.dump()}
        told = {"heard": torch.from_numpy(self.heard), "bits": list(self.bits), "member": self.member}
        return {
            "round": self.round,
            "server": server,
            "metrics_bytes": self.written,
            **timed,
            **told,
            **ledger,
        }


def noted(fed: Federation, ledger: Ledger | None, ended: list[str]) -> list[str]:
    """What is said of a run that ended so: what it promises first, then warnings."""
    if ledger is None:
        return ended if fed.accounted else [UNACCOUNTED, *ended]
    read = f"outside of the guarantee, read off all rows of the data: {', '.join(fed.reveals)}"
    return [ledger.statement(), *ended, *ledger.warnings(), *([read] if fed.reveals else []), OUTSIDE]


def to_device(fed: Federation, value: Any) -> Any:
    """What a checkpoint holds, on the federation's device."""
    if isinstance(value, dict):
        return {name: to_device(fed, item) for name, item in value.items()}
    if isinstance(value, list):
        return [to_device(fed, item) for item in value]
    return value.to(fed.device) if isinstance(value, Tensor) else value


def opened(fed: Federation) -> Ledger | None:
    """The ledger before the first round; None where there is nothing to account, or nothing that would hold."""
    return fed.ledger if fed.accounted else None
