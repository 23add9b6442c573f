"""Seconds per round of the engines and of peers, beside the floor: one plain pass over all clients' batches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from math import inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsim import __version__, engines
from fedsim.attacks import IPM
from fedsim.batches import Fixed
from fedsim.check import Invalid, nearest
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import IID
from fedsim.experiments.bench.against import Process, hand_over, python, start
from fedsim.experiments.recipes.baselines import pfl_cifar10
from fedsim.federation import Federation
from fedsim.machine import malloc as heap
from fedsim.models import CNN, MLP
from fedsim.privacy import ExampleDP, MessageDP
from fedsim.round import Server, finish
from fedsim.runner import choose
from fedsim.spec import Experiment
from fedsim.states import States
from fedsim.strategies import (
    NNM,
    ByzClip21SGD2M,
    ByzClipSGD,
    Chain,
    Clip21SGD2M,
    FedAvg,
    FedSGD,
    Mean,
    Median,
)
from fedsim.task import Task, evaluate
from fedsim.types import single

W1 = Experiment(
    task=Task(data=MNIST(scaling="standard"), model=MLP(hidden=100, activation="relu")),
    split=IID(),
    clients=100,
    rule=Mean(),
    method=FedSGD(lr=0.1),
    batches=Fixed(32),
)
WORKLOADS = {
    "W1": W1,
    "W2": replace(W1, clients=20, task=Task(data=W1.task.data, model=CNN())),
    "W3": replace(W1, method=ByzClipSGD(lr=0.1, tau=1.0), privacy=MessageDP(noise=0.05)),
    "W4": replace(
        W1,
        clients=25,
        byzantine=5,
        dealt="honest",
        attack=IPM(10.0),
        rule=Chain(NNM(), Median()),
        method=ByzClip21SGD2M(lr=1.0, tau=1.0),
        privacy=MessageDP(noise=0.05),
    ),
    "W5": replace(W1, method=FedAvg(lr=0.1, local_steps=10)),
    "W6": replace(W1, clients=20, privacy=ExampleDP(clip=1.0, noise=1.0)),
    "W7": replace(
        W1, clients=10_000, cohort=100, method=Clip21SGD2M(lr=10.0, tau=1.0, beta=0.5, beta_hat=0.5)
    ),
    "W8": pfl_cifar10(),
}
WARM, TURN = 3, 5  # rounds before the first that counts, and in a turn


def bench_rounds(
    workloads: Sequence[str] = tuple(WORKLOADS),
    *,
    rounds: int = 20,
    threads: int | None = None,
    device: str = "auto",
    against: Sequence[str] = (),
    peers: Path = Path("peers"),
    limit: float = inf,
) -> Iterator[dict[str, Any]]:
    """A line for each workload and system: median seconds per round, how many floors that is, and the accuracy.

    Systems are the peers in `against`, whose environments are in the folder `peers`, and the engines of fedsim. They
    take turns of a few rounds, so that load on the machine falls on all alike. After every round its process measures
    the floor, which is not part of the round; `ratios` are round by round. Three rounds come before. A round is the
    clients' step and the server's, with the batch's fetch; nothing is evaluated in it. A peer that takes more than
    `limit` seconds for a workload is asked for no more: its line has the rounds until then, and no accuracy.
    """
    for name in workloads:
        if name not in WORKLOADS:
            raise Invalid(f"workload = {name!r}: unknown; {nearest(name, WORKLOADS)}")
    for name in against:
        python(name, peers)
    torch.set_num_threads(threads or torch.get_num_threads())
    for name in workloads:
        fed = Federation(WORKLOADS[name], choose(device))
        with TemporaryDirectory(prefix="fedsim-bench-") as place, ExitStack() as stack:
            stack.enter_context(heap.kept())  # as in a run
            if against:
                hand_over(fed, rounds + WARM, Path(place))
            others = start(against, peers, Path(place), limit)
            for process in others:
                stack.callback(process.close)
            runs: list[Run | Process] = [*others, Run(fed, "loop"), Run(fed, "vector")]
            times: dict[str, list[tuple[float, float]]] = {run.system: [] for run in runs}
            for count in (WARM, *_turns(rounds)):
                for run in runs:
                    times[run.system] += run.turn(count)
            for run in runs:
                yield {"workload": name, "system": run.system} | _line(fed, run, times[run.system][WARM:])


def _turns(rounds: int) -> list[int]:
    """The lengths of turns that make so many rounds."""
    return [min(TURN, rounds - done) for done in range(0, rounds, TURN)]


def _line(fed: Federation, run: Run | Process, times: list[tuple[float, float]]) -> dict[str, Any]:
    facts, x = run.finish()
    if "left_out" in facts:
        return facts
    if not times:
        return {"left_out": f"{facts['cut']} for {WARM} rounds that do not count and one that does"}
    ratios = [seconds / floor for seconds, floor in times]
    accuracy = {}
    if x is not None:
        accuracy["accuracy"] = evaluate(fed.model, fed.loss, x.to(fed.device), fed.test)["accuracy"]
    return {
        "seconds_per_round": median(seconds for seconds, _ in times),
        "over_floor": median(ratios),
        "floor_seconds": median(floor for _, floor in times),
        **accuracy,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "device": fed.device,
        "ratios": [round(ratio, 4) for ratio in ratios],
        **facts,
    }


class Run:
    """A run of one engine, in turns as a peer's."""

    def __init__(self, fed: Federation, engine: str) -> None:
        self.fed, self.system, self.step = fed, f"fedsim {engine}", engines.get(engine)
        self.server = Server.start(fed)
        self.states = States.start(fed.client_state(), fed.computing, space=fed.space)
        self.round, self.floor = 0, _floor(fed)

    def turn(self, rounds: int) -> list[tuple[float, float]]:
        return [(self.seconds(), self._timed(self.floor)) for _ in range(rounds)]

    def seconds(self) -> float:
        """Of one round, without the floor."""
        return self._timed(self._round)

    def finish(self) -> tuple[dict[str, Any], Tensor]:
        return {"versions": {"fedsim": __version__, "torch": version("torch")}}, self.server.x

    def _round(self) -> None:
        ids = self.fed.cohort(self.round)
        working = ids[ids < self.fed.computing]
        told = self.server.told(self.fed.experiment.method)
        mine, messages = self.step(self.fed, self.states.of(working), told, self.round, working)
        self.states = self.states.after(working, mine)
        self.server, _ = finish(self.fed, self.server, messages, ids, self.round)
        self.round += 1

    def _timed(self, call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        if self.fed.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def _floor(fed: Federation) -> Callable[[], object]:
    """One plain forward and backward pass over the batches of all clients of a round, put together."""
    ids = fed.cohort(0)
    batch = fed.batch(0, ids[ids < fed.experiment.honest])
    inputs, labels = single(batch.x, "fedsim bench").flatten(0, batch.y.dim() - 1), batch.y.flatten()
    parameters = list(fed.model.parameters())
    return lambda: torch.autograd.grad(cross_entropy(fed.model(inputs), labels), parameters)
