"""Rounds beside peers: the protocol with a peer that is a few lines of torch, and what happens where one is missing."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsim.attacks import IPM
from fedsim.batches import Fixed, Poisson
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.experiments.bench import against as bench_peers
from fedsim.experiments.bench import rounds as bench_rounds
from fedsim.federation import Federation
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.strategies import HeavyBall, Median
from fedsim.task import Task

FAKE = """
import sys, torch
from turns import Clock, Task, leave_out
task = Task(*sys.argv[1:])
if task.byzantine:
    leave_out("no defence")
clock, network = Clock(task), task.model()
print("working")  # what a peer prints is no answer
parameters = list(network.parameters())
for round in range(task.rounds):
    clock.begin()
    if task.level == "example":
        raise SystemExit("nothing private here")
    batches = [task.batch(round, client) for client in range(task.clients)]
    x, y = (torch.cat(part) for part in zip(*batches))
    loss = torch.nn.functional.cross_entropy(network(x), y)
    with torch.no_grad():
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
            p -= task.lr * g
    clock.end()
clock.finish(parameters, "numpy", note=task.system)
"""
SMALL = replace(
    bench_rounds.W1, task=Task(data=Blobs(), model=Logistic()), clients=4, batches=Fixed(5), rounds=20
)


@pytest.fixture(autouse=True)
def peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A peer called fake, in this environment, and workloads that take no time."""
    shutil.copy(bench_peers.SCRIPTS / "turns.py", tmp_path)
    (tmp_path / "fake_peer.py").write_text(FAKE)
    attacked = replace(SMALL, clients=5, byzantine=1, dealt="honest", attack=IPM(), rule=Median())
    private = replace(SMALL, privacy=ExampleDP(clip=1.0, noise=1.0))
    monkeypatch.setattr(bench_peers, "SCRIPTS", tmp_path)
    monkeypatch.setitem(bench_peers.PEERS, "fake", bench_peers.Peer((), ("", "again")))
    monkeypatch.setattr(bench_rounds, "WORKLOADS", {"W1": SMALL, "W4": attacked, "W6": private})


def measured(workload: str, **options: Any) -> list[dict[str, Any]]:
    return list(bench_rounds.bench_rounds([workload], rounds=7, threads=1, **options))


@pytest.mark.parametrize("cohort", [None, 2])
def test_a_peer_runs_the_same_rounds(cohort: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same parameters: the batches were the same ones, of the same clients, in the same order."""
    monkeypatch.setitem(bench_rounds.WORKLOADS, "W1", replace(SMALL, cohort=cohort))
    monkeypatch.setattr(bench_rounds, "evaluate", lambda model, loss, x, test: {"accuracy": float(x.norm())})
    lines = measured("W1", against=["fake"])
    assert [line["system"] for line in lines] == ["fake", "fake again", "fedsim loop", "fedsim vector"]
    assert [line["accuracy"] for line in lines] == pytest.approx([lines[-1]["accuracy"]] * 4, rel=1e-6)
    for line in lines:
        assert len(line["ratios"]) == 7
        assert line["seconds_per_round"] > 0
        assert line["over_floor"] == pytest.approx(sorted(line["ratios"])[3], abs=1e-3)
    assert lines[1]["note"] == "fake again"
    assert set(lines[0]["versions"]) == {"numpy", "torch"}
    assert "fedsim" in lines[-1]["versions"]


@pytest.mark.parametrize(
    ("workload", "why"), [("W4", "no defence"), ("W6", "it failed: nothing private here")]
)
def test_a_peer_that_cannot_says_why(workload: str, why: str) -> None:
    lines = measured(workload, against=["fake"])
    assert lines[0] == {"workload": workload, "system": "fake", "left_out": why}
    assert all(line["seconds_per_round"] > 0 for line in lines[2:])


HALTS = """
import sys, time
for round, order in enumerate(sys.stdin):
    if round == 4:
        time.sleep(600)
    print('{"rounds": [[0.5, 0.25]]}', flush=True)
"""


def test_a_peer_whose_time_is_up_is_asked_for_no_more(tmp_path: Path) -> None:
    """What it has done counts; there is no model to measure."""
    script = tmp_path / "halts.py"
    script.write_text(HALTS)
    peer = bench_peers.Process(
        script, Path(sys.executable), tmp_path, "halts", 60, ("halts[simulation]==1.2",)
    )
    try:
        assert peer.turn(3) + peer.turn(1) == [(0.5, 0.25)] * 4
        assert not peer.cut
        peer.left = 0.1
        assert peer.turn(5) == peer.turn(5) == []
        line = bench_rounds._line(Federation(SMALL), peer, [(0.5, 0.25)])
    finally:
        peer.close()
    assert line["cut"] == "it had 60 s"
    assert (line["over_floor"], line["versions"]) == (2, {"halts": "1.2"})
    assert "accuracy" not in line
    left_out = measured("W1", against=["fake"], limit=1e-9)[0]["left_out"]
    assert left_out == "it had 1e-09 s for 3 rounds that do not count and one that does"


def test_a_peer_keeps_nothing_of_clients_who_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = replace(SMALL, cohort=2, method=HeavyBall(lr=0.1))
    monkeypatch.setitem(bench_rounds.WORKLOADS, "W1", kept)
    assert "keeps nothing of clients" in measured("W1", against=["fake"])[0]["left_out"]


def test_peers_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"not installed in .*; `fedsim bench peers pfl --into"):
        measured("W1", against=["pfl"], peers=tmp_path)
    with pytest.raises(Invalid, match="did you mean pfl"):
        measured("W1", against=["pfll"])


def test_batches_of_many_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_rounds.WORKLOADS, "W1", replace(SMALL, batches=Poisson(size=5)))
    with pytest.raises(Invalid, match="batches of one size"):
        measured("W1", against=["fake"])


@pytest.mark.parametrize("name", ["pfl", "flower", "byzfl", "opacus"])
def test_every_peer_has_a_script(name: str) -> None:
    assert set(bench_peers.PEERS) == {"pfl", "flower", "byzfl", "opacus", "fake"}
    script = Path(bench_peers.__file__).parent / "peers" / f"{name}_peer.py"
    compile(script.read_text(), script, "exec")
