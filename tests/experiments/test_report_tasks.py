"""Tasks of every kind through commands and report: numbers, windows of text, metrics, by class and by client."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_sweep import SMALL, inline
from typer.testing import CliRunner

from fedsim.attacks import Backdoor
from fedsim.cli.app import app
from fedsim.datasets.load import Npz, Text
from fedsim.datasets.split import IID, Dirichlet
from fedsim.experiments.load import load
from fedsim.experiments.report.measured import metrics
from fedsim.experiments.report.report import report
from fedsim.experiments.report.results import Results
from fedsim.experiments.resolve import resolve
from fedsim.experiments.study import Study, Tuning, axes
from fedsim.experiments.sweep.run import Sweep
from fedsim.losses import Squared
from fedsim.metrics import RMSE, ByClient, Confusion, MacroF1, Recall
from fedsim.models import GPT, Logistic
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task

BASE: dict[str, Any] = {"split": IID(), "clients": 3, "rule": Mean(), "rounds": 2, "evaluate_every": 1}


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """An experiment whose labels are numbers, as a file."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savez(tmp_path / "numbers.npz", x=x, y=x.sum(1))
    task = Task(Npz(str(tmp_path / "numbers.npz")), Logistic(), loss=Squared(), metrics=(RMSE(),))
    (tmp_path / "numbers.toml").write_text(Experiment(task=task, method=FedSGD(0.1), **BASE).to_toml())
    return tmp_path / "numbers.toml"


def said(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def defined(file: Path) -> Experiment:
    return resolve(str(file), [], None).main


def test_numbers_through_all_commands(numbers: Path) -> None:
    folder = numbers.parent
    once = json.loads(said("run", numbers, "--out", folder / "runs", "--json").splitlines()[-1])
    assert once["accuracy"] is None
    assert Path(once["picture"]).exists()
    again = said("run", numbers, "--out", folder / "runs", "--resume", "--json")
    assert json.loads(again.splitlines()[-1])["loss"] == once["loss"]
    assert re.search(
        r"client +\d|all +examples", said("show", "split", numbers, "--out", folder / "split.png")
    )
    sweep = folder / "sweep"
    assert not Sweep(sweep, crew=inline)(Study(defined(numbers), axes({"seed": [0, 1]}))).failures
    said("report", sweep)
    table = pd.read_csv(sweep / "report" / "table.csv")
    last = load(sweep).groupby("seed")["loss"].last()
    assert table["loss"].iloc[0] == pytest.approx(last.mean())
    assert table["std"].iloc[0] == pytest.approx(last.std())
    assert "accuracy" not in table
    page = (sweep / "report" / "index.html").read_text()
    assert "Test loss; means over seeds" in page
    assert "rmse" in page


def test_a_search_for_numbers_takes_the_least_loss(numbers: Path) -> None:
    study = Study(defined(numbers), axes({"seed": [0]}), tuning=Tuning(grid={"method.lr": ("1e-6", "0.1")}))
    assert not Sweep(numbers.parent / "tuned", crew=inline)(study).failures
    (found,) = json.loads((numbers.parent / "tuned" / "tuning.json").read_text())
    assert found["chosen"] == {"method.lr": "0.1"}
    assert all(row["score"] < 0 for row in found["tried"])


def test_windows_of_text_have_a_report(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 20)
    task = Task(Text(str(tmp_path / "a.txt"), window=4), GPT(width=4, layers=1, heads=1))
    e = Experiment(task=task, method=FedSGD(0.1), **BASE)
    Sweep(tmp_path / "sweep", crew=inline)(Study(e, axes({"seed": [0]})))
    assert "Examples by client" in report(tmp_path / "sweep").read_text()


def test_metrics_by_class_by_client_and_of_a_backdoor(tmp_path: Path) -> None:
    task = replace(SMALL.task, metrics=(MacroF1(), Recall(), Confusion(), ByClient()))
    base = replace(
        SMALL, task=task, split=Dirichlet(0.3), clients=6, byzantine=1, attack=Backdoor(target=1), rounds=2
    )
    Sweep(tmp_path, crew=inline)(Study(base, axes({"rule": ["Median", "Mean"], "seed": [0, 1]})))
    section, last = metrics(Results.of(tmp_path)), load(tmp_path)
    assert section is not None
    last = last[last["round"] == 2]
    figures = {figure.title: figure for figure in section.figures}
    shown = {"backdoor success", "macro f1", "accuracy clients worst", "recall by class, in %", "confusion"}
    assert {*shown, "accuracy clients by client, from the worst on"} <= figures.keys()
    assert last["accuracy_clients"].map(len).eq(5).all()
    assert (last["accuracy_clients"].map(min) - last["accuracy_clients_worst"]).abs().max() < 1e-5
    recall = pd.DataFrame(last[last["rule"] == "Median"]["recall"].tolist()).mean()
    cells = re.findall(r">(\d+\.\d)<", figures["recall by class, in %"].plots[""].svg())
    assert [f"{100 * value:.1f}" for value in recall] == cells[: len(recall)]
