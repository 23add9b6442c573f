"""When a round of a synchronous method ends on an experiment's clock: who is asked, and whose message is in then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.federation import Federation, Ids
from fedsim.round import Messages
from fedsim.types import State


@dataclass(frozen=True)
class RoundTimes:
    """A round that begins at `begun` seconds.

    asked    those of its cohort who are there and not still at work on a round before, in order
    arrived  (k,), when the message of each is in; inf where it goes away before
    ends     when the round is over
    """

    begun: float
    asked: Ids
    arrived: NDArray[np.float64]
    ends: float

    @property
    def on_time(self) -> Ids:
        """Whose message is in when the round ends."""
        return self.asked[self.arrived <= self.ends]

    @property
    def answer(self) -> Ids:
        """Who sends a message at all."""
        return self.asked[self.arrived < np.inf]

    @classmethod
    def of(cls, fed: Federation, round: int, begun: float, late: Late) -> RoundTimes | None:
        """It lasts until the server knows what came of all who were asked, or to the deadline; None without a clock.

        Where nobody is there to be asked, until somebody is back or a message that is late comes.
        """
        keys, clock, busy = fed.keys, fed.experiment.clock, set(late.ids.tolist())
        if clock is None:
            return None
        load = fed.load(round)
        free = [client for client in fed.cohort(round).tolist() if client not in busy]
        away = {client: clock.absence(keys, client, begun, begun)[1] for client in free}
        asked = [client for client in free if not begun < away[client] < np.inf]
        spells = [
            clock.spell(keys, client, round, begun, load, hostile=client >= fed.experiment.honest)
            for client in asked
        ]
        last = max((spell.known for spell in spells), default=None)
        if last is None:
            last = min([*late.arrived.tolist(), *away.values()])
        elif clock.deadline is not None:
            last = min(last, begun + clock.deadline)
        arrived = np.array([spell.arrived for spell in spells], np.float64)
        return cls(begun, np.array(asked, np.int64), arrived, last)


@dataclass(frozen=True)
class Late:
    """Messages that are still under way when a round ends.

    ids      their clients (p,), in order
    arrived  (p,), when they will be in
    rows     (c, d), what those of the clients that compute have sent, the first c of them
    states   (c, ...), their states after it
    """

    ids: Ids
    arrived: NDArray[np.float64]
    rows: Tensor
    states: State

    @classmethod
    def none(cls, fed: Federation, first: State) -> Late:
        """None yet; `first` is a client's state before its first round."""
        nothing = {name: value.new_empty(0, *value.shape) for name, value in first.items()}
        return cls(np.zeros(0, np.int64), np.zeros(0), fed.x0.new_empty(0, fed.width), nothing)

    def part(self, which: NDArray[np.bool_]) -> Late:
        """Some of them."""
        some = torch.from_numpy(np.flatnonzero(which[: len(self.rows)])).to(self.rows.device)
        states = {name: value[some] for name, value in self.states.items()}
        return Late(self.ids[which], self.arrived[which], self.rows[some], states)

    def joined(self, others: Late) -> Late:
        """These and others, in order of ids."""
        ids = np.concatenate([self.ids, others.ids])
        order = np.argsort(ids)
        computed = np.concatenate([self.ids[: len(self.rows)], others.ids[: len(others.rows)]])
        place = torch.from_numpy(np.argsort(computed)).to(self.rows.device)
        states = {name: torch.cat([value, others.states[name]])[place] for name, value in self.states.items()}
        arrived = np.concatenate([self.arrived, others.arrived])[order]
        return Late(ids[order], arrived, torch.cat([self.rows, others.rows])[place], states)

    def dump(self) -> dict[str, Any]:
        ids, arrived = torch.from_numpy(self.ids), torch.from_numpy(self.arrived)
        return {"ids": ids, "arrived": arrived, "rows": self.rows, "states": self.states}

    @classmethod
    def load(cls, saved: dict[str, Any], device: str) -> Late:
        """From a checkpoint, which is read on the host; rows and states go to the device."""
        states = {name: value.to(device) for name, value in saved["states"].items()}
        return cls(saved["ids"].numpy(), saved["arrived"].numpy(), saved["rows"].to(device), states)


def in_time(
    times: RoundTimes, late: Late, states: State, messages: Messages, answered: Ids
) -> tuple[Late, Late]:
    """Of the messages of a round and those that were late before: what is in when it ends, and what is not."""
    there = np.isin(times.asked, answered) | (times.arrived < np.inf)
    sent = Late(times.asked[there], times.arrived[there], messages.rows, states)
    whole = late.joined(sent)
    arrived = whole.arrived <= times.ends
    return whole.part(arrived), whole.part(~arrived)
