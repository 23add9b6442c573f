"""Runs that diverge, runs that are there already, and runs that go on for longer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from fedsim import Invalid, runner
from fedsim.attacks import IPM
from fedsim.batches import Fixed
from fedsim.cli.app import app
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.experiments.report.report import report
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, HeavyBall, Mean, Median
from fedsim.task import Task

SMALL = ["--set", "task.data=Blobs", "--set", "task.model=Logistic", "--set", "rounds=4"]
BASE = Experiment(
    task=Task(data=Blobs(train=400, test=100), model=Logistic()),
    split=IID(),
    clients=8,
    byzantine=1,
    attack=IPM(10.0),
    rule=Median(),
    method=HeavyBall(lr=0.1),
    batches=Fixed(8),
    rounds=6,
    evaluate_every=2,
)


@pytest.fixture
def fedsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, list(words))


# ---------------------------------------------------------------- divergence
@pytest.mark.parametrize(("lr", "loss"), [(1e6, True), (1e-6, False)])
def test_a_diverged_run_says_so(lr: float, loss: bool) -> None:
    """One that has learned nothing yet does not."""
    e = replace(BASE, method=FedSGD(lr=lr), rule=Mean())
    result = runner.run(e)
    assert result.summary["diverged"] is loss
    assert any(note.startswith("diverged: accuracy") for note in result.notes) is loss
    assert ("diverged" in result.frame) is loss


def test_what_diverged_means() -> None:
    for accuracy, value, said in (
        (0.1, None, True),
        (0.9, math.nan, True),
        (0.9, math.inf, True),
        (0.1, 100.0, True),
        (0.1, math.log(10), False),
        (0.9, 100.0, False),
    ):
        assert runner.has_diverged({"accuracy": accuracy, "loss": value}, 10) is said
    assert not runner.has_diverged({"loss": 100.0}, 0)


def test_the_command_of_a_diverged_run_ends_with_3_and_the_report_names_it(
    fedsim: Callable[..., Result], tmp_path: Path
) -> None:
    words = [
        "run",
        "quickstart",
        *SMALL,
        "--set",
        "privacy=none",
        "--set",
        "rule=Mean",
        "--set",
        "method.lr=1e5",
    ]
    done = fedsim(*words, "--alone")
    assert done.exit_code == 3, done.output
    assert ", diverged" in done.stdout
    assert "diverged: accuracy" in done.stdout
    done = fedsim(*words, "--alone", "--json", "--force")
    assert done.exit_code == 3
    assert json.loads(done.stdout.splitlines()[-1])["diverged"] is True
    told: list[str] = []
    page = report(tmp_path / "runs", tell=told.append).read_text()
    assert "1 of 1 runs diverged" in page
    assert "1 of 1 runs diverged" in " ".join(told)


# ---------------------------------------------------------------- the same again
def test_a_finished_run_is_kept_unless_forced(fedsim: Callable[..., Result], tmp_path: Path) -> None:
    words = ["run", "quickstart", *SMALL]
    first = fedsim(*words)
    assert first.exit_code == 0, first.output
    models = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/model.pt")}
    assert len(models) == 4
    again = fedsim(*words)
    assert again.exit_code == 0
    assert "finished before, and kept" in again.stderr
    assert "--force" in again.stderr
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in models} == models
    forced = fedsim(*words, "--force")
    assert forced.stdout == first.stdout
    assert all(path.stat().st_mtime_ns > before for path, before in models.items())


def test_half_a_run_is_begun_anew_only_where_that_is_asked_for(
    fedsim: Callable[..., Result], tmp_path: Path
) -> None:
    words = ["run", "quickstart", *SMALL, "--alone"]
    assert fedsim(*words).exit_code == 0
    (folder,) = tmp_path.glob("runs/*")
    (folder / "model.pt").unlink()
    stopped = fedsim(*words)
    assert stopped.exit_code == 2
    assert "--resume goes on, --force begins anew" in stopped.stderr
    assert fedsim(*words, "--resume").exit_code == 0
    assert fedsim(*words, "--resume", "--force").exit_code == 2


def test_folders_of_companions_are_told_apart_by_name(fedsim: Callable[..., Result], tmp_path: Path) -> None:
    assert fedsim("run", "quickstart", *SMALL).exit_code == 0
    names = sorted(path.name.rpartition("-")[0] for path in tmp_path.glob("runs/*"))
    beside = ("attack", "defence-mean", "outer-clip")
    assert names == ["quickstart", *(f"quickstart-without-the-{each}" for each in beside)]


# ---------------------------------------------------------------- for longer
@pytest.mark.parametrize("privacy", [None, ExampleDP(clip=1.0, noise=2.0, delta=1e-3)])
def test_a_run_goes_on_for_more_rounds_to_the_bit(tmp_path: Path, privacy: ExampleDP | None) -> None:
    short, long = replace(BASE, privacy=privacy), replace(BASE, privacy=privacy, rounds=11)
    before = runner.run(short, out=tmp_path / "a")
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    longer = runner.run(long, out=tmp_path / "b", resume=True, start=tmp_path / "a")
    truth = runner.run(long)
    for name, value in truth.model.items():
        assert torch.equal(longer.model[name], value)
    mine, whole = (r.frame.drop(columns="seconds") for r in (longer, truth))
    assert mine.equals(whole)
    assert longer.notes == truth.notes
    assert before.summary["rounds"] == 6
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == files


def test_with_noise_for_the_planned_rounds_it_does_not(tmp_path: Path) -> None:
    short = replace(BASE, privacy=ExampleDP(clip=1.0, epsilon=8.0, delta=1e-3))
    runner.run(short, out=tmp_path / "a")
    with pytest.raises(Invalid, match=r"its noise was calibrated for 6 rounds.*begin anew"):
        runner.run(replace(short, rounds=12), out=tmp_path / "b", resume=True, start=tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_the_command_finds_the_shorter_run(fedsim: Callable[..., Result], tmp_path: Path) -> None:
    words = ["run", "quickstart", *SMALL[:4], "--set", "privacy=none", "--alone"]
    assert fedsim(*words, "--set", "rounds=4").exit_code == 0
    done = fedsim(*words, "--set", "rounds=9", "--resume")
    assert done.exit_code == 0, done.output
    assert "goes on from round 4" in done.stderr
    assert len(list(tmp_path.glob("runs/*"))) == 2
    private = ["run", "quickstart", *SMALL[:4], "--alone"]
    assert fedsim(*private, "--set", "rounds=4").exit_code == 0
    done = fedsim(*private, "--set", "rounds=9", "--resume")
    assert done.exit_code == 0
    assert "its noise was calibrated for 4 rounds" in done.stderr
