"""What is wrong with a task of one's own is one sentence that names it, and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app
from fedsim.datasets import files

MINE = """
import torch
from torch import nn

from fedsim.datasets.load import Blobs

ready = Blobs()

def whole(outputs, y):
    return outputs.square().mean()

def raising(outputs, y):
    raise KeyError("no such thing")

def words(outputs, y):
    return "good"

def two_lines(outputs, y):
    raise ValueError("one\\ntwo")

def detached(outputs, y):
    return outputs.detach().sum(1)

def nowhere(outputs, y):
    return outputs.sum(1) * float("nan")

class Two(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Linear(4, classes)

    def forward(self, x):
        return self.layer(x), x

class Cut(Two):
    def forward(self, x):
        with torch.no_grad():
            return self.layer(x)

def unbuilt(shape, classes):
    return nn.Linear(shape["age"], classes)

def frozen(shape, classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[0], classes))
    return net.requires_grad_(False)
"""
BLOBS = ["task.data=Blobs(train=30, test=10, features=4, classes=3)"]
TABLE = "Table('a.csv', label='{}', owner={}, test=0.3)"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            [*BLOBS, "task.loss=mine:whole"],
            "loss = whole: () for 4 examples; must be a tensor of shape (b,), one number each",
        ),
        ([*BLOBS, "task.loss=mine:raising"], "loss = raising: raises KeyError: 'no such thing'"),
        (
            [*BLOBS, "task.loss=mine:detached"],
            "loss = detached: torch knows no gradient of it; it must follow from the outputs",
        ),
        ([*BLOBS, "task.metrics=[mine:two_lines]"], "metrics = two_lines: raises ValueError: one two"),
        ([*BLOBS, "task.model=mine:Cut"], "model = Cut: torch knows no gradient of its outputs"),
        ([*BLOBS, "task.metrics=[mine:raising]"], "metrics = raising: raises KeyError: 'no such thing'"),
        (
            [*BLOBS, "task.metrics=[mine:words]"],
            "metrics = words: raises ValueError: could not convert string",
        ),
        (
            [*BLOBS, "task.loss=Squared"],
            "loss = Squared: labels are int64 from 0 to 2; must be finite numbers",
        ),
        ([*BLOBS, "task.loss=Binary"], "loss = Binary: labels are int64 from 0 to 2; must be 0 or 1"),
        (
            [f"task.data={TABLE.format('days', 'none')}"],
            "Table.label = 'days': holds 0.5; classes must be words or whole numbers from 0 on",
        ),
        (
            [f"task.data={TABLE.format('ill', repr('clinic'))}"],
            "Table.owner = 'clinic': a.csv has no such column; it has age, ill, days",
        ),
        (
            [*BLOBS, "task.model=mine:frozen"],
            "model: none of its 2 parameters is trained; at least one must have requires_grad=True",
        ),
        (
            [*BLOBS, "task.model=Frozen(Logistic, ['*'])"],
            "model: none of its 2 parameters is trained; at least one must have requires_grad=True",
        ),
        ([*BLOBS, "task.model=mine:Two"], "model = Two: puts out a tuple; must be one tensor, (b, ...)"),
        ([*BLOBS, "task.model=mine:unbuilt"], "model = unbuilt: raises TypeError: tuple indices must be"),
        (
            ["task.data=mine:ready"],
            "data = 'mine:ready': must be a Data, by its class: one that is ready-made is given from Python",
        ),
        (["task.data=Npz('huge.npz')"], "Npz huge.npz: 1.0 GiB of numbers, and as much again"),
        (["task.data=Table('huge.csv', label='ill')"], "Table huge.csv: "),
        (["task.data=Text('huge.txt', window=4)", "task.model=GPT"], "Text huge.txt"),
    ],
)
def test_one_sentence(
    changes: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    pd.DataFrame({"age": range(40), "ill": [0, 1] * 20, "days": [0.5] * 40}).to_csv("a.csv", index=False)
    if "huge" in changes[0]:
        pd.DataFrame({"age": range(4000), "ill": [0, 1] * 2000}).to_csv("huge.csv", index=False)
        (tmp_path / "huge.txt").write_text("to be or not to be\n" * 4000)
        np.savez_compressed("huge.npz", x=np.zeros((2**19, 256)), y=np.zeros(2**19))
        monkeypatch.setattr(files, "available", lambda: 10_000)
    words = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(app, ["run", "quickstart", "--alone", "--set", "rounds=1", *words])
    assert done.exit_code == 2, done.output
    said = done.stderr.strip()
    assert said.startswith(f"fedsim: {sentence}")
    assert "\n" not in said


def test_a_loss_that_is_never_finite_is_a_run_that_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    words = [word for change in ("rounds=1", *BLOBS, "task.loss=mine:nowhere") for word in ("--set", change)]
    done = CliRunner().invoke(app, ["run", "quickstart", "--alone", *words])
    assert done.exit_code == 3, done.output
    assert "diverged" in done.output
