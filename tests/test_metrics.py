"""Metrics against scikit-learn and their formulas; in the record, by owner, and of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs
from torch import Tensor

from fedsim.check import Invalid
from fedsim.config import codec
from fedsim.datasets.holdout import Holdout
from fedsim.datasets.load import Arrays, Blobs
from fedsim.datasets.split import IID
from fedsim.losses import Squared
from fedsim.metrics import RMSE, Accuracy, BitsPerToken, ByOwner, Confusion, MacroF1, Metric, Recall
from fedsim.models import Logistic
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task

torch.manual_seed(0)
OUT, Y = torch.randn(200, 5), torch.randint(0, 4, (200,))  # none is of class 4, some are told to be
TOLD = OUT.argmax(1)


def second(outputs: Tensor, y: Tensor) -> float:
    return float(outputs[:, 1].mean())


def broken(outputs: Tensor, y: Tensor) -> float:
    raise KeyError("no such thing")


def loss(outputs: Tensor, y: Tensor) -> float:
    return 0.0


def test_of_classes_they_are_scikit_learn_s() -> None:
    assert Confusion()(OUT, Y) == theirs.confusion_matrix(Y, TOLD, labels=range(5)).tolist()
    assert MacroF1()(OUT, Y) == pytest.approx(
        theirs.f1_score(Y, TOLD, labels=range(5), average="macro", zero_division=0)
    )
    recall = theirs.recall_score(Y, TOLD, labels=range(5), average=None, zero_division=0)
    assert Recall()(OUT, Y) == pytest.approx(recall.tolist())
    assert Accuracy()(OUT, Y) == pytest.approx(theirs.accuracy_score(Y, TOLD))
    bits = theirs.log_loss(Y, OUT.double().softmax(1), labels=range(5)) / np.log(2)
    assert BitsPerToken()(OUT, Y) == pytest.approx(bits, rel=1e-5)
    windows = OUT.view(20, 10, 5), Y.view(20, 10)
    for metric in (Confusion(), MacroF1(), Recall(), Accuracy(), BitsPerToken()):
        torch.testing.assert_close(torch.tensor(metric(*windows)), torch.tensor(metric(OUT, Y)))
    numbers = torch.randn(200)
    assert RMSE()(OUT[:, :1], numbers) == pytest.approx(
        theirs.root_mean_squared_error(numbers, OUT[:, 0]), rel=1e-6
    )


@pytest.mark.parametrize("lower", [False, True])
def test_by_owner(lower: bool) -> None:
    owners = torch.arange(200) % 7
    each = [float((TOLD == Y)[owners == i].double().mean()) for i in range(7)]
    found = ByOwner(lower=lower).whole(OUT, Y, owners)
    assert found == {
        "accuracy_owners_mean": pytest.approx(np.mean(each)),
        "accuracy_owners_worst": max(each) if lower else min(each),
        "accuracy_owners_spread": pytest.approx(np.std(each)),
        f"accuracy_owners_p{90 if lower else 10}": pytest.approx(np.quantile(each, 0.9 if lower else 0.1)),
    }


def experiment(*metrics: Any, **changes: Any) -> Experiment:
    x = np.random.default_rng(0).normal(size=(60, 3))
    task = Task(Arrays(x, (x.sum(1) > 0).astype(int), owner=np.arange(60) % 4), Logistic(), metrics=metrics)
    fields: dict[str, Any] = {"clients": 3, "rounds": 2, "evaluate_every": 1, "split": IID(), **changes}
    return Experiment(task=task, method=FedSGD(0.1), rule=Mean(), **fields)


def test_they_are_in_the_record_the_frame_and_the_definition(tmp_path: Path) -> None:
    e = experiment(MacroF1(), Confusion(), ByOwner(), second)
    vector, loop = run(e, out=tmp_path / "run"), run(e, engine="loop")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line, row in zip(lines, vector.frame.to_dict("records"), strict=True):
        assert sum(map(sum, line["confusion"])) == 12
        correct = sum(line["confusion"][i][i] for i in range(2)) / 12
        assert line["accuracy"] == pytest.approx(correct)
        for name in ("macro_f1", "accuracy_owners_worst", "second"):
            assert line[name] == row[name]
    assert loop.frame["second"].tolist() == pytest.approx(vector.frame["second"].tolist(), abs=1e-6)
    assert codec.decode(Experiment, e.to_dict(), own=True) == e
    assert Experiment.from_json(experiment(MacroF1(), ByOwner()).to_json()) == experiment(
        MacroF1(), ByOwner()
    )
    with pytest.raises(Invalid, match="allowed here are the components of fedsim itself"):
        Experiment.from_json(e.to_json())


@pytest.mark.parametrize(
    ("metric", "changed", "sentence"),
    [
        (broken, {}, "metrics = broken: raises KeyError: 'no such thing'"),
        (
            ByOwner(),
            {"data": Blobs(train=30, test=9)},
            "ByOwner needs a data set whose test examples have owners",
        ),
        (ByOwner(Confusion()), {}, "ByOwner.of = Confusion: gives lists"),
        (RMSE(), {}, "RMSE: outputs (12, 2) for labels (12,)"),
        (
            MacroF1(),
            {"data": Arrays(np.ones((9, 2)), np.ones(9) / 2), "loss": Squared()},
            "MacroF1 is of classes",
        ),
    ],
)
def test_metrics_that_cannot_be(metric: Any, changed: dict[str, Any], sentence: str) -> None:
    e = experiment(metric)
    with pytest.raises(Invalid) as error:
        run(replace(e, task=replace(e.task, **changed)))
    assert sentence in str(error.value)
    with pytest.raises(Invalid, match="metrics = loss: is in every record"):
        experiment(loss)


def test_who_holds_out_keeps_whose_the_examples_are() -> None:
    data = Holdout(Arrays(np.ones((20, 2)), np.arange(20) % 2, owner=np.arange(20)), share=0.25).load()
    assert data.groups is not None
    assert data.test_groups is not None
    assert (len(data.groups), len(data.test_groups)) == (len(data.train), len(data.test))
    assert not set(data.groups.tolist()) & set(data.test_groups.tolist())
    assert isinstance(MacroF1(), Metric)
