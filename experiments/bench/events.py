"""How many messages of an asynchronous run are worked through in a second, lazily, and one by one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from fedsim.asynchronous import Asynchronous
from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.clock import Clock, Ladder
from fedsim.course import Course
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.engines import Everyone, vector
from fedsim.experiments.bench.against import CLOCKS, SCRIPTS, Process, python
from fedsim.federation import Federation
from fedsim.machine import malloc as heap
from fedsim.machine.threads import one_thread
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import IA2SGD, AsyncSGD, FedAsync, Malenia, Mean, Ringleader
from fedsim.task import Task

METHODS: dict[str, Asynchronous] = {
    "Ringleader": Ringleader(lr=0.05),
    "Malenia": Malenia(lr=0.7),
    "IA2SGD": IA2SGD(lr=0.01),
    "AsyncSGD": AsyncSGD(lr=0.01),
}
TABLES = 1000  # clients: so many at the most of a method that keeps a row of each


def bench_events(
    clients: Sequence[int],
    events: int = 1000,
    turns: int = 5,
    against: Sequence[str] = (),
    peers: Path = Path("peers"),
) -> Iterator[dict[str, Any]]:
    """A line for each number of clients and method: messages a second, on one thread, the best of `turns`.

    An MLP of 128 hidden units on synthetic data of MNIST's shape, batches of 4, clients of the speeds of Ringleader's
    released code. Each turn is the same `events` messages after as many that warm up, lazily and one gradient at a time
    when its message is due, in the same engine; the two take turns in one process, and are equal to the bit.
    gradients_over_eager  the same ratio of the time in the engine alone: what server, clock and Python leave of it
    Methods with a row of each client are left out for more than 1,000 clients. Peers in `against`, of whom there is
    FLGo, run FedAsync turn by turn with fedsim's, in the environment that `fedsim bench peers` made in `peers`.
    """
    others = {name: python(name, peers, CLOCKS) for name in against}
    for n in clients:
        for name, method in METHODS.items():
            if n <= TABLES or name == "AsyncSGD":
                yield _line(n, name, _experiment(n, method), events, turns)
        for name, interpreter in others.items():
            yield _beside(n, name, interpreter, events, turns)


class Timed(Everyone):
    """An engine asked, and the seconds that it took."""

    seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        begun = time.perf_counter()
        answered = super().__call__(*args)
        self.seconds += time.perf_counter() - begun
        return answered


@one_thread()
@heap.kept()
def _line(n: int, name: str, e: Experiment, events: int, turns: int) -> dict[str, Any]:
    fed = Federation(e)
    whole: dict[bool, list[float]] = {True: [], False: []}
    inside: dict[bool, list[float]] = {True: [], False: []}
    calls, models = dict[bool, int](), dict[bool, Tensor]()
    for _ in range(turns):
        for lazy in (True, False):
            course, ask = Course.start(fed, fed.client_state()), Timed(vector.rows)
            course.lazy = lazy
            _through(course, fed, ask, events)
            before, ask.seconds = course.calls, 0.0
            begun = time.perf_counter()
            _through(course, fed, ask, 2 * events)
            whole[lazy].append(time.perf_counter() - begun)
            inside[lazy].append(ask.seconds)
            calls[lazy], models[lazy] = course.calls - before, course.server.x
    assert torch.equal(models[True], models[False])
    rates = {lazy: events / min(seconds) for lazy, seconds in whole.items()}
    return {
        "clients": n,
        "method": name,
        "events_per_second": rates[True],
        "eager_per_second": rates[False],
        "over_eager": rates[True] / rates[False],
        "gradients_over_eager": min(inside[False]) / min(inside[True]),
        "gradients_per_call": calls[False] / max(1, calls[True]),
        "events": events,
        "turns": turns,
        "threads": 1,
        "cores": os.cpu_count(),
    }


@one_thread()
@heap.kept()
def _beside(n: int, name: str, interpreter: Path, events: int, turns: int) -> dict[str, Any]:
    """FedAsync here and there, after a turn that warms up."""
    fed = Federation(_experiment(n, FedAsync(lr=0.01)))
    course, ask = Course.start(fed, fed.client_state()), Everyone(vector.rows)
    spent: dict[str, list[float]] = {"fedsim": [], name: []}
    with TemporaryDirectory(prefix="fedsim-bench-") as place, ExitStack() as stack:
        words = (str(n), str(events))
        peer = Process(SCRIPTS / f"{name}_peer.py", interpreter, Path(place), name, words=words)
        stack.callback(peer.close)
        for turn in range(turns + 1):
            begun = time.perf_counter()
            _through(course, fed, ask, (turn + 1) * events)
            seconds = time.perf_counter() - begun
            told = peer.turn(1)
            if not told:
                raise Invalid(f"against = {name!r}: it failed with {n} clients ({peer.left_out})")
            if turn:
                spent["fedsim"].append(seconds)
                spent[name].append(told[0][0])
    rates = {system: events / min(seconds) for system, seconds in spent.items()}
    return {
        "clients": n,
        "method": "FedAsync",
        "against": name,
        "events_per_second": rates["fedsim"],
        "peer_per_second": rates[name],
        "over_peer": rates["fedsim"] / rates[name],
        "events": events,
        "turns": turns,
        "threads": 1,
        "cores": os.cpu_count(),
    }


def _through(course: Course, fed: Federation, ask: Everyone, arrivals: int) -> None:
    """Until so many messages are in."""
    while course.clients.arrivals < arrivals:
        course._event(fed, ask)


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
