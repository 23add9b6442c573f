"""How many messages of an asynchronous run are worked through in a second, lazily, and one by one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fedsim.asynchronous import Asynchronous
from fedsim.batches import Fixed
from fedsim.clock import Clock, Ladder
from fedsim.course import Course
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.engines import Everyone, vector
from fedsim.federation import Federation
from fedsim.machine import malloc as heap
from fedsim.machine.threads import one_thread
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import IA2SGD, AsyncSGD, Malenia, Mean, Ringleader
from fedsim.task import Task

METHODS: dict[str, Asynchronous] = {
    "Ringleader": Ringleader(lr=0.05),
    "Malenia": Malenia(lr=0.7),
    "IA2SGD": IA2SGD(lr=0.01),
    "AsyncSGD": AsyncSGD(lr=0.01),
}
TABLES = 1000  # clients: so many at the most of a method that keeps a row of each


def bench_events(clients: Sequence[int], events: int = 300, turns: int = 5) -> Iterator[dict[str, Any]]:
    """A line for each number of clients and method: messages a second, on one thread, CPU time.

    An MLP of 128 hidden units on synthetic data of MNIST's shape, batches of 4, clients of the speeds of Ringleader's
    released code. The lazy and the eager run take turns in one process, over the same `events` messages each time, as
    they are equal to the bit; the first turn warms up. Eager is one gradient at a time, when its message is due, in the
    same engine. Methods with a row of each client are left out for more than 1,000 clients.
    """
    for n in clients:
        for name, method in METHODS.items():
            if n <= TABLES or name == "AsyncSGD":
                yield _line(n, name, _experiment(n, method), events, turns)


@one_thread()
@heap.kept()
def _line(n: int, name: str, e: Experiment, events: int, turns: int) -> dict[str, Any]:
    fed = Federation(e)
    lazy, eager = (Course.start(fed, fed.client_state()) for _ in range(2))
    eager.lazy = False
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns + 1):
        for course in (lazy, eager):
            seconds = _through(course, fed, (turn + 1) * events)
            if turn:
                spent[course.lazy].append(seconds)
            else:
                course.calls = 0
    assert torch.equal(lazy.server.x, eager.server.x)
    rates = {word: turns * events / sum(spent[key]) for word, key in (("lazy", True), ("eager", False))}
    return {
        "clients": n,
        "method": name,
        "events_per_second": rates["lazy"],
        "eager_per_second": rates["eager"],
        "over_eager": rates["lazy"] / rates["eager"],
        "gradients_per_call": eager.calls / max(1, lazy.calls),
        "events": turns * events,
        "threads": 1,
        "cores": os.cpu_count(),
    }


def _through(course: Course, fed: Federation, arrivals: int) -> float:
    """CPU seconds until so many messages are in."""
    ask, begun = Everyone(vector.rows), time.process_time()
    while course.clients.arrivals < arrivals:
        course._event(fed, ask)
    return time.process_time() - begun


def _experiment(n: int, method: Asynchronous) -> Experiment:
    return Experiment(
        task=Task(data=Blobs(train=10 * n, test=100, features=784), model=MLP(128, "relu")),
        split=IID(),
        clients=n,
        rule=Mean(),
        method=method,
        batches=Fixed(4),
        clock=Clock(Ladder()),
        rounds=10**6,
        evaluate_every=10**6,
    )
