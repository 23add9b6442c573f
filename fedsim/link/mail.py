"""Questions to devices and what became of them. Neither gRPC nor Flower: only who waits for what, and until when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from fedsim.link.frame import Limits

DELIVERIES = 3  # times that a question is sent, to a device that loses its connection while it has it


@dataclass
class Question:
    """A message to a device. `seal` makes its frame anew each time it is sent, so that none waits as bytes.

    `about` is for the asker alone, who gets it back with the outcome.
    """

    id: str
    node: int
    until: float  # by time.monotonic(), as no clock that is set right moves it: nobody waits for an answer any longer
    seal: Callable[[], list[bytes | memoryview]]
    about: Any = None
    deliveries: int = 0


@dataclass(frozen=True)
class Failure:
    """Why there is no answer. `away`: the device was not there; otherwise it did something wrong."""

    reason: str
    away: bool = False


Outcome = bytearray | Failure


class Mail:
    """The questions that wait, by node, and the outcomes that nobody has fetched. Any thread may call anything.

    grace   seconds that a device may be away before the questions to it fail
    limits  of an answer
    wake    called with a node when a question to it has come
    """

    def __init__(self, grace: float, limits: Limits, wake: Callable[[int], None]) -> None:
        self.limits, self._grace, self._wake = limits, grace, wake
        self._changed = threading.Condition()  # guards all that follows
        self._asked: dict[int, dict[str, Question]] = {}
        self._came: dict[str, tuple[Question, Outcome]] = {}
        self._there: set[int] = set()
        self._away: dict[int, float] = {}  # since when, by time.monotonic()

    def ask(self, question: Question, known: bool) -> None:
        """Have a question sent as soon as its device is there; one to nobody `known` fails at once."""
        with self._changed:
            if known:
                self._asked.setdefault(question.node, {})[question.id] = question
                if question.node not in self._there:
                    self._away.setdefault(question.node, time.monotonic())
            else:
                self._came[question.id] = question, Failure("no such device", away=True)
        self._wake(question.node)

    def next(self, node: int) -> Question | None:
        """The oldest question that a device has not answered; one that was sent often enough fails instead."""
        with self._changed:
            self._expire()
            for question in list(self._asked.get(node, {}).values()):
                if question.deliveries < DELIVERIES:
                    question.deliveries += 1
                    return question
                self._settle(
                    question, Failure(f"sent {DELIVERIES} times, and the connection ended each time")
                )
        return None

    def settle(self, question: Question, outcome: Outcome) -> None:
        """What became of a question; of no consequence where nobody waits for it any more."""
        with self._changed:
            self._settle(question, outcome)

    def came(self, node: int) -> None:
        """A device is there."""
        with self._changed:
            self._there.add(node)
            self._away.pop(node, None)
            self._changed.notify_all()

    def left(self, node: int) -> None:
        """A device is away from now on."""
        with self._changed:
            self._there.discard(node)
            self._away[node] = time.monotonic()

    def fetch(self, ids: Iterable[str]) -> list[tuple[Question, Outcome]]:
        """The outcomes that are there."""
        with self._changed:
            self._expire()
            return [self._came.pop(each) for each in list(ids) if each in self._came]

    def wait(self, ids: Collection[str], seconds: float) -> None:
        """Return once one of them has an outcome, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._came.keys().isdisjoint(ids), max(seconds, 0.0))

    def forget(self, ids: Iterable[str]) -> None:
        """Nobody waits for these any more: a device that comes back later is not asked them."""
        with self._changed:
            for each in list(ids):
                self._came.pop(each, None)
                for queue in self._asked.values():
                    queue.pop(each, None)

    def _settle(self, question: Question, outcome: Outcome) -> None:
        if self._asked.get(question.node, {}).pop(question.id, None) is not None:
            self._came[question.id] = question, outcome
            self._changed.notify_all()

    def _expire(self) -> None:
        """Failures for questions whose time is over, or whose device is away for too long; old outcomes go."""
        now = time.monotonic()
        for node, queue in self._asked.items():
            gone = now - self._away.get(node, now)
            for question in list(queue.values()):
                if gone > self._grace:
                    self._settle(question, Failure(f"away for {gone:.0f} s", away=True))
                elif now > question.until:
                    self._settle(question, Failure("no answer in time"))
        for each in [
            each for each, (question, _) in self._came.items() if now > question.until + self._grace
        ]:
            del self._came[each]
