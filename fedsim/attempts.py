"""What the clients of an asynchronous run are at work on, when it will be in, and what they have paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from heapq import heappop, heappush
from math import inf
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.check import Invalid
from fedsim.clock import Load, Timing
from fedsim.federation import Federation
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import histories
from fedsim.types import State

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
WAITS, WORKS, LOST = (
    0,
    1,
    2,
)  # for its return; until its message is in; until it leaves, and then for its return


@dataclass
class Attempts:
    """Of each of n clients: its attempt, and the update of the model that it is at; it changes in place.

    Here on a clock; on devices see `fedsim.flower.calls`.
    time     when the next thing comes of it: its message, or its return; inf: nothing any more
    kind     which of these
    sent     when its message leaves, and so is paid for
    left     when it goes away; inf where it does not
    spent    who stopped at its privacy budget
    paid     the attempts that each paid for
    """

    fed: Federation
    clock: Timing | None
    load: Load
    attempt: Ints
    version: Ints
    time: Floats
    kind: Ints
    sent: Floats
    left: Floats
    spent: Bools
    paid: list[list[int]] = field(default_factory=list)
    arrivals: int = 0
    told: int = 0
    dropped: int = 0
    heap: list[tuple[float, int]] = field(default_factory=list)
    over: bool = False  # the last update is made: devices are asked nothing any more

    @classmethod
    def none(cls, fed: Federation) -> Self:
        n, clock = fed.experiment.clients, fed.experiment.clock
        whole, real = np.zeros(n, np.int64), np.full(n, inf)
        return cls(
            fed,
            clock,
            fed.load(0),
            attempt=whole - 1,
            version=whole.copy(),
            time=real,
            kind=whole.copy(),
            sent=real.copy(),
            left=real.copy(),
            spent=whole > 0,
            paid=[[] for _ in range(n)],
        )

    @cached_property
    def short(self) -> Load:
        """That of a client that has the model already."""
        return replace(self.load, down=None)

    @property
    def timing(self) -> Timing:
        """The experiment's clock; engines have checked that it has one."""
        assert self.clock is not None
        return self.clock

    # ------------------------------------------------------------ events
    @property
    def goes_on(self) -> bool:
        """Whether there is another event, before the clock's end."""
        return self.next < inf and self.next <= self.timing.end

    @property
    def next(self) -> float:
        """When the next event is; inf where there is none any more."""
        while self.heap and self.heap[0][0] != self.time[self.heap[0][1]]:
            heappop(self.heap)  # of work that was dropped
        return self.heap[0][0] if self.heap else inf

    def pop(self, stop: Sequence[bool] = ()) -> tuple[float, int, bool] | None:
        """The next event, of equal ones that of the lowest client: when, whose, and whether it is a message.

        None where it is still to come, and the run is to `stop`.
        """
        assert self.next < inf
        when, client = heappop(self.heap)
        return self._happened(when, client)

    def _happened(self, when: float, client: int) -> tuple[float, int, bool]:
        arrives = bool(self.kind[client] == WORKS)
        if arrives:
            self.arrivals += 1
        elif self.kind[client] == LOST and self.sent[client] <= self.left[client]:
            self.pay(client)
        return when, client, arrives

    def brought(self, client: int) -> tuple[State, Tensor] | None:
        """What has come of the client, where it was worked out elsewhere: the state after it and the message (d,)."""
        return None

    def begin(self, client: int, now: float, version: int, model: Tensor, *, told: bool) -> None:
        """The client's next attempt, at this version of the model (d,); `told`: that has to travel to it.

        One that is away waits for its return, one that has spent its budget for nothing.
        """
        self.version[client] = version
        if self._is_away(client, now):
            return
        if not self._affords(client):
            self.spent[client] = True
            self.time[client] = inf
            return
        self.attempt[client] += 1
        self.told += int(told)
        self._require_address(client)
        self._set_off(client, now, model, told)

    def _is_away(self, client: int, now: float) -> bool:
        left, back = self.timing.absence(self.fed.keys, client, now, now)
        if left <= now:
            self._due(client, back, WAITS)
        return left <= now

    def _set_off(self, client: int, now: float, model: Tensor, told: bool) -> None:
        fed, load = self.fed, self.load if told else self.short
        hostile, attempt = client >= fed.experiment.honest, int(self.attempt[client])
        spell = self.timing.spell(fed.keys, client, attempt, now, load, hostile=hostile)
        self.sent[client], self.left[client] = spell.sent, spell.left
        self._due(client, min(spell.arrived, spell.back), WORKS if spell.arrived < inf else LOST)

    def interrupt(self, client: int, now: float) -> bool:
        """Have a client drop what it is at work on; whether it is there to be handed something else.

        A message that has left already is paid for.
        """
        if self.kind[client] == WAITS or self.left[client] <= now or self.spent[client]:
            return False
        self.dropped += 1
        if self.sent[client] <= now:
            self.pay(client)
        return True

    def at_work(self, computing: int) -> Ints:
        """Who of the first `computing` clients is at an attempt whose message will be in."""
        works = (self.kind == WORKS) & (self.time < inf)
        return np.flatnonzero(works[:computing])

    def _due(self, client: int, when: float, kind: int) -> None:
        self.time[client], self.kind[client] = when, kind
        heappush(self.heap, (when, client))

    def _require_address(self, client: int) -> None:
        """Raise `Invalid` where noise would repeat: see `Federation`."""
        method, n = self.fed.experiment.method, self.fed.experiment.clients
        draws = (int(self.attempt[client]) + 1) * method.steps * method.gradients * n
        if self.fed.experiment.privacy is not None and draws > 2**32:
            raise Invalid(
                f"client {client} begins attempt {self.attempt[client]}: two draws of noise would be the same; allowed "
                f"are {2**32:.3g} of all clients together"
            )

    # ------------------------------------------------------------ privacy
    def pay(self, client: int) -> None:
        """A message of the client's has left."""
        self.paid[client].append(int(self.attempt[client]))

    @property
    def ledger(self) -> Ledger | None:
        """What was paid until now: rounds are attempts."""
        empty = self.fed.ledger if self.fed.accounted else None
        if empty is None:
            return None
        who: list[list[int]] = [
            [] for _ in range(1 + max((mine[-1] for mine in self.paid if mine), default=-1))
        ]
        for client, mine in enumerate(self.paid):
            for attempt in mine:
                who[attempt].append(client)
        privacy, plan = empty.privacy, empty.plan
        paid = tuple(privacy.payers(np.array(ids, np.int64), plan.clients, plan.secret) for ids in who)
        counted = empty.privacy.counts_rounds(empty.plan.batches)
        rounds = histories(paid, empty.plan.clients, counted)
        return replace(empty, plan=replace(empty.plan, rounds=rounds), paid=paid)

    def _affords(self, client: int) -> bool:
        """Whether the client's budget affords the next attempt's message."""
        privacy, ledger = self.fed.experiment.privacy, self.fed.ledger
        if privacy is None or ledger is None or privacy.stop_at_epsilon is None:
            return True
        if client >= self.fed.experiment.honest:
            return True
        after = (*self.paid[client], int(self.attempt[client]) + 1)
        rounds = tuple(range(len(after))) if privacy.counts_rounds(ledger.plan.batches) else after
        return privacy.spent(ledger.plan, frozenset({rounds})) <= privacy.stop_at_epsilon * (1 + 1e-9)

    # ------------------------------------------------------------ checkpoints
    def dump(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in ARRAYS}
        counts = {name: getattr(self, name) for name in ("arrivals", "told", "dropped")}
        return {**arrays, **counts, "paid": self.paid}

    def restore(self, saved: dict[str, Any], models: Sequence[Tensor] | Tensor) -> None:
        """Stand where `dump` was called; `models` are those that the clients have."""
        for name, value in saved.items():
            setattr(self, name, value.numpy() if isinstance(value, Tensor) else value)
        self.heap = sorted((when, client) for client, when in enumerate(self.time.tolist()) if when < inf)


ARRAYS = [each.name for each in fields(Attempts) if each.type in ("Ints", "Floats", "Bools")]
