"""Asynchronous methods on devices: whatever comes when, the tape makes the same run again, to the bit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch import Tensor

from fedsim import Invalid, run
from fedsim.attacks import ALIE, LabelFlip
from fedsim.batches import Epochs, Fixed
from fedsim.clock import Clock, Constant, Ladder, Tape
from fedsim.course import Course
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.deploy.app import serve
from fedsim.deploy.trial import Trial
from fedsim.federation import Federation
from fedsim.flower import calls
from fedsim.flower.calls import Live
from fedsim.flower.client import Simulated, client_app
from fedsim.flower.grid import FIRST_NODE, InProcessGrid
from fedsim.method import Env
from fedsim.models import MLP
from fedsim.privacy import ExampleDP
from fedsim.result import Result
from fedsim.spec import Experiment
from fedsim.strategies import (
    IA2SGD,
    AsyncSGD,
    FedBuff,
    FedSGD,
    HeavyBall,
    Malenia,
    Mean,
    Median,
    Ringleader,
    Ringmaster,
)
from fedsim.task import Task
from fedsim.types import Batch, State

CLIENTS = 4
NODES = {client: FIRST_NODE + client for client in range(CLIENTS)}
TRIAL = Trial(test_mode=True, red_team=True, timeout=30.0)


@dataclass(frozen=True)
class Momentum(Malenia):
    """Clients with a state, whose work is dropped now and then."""

    momentum: float = 0.8
    client_init = HeavyBall.client_init

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        m = torch.lerp(state["m"], env.first_gradient(), 1 - self.momentum)
        return {"m": m}, m


def experiment(**changes: Any) -> Experiment:
    e = Experiment(
        task=Task(data=Blobs(), model=MLP(hidden=4)),
        split=IID(),
        clients=CLIENTS,
        rule=Mean(),
        method=Ringleader(lr=0.2),
        batches=Fixed(4),
        rounds=12,
        evaluate_every=3,
    )
    return replace(e, **changes)


class Slow(InProcessGrid):
    """Answers that come when they will: each look finds one of those that wait, by chance, or none.

    silent  nodes that never answer; failing: how many of the first orders fail, of each node
    """

    def __init__(self, fed: Federation, seed: int = 0, silent: Iterable[int] = (), failing: int = 0) -> None:
        super().__init__(client_app(Simulated(lambda order: fed)), fed.experiment.clients)
        self.chance, self.silent, self.asked = random.Random(seed), set(silent), list[Message]()
        self.left = dict.fromkeys(self.contexts, failing)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append(message)
            context = self.contexts[node]
            if self.left[node]:
                self.left[node] -= 1
                del self.contexts[node]  # as a node that is not there
            ids += super().push_messages([message])
            self.contexts[node] = context
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in self.asked}
        there = [each for each in message_ids if nodes[each] not in self.silent]
        return super().pull_messages(
            self.chance.sample(there, 1) if there and self.chance.random() < 0.8 else []
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LOOK", 0.0)
    monkeypatch.setattr(calls, "AGAIN", 0.001)


def served(e: Experiment, out: Path, grid: InProcessGrid | None = None, resume: bool = False) -> Result:
    fed = Federation(e)
    return serve(grid or Slow(fed), fed, TRIAL, NODES, out, resume)[0]


def replayed(e: Experiment, out: Path, engine: str = "loop") -> Result:
    return run(replace(e, clock=Tape(str(out / "tape.jsonl"))), engine=engine)


def same(one: Result, other: Result) -> bool:
    return all(torch.equal(one.model[name], other.model[name]) for name in one.model)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "tape.jsonl").read_text().splitlines()]


METHODS: dict[str, Experiment] = {
    "ringleader": experiment(),
    "one missing": experiment(method=Ringleader(lr=0.2, missing=1)),
    "malenia": experiment(method=Momentum(lr=0.2, S=6.0), rounds=6),
    "ringmaster": experiment(method=Ringmaster(lr=0.1, R=2, stops=True), rounds=30),
    "fedbuff": experiment(method=FedBuff(lr=0.1, buffer=3, local_steps=2), rule=Median(), batches=Epochs(3)),
    "private": experiment(
        method=IA2SGD(lr=0.1), privacy=ExampleDP(clip=0.5, noise=1.0, delta=1e-4), rounds=4
    ),
    "poisoned": experiment(method=IA2SGD(lr=0.1), byzantine=1, attack=LabelFlip(), rounds=20),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_loop_replays_the_tape_to_the_bit(name: str, tmp_path: Path) -> None:
    e = METHODS[name]
    live = served(e, tmp_path)
    again = replayed(e, tmp_path)
    assert same(live, again)
    assert live.frame["arrivals"].tolist() == again.frame["arrivals"].tolist()
    assert live.frame["dropped"].tolist() == again.frame["dropped"].tolist()
    seconds = [line["seconds"] for line in lines(tmp_path)]
    assert again.frame["simulated_seconds"].iloc[-1] == seconds[-1]
    assert seconds == sorted(set(seconds))
    assert not list((tmp_path / "arrivals").iterdir())  # what the last checkpoint holds is not kept twice


def test_the_order_of_arrivals_decides(tmp_path: Path) -> None:
    """Two runs that differ in it alone come to different models: the tape says something."""
    e = experiment(method=AsyncSGD(lr=0.2))
    models = [served(e, tmp_path / str(seed), Slow(Federation(e), seed)) for seed in range(2)]
    assert not same(*models)
    assert [line["client"] for line in lines(tmp_path / "0")] != [
        line["client"] for line in lines(tmp_path / "1")
    ]


@pytest.mark.parametrize(
    "method", [AsyncSGD(lr=0.1), IA2SGD(lr=0.1, missing=1), Ringleader(lr=0.1, missing=1)]
)
def test_a_device_that_never_answers_holds_nobody_up(method: AsyncSGD, tmp_path: Path) -> None:
    e = experiment(method=method)
    grid = Slow(Federation(e), silent={NODES[2]})
    live = served(e, tmp_path, grid)
    assert live.frame["round"].iloc[-1] == 12
    assert 2 not in {line["client"] for line in lines(tmp_path)}
    assert sum(m.metadata.dst_node_id == NODES[2] for m in grid.asked) == 1
    assert same(live, replayed(e, tmp_path))


@pytest.mark.parametrize("name", ["ringleader", "ringmaster"])
def test_a_device_that_fails_is_asked_again_and_the_tape_says_so(name: str, tmp_path: Path) -> None:
    e = METHODS[name]
    live = served(e, tmp_path, Slow(Federation(e), failing=2))
    failed = [line for line in lines(tmp_path) if "left" in line]
    assert failed
    assert all(line["left"] < line["seconds"] for line in failed)
    assert same(live, replayed(e, tmp_path))


def test_devices_that_only_fail_end_the_run(tmp_path: Path) -> None:
    e = experiment()
    live = served(e, tmp_path, Slow(Federation(e), failing=1000))
    assert live.frame["round"].tolist() == [0]


@pytest.mark.parametrize(
    ("name", "at"), [("ringleader", 1), ("ringleader", 6), ("malenia", 13), ("ringmaster", 9)]
)
def test_a_server_that_dies_takes_up_every_arrival_as_it_was(name: str, at: int, tmp_path: Path) -> None:
    """Killed after an arrival is on the disk and before, or after, what follows from it; devices keep their memories.

    A device that was asked for an attempt once more gives the same answer, and none is asked for one that is taken in.
    """
    e, event, passed = METHODS[name], Course._event, iter(range(1000))
    grid = Slow(Federation(e), failing=1)

    def killed(course: Course, *args: Any) -> Any:
        if next(passed) == at:
            if at % 2:  # the message is on the tape, and nothing has come of it
                course.clients.pop()
            raise RuntimeError("killed")
        return event(course, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Course, "_event", killed)
        with pytest.raises(RuntimeError, match="killed"):
            served(e, tmp_path, grid)
    before, asked = lines(tmp_path), len(grid.asked)
    rest = served(e, tmp_path, grid, resume=True)
    assert lines(tmp_path)[: len(before)] == before
    taken = {(line["client"], line["attempt"]) for line in before if "left" not in line}
    orders = [m.content.config_records["order"] for m in grid.asked[asked:]]
    assert not taken & {(order["client"], order["round"]) for order in orders}
    assert same(rest, replayed(e, tmp_path))


def test_once_the_last_update_is_made_nobody_is_asked(tmp_path: Path) -> None:
    """What a device answers it has paid for: no order after the end, nor where a finished run is resumed."""
    e = experiment(method=AsyncSGD(lr=0.1), rounds=3)
    grid = Slow(Federation(e))
    live = served(e, tmp_path, grid)
    assert len(grid.asked) == CLIENTS + 2  # after the first and the second update, and not after the third
    assert same(live, served(e, tmp_path, grid, resume=True))
    assert len(grid.asked) == CLIENTS + 2
    assert same(live, replayed(e, tmp_path))


def test_the_grid_engine_is_the_loop_to_the_bit() -> None:
    """Through Flower's messages, each client at its own attempt and model."""
    for name in ("malenia", "fedbuff"):
        timed = replace(METHODS[name], clock=Clock(Ladder()), rounds=4)
        assert same(run(timed, engine="grid"), run(timed, engine="loop"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}\n", "line 1: must be a table"),
        ("nothing\n", "line 1: "),
        ('{"client": 0, "attempt": -1, "seconds": 1.0}\n', "whole numbers from 0 on"),
        ('{"client": 0, "attempt": 0, "seconds": NaN}\n', "seconds finite ones"),
        ('{"client": 0, "attempt": 0, "seconds": 1.0, "left": 2.0}\n', "left comes after seconds"),
        ('{"client": 0, "attempt": 0, "seconds": 1.0}\n' * 2, "line 2: comes twice"),
        ('{"client": 4, "attempt": 0, "seconds": 1.0}\n', "has client 4, the experiment 4 clients"),
    ],
)
def test_a_file_that_is_no_tape_says_so(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "tape.jsonl").write_text(text)
    with pytest.raises(Invalid, match=words):
        replayed(experiment(), tmp_path)


def test_what_does_not_combine_says_so(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"cannot be read"):
        replayed(experiment(), tmp_path)
    with pytest.raises(Invalid, match="clock = Tape with method = FedSGD: a tape has arrivals"):
        experiment(method=FedSGD(lr=0.1), clock=Tape("tape.jsonl"))
    with pytest.raises(Invalid, match="attack = ALIE with method = IA2SGD: when a forged message comes"):
        TRIAL.check(experiment(method=IA2SGD(lr=0.1), byzantine=1, attack=ALIE()))
    with pytest.raises(Invalid, match="clock: simulates seconds"):
        TRIAL.check(experiment(clock=Clock(Constant(1.0))))
    assert issubclass(Live, calls.Remote)
