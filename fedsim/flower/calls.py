"""Clients of an asynchronous run that are devices: an attempt begins with an order, and ends when its answer is in."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from functools import partial
from heapq import heappop
from math import inf, nextafter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor

from fedsim.attempts import LOST, WORKS, Attempts, Ints
from fedsim.clock.tape import Line
from fedsim.federation import Federation
from fedsim.flower.arrivals import Arrivals
from fedsim.flower.private import SUPERLINK_NODE_ID
from fedsim.flower.remote import Remote, answer_in, told_record
from fedsim.flower.replies import collect
from fedsim.types import State

LOOK = 0.01  # seconds between two looks for answers
AGAIN, LONGEST = (
    1.0,
    60.0,
)  # seconds until a device is asked again that gave no message, twice as long each time
TIRED = 10  # times in a row that it gave none: then it is left alone until a method hands it another model


@runtime_checkable
class Withdraws(Protocol):
    """A grid on which nobody need be asked what has not been sent yet."""

    def withdraw(self, message_ids: Collection[str]) -> None: ...


class Live(Remote):
    """The devices of an asynchronous run. `arrivals`: what came of them before, where the run is resumed."""

    arrivals: Arrivals

    def attempts(self, fed: Federation) -> Attempts:
        return Calls.of(fed, self)


class Calls(Attempts):
    """Attempts of devices behind a Grid; seconds are the server's, since the start of the run.

    A device that fails is asked again a while later, at the newest model. One that is to drop its work is sent another
    order; its answer to the first counts for nothing, and as paid for.
    accepted  the attempt of each client whose message was taken in last
    line      of the tape, up to which the run has come
    """

    remote: Live
    accepted: Ints
    line: int
    saved: int  # the same when it was dumped last
    orders: dict[str, tuple[Message, int, int]]  # that are out, by id, each with its client and attempt
    came: deque[tuple[int, int, Tensor | None]]  # and what came of them
    failures: Counter[int]  # of clients, in a row
    message: Tensor  # that came last
    zero: float  # when the run began, by time.monotonic()
    bytes: int

    @classmethod
    def of(cls, fed: Federation, remote: Live) -> Calls:
        made = cls.none(fed)
        made.remote, made.accepted, made.line, made.saved = remote, made.attempt.copy(), 0, 0
        made.orders, made.came, made.failures, made.bytes = {}, deque(), Counter(), 0
        remote.metrics = {"asked": 0, "answered": 0, "bytes": 0}
        made.zero = time.monotonic() - (made.tape[-1].seconds if made.tape else 0.0)
        return made

    @property
    def tape(self) -> list[Line]:
        return self.remote.arrivals.lines

    # ------------------------------------------------------------ events
    @property
    def goes_on(self) -> bool:
        """Whether anything is still to come."""
        return bool(self.line < len(self.tape) or self.orders or self.came or self._waiting() < inf)

    def pop(self, stop: Sequence[bool] = ()) -> tuple[float, int, bool] | None:
        """The next line of the tape, once it is there."""
        if self.line == len(self.tape):
            found = self._wait(stop)
            if found is None:
                return None
            self.remote.arrivals.append(*found)
        line = self.tape[self.line]
        if line.left is None:
            self.message, self.accepted[line.client] = self.remote.arrivals.row(self.line), line.attempt
            self.kind[line.client] = WORKS
            self.failures[line.client] = 0
        else:
            self.kind[line.client], self.left[line.client] = LOST, line.left
        self.line += 1
        self.time[line.client] = line.seconds
        event = self._happened(line.seconds, line.client)
        self.remote.metrics = {
            "asked": int(self.attempt.sum()) + len(self.attempt),
            "answered": self.arrivals,
        }
        self.remote.metrics |= {"bytes": self.bytes, **self.remote.own_data_of(self.fed)}
        return event

    def brought(self, client: int) -> tuple[State, Tensor]:
        return {"accepted": torch.tensor(int(self.accepted[client]))}, self.message.to(self.fed.device)

    def _wait(self, stop: Sequence[bool]) -> tuple[Line, Tensor | None] | None:
        """What comes next: a message, or that a device which failed is to be handed the model anew."""
        while self.goes_on and not stop:
            if self.came:
                client, attempt, row = self.came.popleft()
                if attempt != self.attempt[client] or self.kind[client] != WORKS:
                    continue  # of work that was dropped
                if row is not None:
                    return Line(client, attempt, self._now()), row
                self._fail(client)
            elif self._waiting() <= self._now():
                client = heappop(self.heap)[1]
                left = float(self.left[client])
                return Line(client, int(self.attempt[client]), self._now(), left), None
            elif not self._look():
                time.sleep(LOOK)
        return None

    def _now(self) -> float:
        """Later than all that is on the tape."""
        last = self.tape[-1].seconds if self.tape else 0.0
        return max(time.monotonic() - self.zero, nextafter(last, inf))

    def _waiting(self) -> float:
        """When the next device is to be asked again that failed."""
        while self.heap and (
            self.heap[0][0] != self.time[self.heap[0][1]] or self.kind[self.heap[0][1]] != LOST
        ):
            heappop(self.heap)
        return self.heap[0][0] if self.heap else inf

    def _fail(self, client: int) -> None:
        self.failures[client] += 1
        if self.failures[client] >= TIRED:
            return
        now = self._now()
        self.left[client] = now
        self._due(client, now + min(LONGEST, AGAIN * 2 ** (self.failures[client] - 1)), LOST)

    def _look(self) -> bool:
        """Take what has come, whose sender is who was asked."""
        any_ = False
        for reply in list(self.remote.grid.pull_messages(list(self.orders))):
            asked = reply.metadata.reply_to_message_id
            if asked not in self.orders:
                continue
            order, client, attempt = self.orders[asked]
            node, sender = order.metadata.dst_node_id, reply.metadata.src_node_id
            read = partial(answer_in, self.fed, round=attempt)
            answers, aside = collect(int(self.version[client]), [order], [reply], read)
            self.remote.set_aside += aside
            if sender not in (node, SUPERLINK_NODE_ID):
                continue
            del self.orders[asked]
            row, size, own, _ = answers.get(node, (None, 0, False, 0))
            self.bytes += size
            if row is not None:
                self.remote.answered.add(client)
                self.remote.own_data |= {client} if own else set()
            self.came.append((client, attempt, row))
            any_ = True
        return any_

    # ------------------------------------------------------------ orders
    def _is_away(self, client: int, now: float) -> bool:
        return False

    def _set_off(self, client: int, now: float, model: Tensor, told: bool) -> None:
        self.sent[client], self.left[client], self.time[client], self.kind[client] = now, inf, now, WORKS
        self._order(client, model)

    def _order(self, client: int, model: Tensor) -> None:
        """Ask a device, unless the tape has what comes of it."""
        if self.over:
            return
        attempt = int(self.attempt[client])
        for line in self.tape[self.line :]:
            if (line.client, line.attempt) == (client, attempt):
                if line.left is not None:
                    self.kind[client], self.left[client] = LOST, line.left
                return
        grid, fed = self.remote.grid, self.fed
        if isinstance(grid, Withdraws):
            old = [each for each, (_, whose, _) in self.orders.items() if whose == client]
            grid.withdraw(old)
            for each in old:
                del self.orders[each]
        told = told_record({fed.experiment.method.sends: model})
        order = self.remote.order(fed, client, attempt, int(self.accepted[client]), told)
        (name,) = grid.push_messages([order])
        self.orders[name] = order, client, attempt

    # ------------------------------------------------------------ checkpoints
    def dump(self) -> dict[str, Any]:
        self.remote.arrivals.forget(self.saved)  # the checkpoint before this one is whole
        self.saved = self.line
        return super().dump() | {"accepted": torch.from_numpy(self.accepted.copy()), "line": self.line}

    def restore(self, saved: dict[str, Any], models: Sequence[Tensor] | Tensor) -> None:
        super().restore(saved, models)
        self.saved = self.line
        self.heap = sorted((w, c) for c, w in enumerate(self.time.tolist()) if self.kind[c] == LOST)
        for client in np.flatnonzero((self.kind == WORKS) & ~self.spent).tolist():
            self._order(client, models[client])
