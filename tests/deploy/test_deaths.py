"""Each role of a deployment killed with SIGKILL at every step: before and after each of its reads and writes of a file.

An order is a few dozen such steps. The run is private and goes on; each ledger has what was answered, once. All behind
FEDSIM_LONG=1: FEDSIM_LONG=1 pytest tests/deploy/test_deaths.py -s
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forked import Forks
from test_deployment import expected, own_data, private, until

from fedsim.deploy.local import Yard, prepare
from fedsim.deploy.server import run_there
from fedsim.deploy.spent import Spent
from fedsim.deploy.trial import Trial
from fedsim.spec import Experiment

pytestmark = pytest.mark.skipif(
    "FEDSIM_LONG" not in os.environ, reason="takes minutes: set FEDSIM_LONG to run it"
)
DEVICES = 2


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    monkeypatch.chdir(tmp_path)  # of the devices too: where a function of their own stands
    return prepare(
        tmp_path / "site", DEVICES, [replace(each, epsilon=1e6) for each in own_data(tmp_path, DEVICES)]
    )


class Running(threading.Thread):
    """`fedsim deploy run` in a thread of this process."""

    def __init__(self, yard: Yard, e: Experiment, out: Path) -> None:
        super().__init__(daemon=True)
        self.yard, self.e, self.out, self.summary = yard, e, out, dict[str, Any]()
        self.start()

    def run(self) -> None:
        self.summary = run_there(self.yard.site, self.e, Trial(timeout=60.0), self.out)


def booked(yard: Yard, i: int, out: Path) -> tuple[int, ...]:
    """The rounds of a run in a device's ledger."""
    entries = Spent.load(yard.place(i).folder / "ledger.json").entries
    name = (out / "run").read_text()
    return entries[name].rounds if name in entries else ()


def answered(out: Path) -> int:
    return sum(json.loads(line)["answered"] for line in (out / "metrics.jsonl").read_text().splitlines())


def check_ledgers(yard: Yard, e: Experiment, runs: list[Path]) -> None:
    """Each epsilon is the accountant's for the rounds booked in all runs, to 1e-9."""
    for i in range(DEVICES):
        total = sum(len(booked(yard, i, out)) for out in runs)
        spent = Spent.load(yard.place(i).folder / "ledger.json")
        assert spent.rounds == total
        assert spent.epsilon(1e-4) == pytest.approx(
            expected(replace(e, rounds=total), 200 + 10 * i, total), rel=1e-9
        )


def test_a_device_that_dies_at_any_step(yard: Yard, tmp_path: Path) -> None:
    """Started again it sends what it had kept: nobody is set aside, and each round is booked once."""
    e, runs = private(DEVICES, 2), list[Path]()
    with Forks() as forks:
        forks.start("device", yard.place(1).folder)
        for step in itertools.count(1):
            runs.append(tmp_path / f"run{step}")
            dying = forks.start("device", yard.place(0).folder, die=step)
            run = Running(yard, e, runs[-1])
            until(lambda: forks.over(dying) is not None or not run.is_alive(), 300)  # noqa: B023
            survived = not run.is_alive()
            again = dying if survived else forks.start("device", yard.place(0).folder)
            run.join(300)
            forks.end(again)
            assert run.summary["set_aside"] == []
            assert answered(runs[-1]) == DEVICES * 2
            assert [booked(yard, i, runs[-1]) for i in range(DEVICES)] == [(0, 1)] * DEVICES
            if survived:
                break
    assert step > 30
    check_ledgers(yard, e, runs)
    print(
        f"device: killed at {step - 1} steps of two orders, {2 * step} releases, each booked and taken in once"
    )


def test_a_server_that_dies_at_any_step(yard: Yard, tmp_path: Path) -> None:
    """Resumed it goes on from its record, also where that had not begun: nothing is paid for twice."""
    e, runs = private(DEVICES, 2), list[Path]()
    about = {"site": str(yard.site.folder), "experiment": e.to_json()}
    with Forks() as forks:
        for i in range(DEVICES):
            forks.start("device", yard.place(i).folder)
        for step in itertools.count(1):
            runs.append(tmp_path / f"run{step}")
            code = forks.over(forks.start("server", runs[-1], die=step, **about), wait=True)
            if code:
                assert code == -signal.SIGKILL, Path(f"{runs[-1]}.log").read_text()
                assert forks.over(forks.start("server", runs[-1], **about), wait=True) == 0
            assert json.loads((runs[-1] / "summary.json").read_text())["set_aside"] == []
            assert answered(runs[-1]) == DEVICES * 2
            assert [booked(yard, i, runs[-1]) for i in range(DEVICES)] == [(0, 1)] * DEVICES
            if not code:
                break
    assert step > 10
    check_ledgers(yard, e, runs)
    print(
        f"server: killed at {step - 1} steps of two rounds, {4 * step} releases, each booked and taken in once"
    )


FRONT = """
import multiprocessing, sys
from pathlib import Path
if __name__ == "__main__":
    from fedsim.deploy import front
    from fedsim.link import device, worker
    device.LAST = device.FIRST
    context = multiprocessing.get_context("forkserver")  # so that a new one is there at once
    context.set_forkserver_preload(["dying_app"])
    worker.get_context = lambda _: context
    front.serve(Path(sys.argv[1]))
"""


@contextmanager
def front(folder: Path, place: Path) -> Iterator[None]:
    """A device whose workers are forks of a process that has their app."""
    place.mkdir()
    (place / "front.py").write_text(FRONT)
    paths = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"DYING": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with (place / "log").open("wb") as log:
        words = [sys.executable, str(place / "front.py"), str(folder)]
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_a_worker_that_dies_at_any_step(yard: Yard, tmp_path: Path) -> None:
    """Its device lives, and says so at once: the round goes on without it. What it had booked is lost in flight, once.

    Of four rounds the first finds no worker, the second one that dies, and the others a whole one.
    """
    e, runs, lost = private(DEVICES, 4), list[Path](), 0
    folder, pid, at = (
        yard.place(0).folder,
        yard.place(0).folder.parent / "worker",
        yard.place(0).folder.parent / "step",
    )
    terms = (folder / "device.toml").read_text()
    (folder / "device.toml").write_text(terms.replace('"fedsim.deploy.app:client"', '"dying_app:client"'))
    with Forks() as forks, front(folder, tmp_path / "front"):
        forks.start("device", yard.place(1).folder)
        for step in itertools.count(1):
            until(pid.exists, 120)
            at.write_text(str(step))
            os.kill(int(pid.read_text()), signal.SIGKILL)
            runs.append(tmp_path / f"run{step}")
            run = Running(yard, e, runs[-1])
            run.join(300)
            rounds, taken = booked(yard, 0, runs[-1]), answered(runs[-1]) - 4
            aside = [int(said.split(":")[0].removeprefix("round ")) for said in run.summary["set_aside"]]
            assert aside[0] == 0
            assert len(aside) == 2
            assert {1, 2, 3} - {aside[1]} <= set(rounds) <= {1, 2, 3}
            assert taken == 2
            assert booked(yard, 1, runs[-1]) == (0, 1, 2, 3)
            lost += len(rounds) - taken
            if aside[1] > 1:  # it has lived through its first order
                break
    assert step > 10
    check_ledgers(yard, e, runs)
    print(f"worker: killed at {step - 1} steps of an order; booked and lost in flight: {lost}, unbooked: 0")
