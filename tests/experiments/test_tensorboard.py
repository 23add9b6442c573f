"""Event files hold what the record holds, and TensorBoard is asked for only by those who want them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app
from fedsim.experiments.load import load

SET = ["--set", "rounds=3", "--set", "evaluate_every=1", "--set", "task.data=Blobs"]
WORDS = ["run", "quickstart", "--alone", *SET, "--tensorboard"]


def test_events_are_the_metrics_of_the_record(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = CliRunner().invoke(app, [*WORDS, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    events = EventAccumulator(str(next(tmp_path.glob("*/tensorboard"))))
    events.Reload()
    frame = load(tmp_path)
    for name in ("accuracy", "loss", "epsilon", "deviation"):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == list(frame["round"]) == [1, 2, 3]
        assert [event.value for event in scalars] == pytest.approx(list(frame[name]))


def test_without_tensorboard_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def lacking(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return usual(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    done = CliRunner().invoke(app, [*WORDS, "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.strip() == "fedsim: tensorboard: not installed; pip install 'fedsim[tensorboard]'"
