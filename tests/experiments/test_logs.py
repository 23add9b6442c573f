"""TensorBoard, Weights & Biases and MLflow are told what the record holds; without the package, one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsim import run
from fedsim.cli.app import app
from fedsim.experiments.load import load
from fedsim.experiments.logs import MLflow, WandB
from fedsim.experiments.resolve import resolve

CHANGES = ["rounds=3", "evaluate_every=1", "task.data=Blobs"]
WORDS = ["run", "quickstart", "--alone", *(word for text in CHANGES for word in ("--set", text))]
SMALL = resolve("quickstart", CHANGES, None).main


def test_events_are_the_metrics_of_the_record(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = CliRunner().invoke(app, [*WORDS, "--tensorboard", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    events = EventAccumulator(str(next(tmp_path.glob("*/tensorboard"))))
    events.Reload()
    frame = load(tmp_path)
    for name in ("accuracy", "loss", "epsilon", "deviation"):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == list(frame["round"]) == [1, 2, 3]
        assert [event.value for event in scalars] == pytest.approx(list(frame[name]))


class Wandb(SimpleNamespace):
    """The part of the package that is used: init gives a run with log and finish."""

    def init(self, **words: Any) -> Wandb:
        self.words, self.logged, self.finished = words, [], False
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_weights_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    result = run(SMALL, callbacks=[WandB("robustness", group="here")])
    assert fake.words["project"] == "robustness"
    assert fake.words["group"] == "here"
    assert fake.words["id"] == fake.words["config"]["fingerprint"] == SMALL.fingerprint
    assert fake.words["config"]["method.tau"] == 0.1
    assert [step for step, _ in fake.logged] == [1, 2, 3]
    for (_, values), row in zip(fake.logged, result.frame.to_dict("records"), strict=True):
        assert {"accuracy", "loss", "epsilon"} <= values.keys()
        assert all(row[name] == value for name, value in values.items())
        assert all(isinstance(value, float) for value in values.values())
    assert fake.finished


class Client:
    """The part of MLflow's client that is used."""

    def __init__(self, tracking_uri: str | None) -> None:
        self.uri, self.params, self.metrics, self.ended = tracking_uri, {}, [], ""

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"id of {name}"

    def create_run(self, place: str, run_name: str) -> Any:
        self.place, self.name = place, run_name
        return SimpleNamespace(info=SimpleNamespace(run_id="7"))

    def log_param(self, run: str, name: str, value: str) -> None:
        assert name not in self.params
        self.params[name] = value

    def log_metric(self, run: str, name: str, value: float, step: int) -> None:
        self.metrics.append((run, name, value, step))

    def set_terminated(self, run: str) -> None:
        self.ended = run


def test_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))  # type: ignore[arg-type]
    told = MLflow("robustness", uri="sqlite:///here.db")
    result = run(SMALL, callbacks=[told])
    assert (told.client.uri, told.client.place, told.client.name) == (
        "sqlite:///here.db",
        "id of robustness",
        SMALL.fingerprint,
    )
    assert told.client.params["method.tau"] == "0.1"
    accuracies = [(value, step) for _, name, value, step in told.client.metrics if name == "accuracy"]
    assert accuracies == list(zip(result.frame["accuracy"], [1, 2, 3], strict=True))
    assert told.client.ended == "7"


@pytest.mark.parametrize(
    ("package", "option"),
    [
        ("torch.utils.tensorboard", ["--tensorboard"]),
        ("wandb", ["--wandb", "p"]),
        ("mlflow", ["--mlflow", "p"]),
    ],
)
def test_without_the_package_one_sentence(
    package: str, option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    done = CliRunner().invoke(app, [*WORDS, *option, "--out", str(tmp_path)])
    extra = option[0].removeprefix("--")
    assert done.exit_code == 2
    assert done.stderr.strip() == f"fedsim: {extra}: not installed; pip install 'fedsim-robust[{extra}]'"
    assert not any(tmp_path.iterdir())
