"""Metrics against scikit-learn and their formulas; in the record, by owner, and of one's own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs
from torch import Tensor

from fedsim.attacks import Backdoor
from fedsim.check import Invalid
from fedsim.config import codec
from fedsim.datasets.holdout import Holdout
from fedsim.datasets.load import Arrays, Blobs
from fedsim.datasets.split import IID, Dirichlet, Indices, Natural
from fedsim.dealing import deal
from fedsim.keys import Keys
from fedsim.losses import CrossEntropy, Squared
from fedsim.metrics import (
    RMSE,
    About,
    Accuracy,
    BitsPerToken,
    ByClient,
    ByOwner,
    Confusion,
    GradientNorm,
    MacroF1,
    Metric,
    OfExamples,
    Recall,
)
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
    found = ByOwner(lower=lower).whole(OUT, Y, About(owners))
    assert found == {
        "accuracy_owners_mean": pytest.approx(np.mean(each)),
        "accuracy_owners_worst": max(each) if lower else min(each),
        "accuracy_owners_spread": pytest.approx(np.std(each)),
        f"accuracy_owners_p{90 if lower else 10}": pytest.approx(np.quantile(each, 0.9 if lower else 0.1)),
    }


def clients_of(e: Experiment) -> tuple[list[float], dict[str, Any]]:
    """The accuracy of each honest client by a plain look at its test examples, and what the record has."""
    result, data = run(e), e.task.data.load()
    shards = deal(e, data, Keys(e.seed, e.clients))
    right = (result.predict(data.test.x) == data.test.y).double()
    found = []
    for shard in shards[: e.honest]:
        if isinstance(e.split, Natural):
            assert data.groups is not None
            assert data.test_groups is not None
            mine = torch.isin(data.test_groups, data.groups[shard])
            weight = mine.double()
        else:  # a test example of class c weighs what c is here, over how many of c there are
            mine = data.train.y[shard]
            weight = torch.tensor([float((mine == y).sum() / (data.test.y == y).sum()) for y in data.test.y])
        found.append(float((weight * right).sum() / weight.sum()))
    return found, result.frame.iloc[-1].to_dict()


@pytest.mark.parametrize("split", [Natural(), Dirichlet(0.3), IID()])
def test_by_client(split: Any) -> None:
    e = experiment(ByClient(), split=split, clients=4, byzantine=1)
    found, line = clients_of(e)
    assert line["accuracy_clients"] == pytest.approx(found, abs=1e-5)
    assert line["accuracy_clients_mean"] == pytest.approx(np.mean(found))
    assert line["accuracy_clients_worst"] == pytest.approx(min(found))
    assert line["accuracy_clients_spread"] == pytest.approx(np.std(found))
    assert line["accuracy_clients_p10"] == pytest.approx(np.quantile(found, 0.1))


def test_by_client_with_iid_shares_is_about_the_accuracy_and_names_what_it_needs() -> None:
    even = Indices([[0, 1, 2, 3]] * 2)
    y = np.arange(40) % 2
    e = experiment(
        ByClient(), data=Arrays(np.eye(40, 3), y, test=(np.eye(8, 3), y[:8])), split=even, clients=2
    )
    line = run(e).frame.iloc[-1]
    assert line["accuracy_clients"] == pytest.approx([line["accuracy"]] * 2)
    with pytest.raises(
        Invalid, match=re.escape("ByClient(MacroF1()) on this data set needs one of Accuracy")
    ):
        run(experiment(ByClient(MacroF1()), split=IID()))
    numbers = experiment(
        ByClient(RMSE()), data=Arrays(np.eye(40, 3), y / 2), loss=Squared(), split=IID(), clients=2
    )
    with pytest.raises(Invalid, match="needs examples with owners, or of one class each"):
        run(numbers)


@pytest.mark.parametrize("engine", ["vector", "loop"])
def test_the_success_of_a_backdoor_is_beside_the_accuracy(engine: str) -> None:
    attack = Backdoor(target=1, size=1, value=5.0, boost=3.0)
    e = experiment(clients=3, byzantine=1, attack=attack, rounds=4)
    result, test = run(e, engine=engine), e.task.data.load().test
    assert isinstance(test.x, Tensor)
    shown = test.x[test.y == 0].clone()
    shown[:, -1] = 5.0
    share = float((result.predict(shown) == 1).double().mean())
    assert result.frame["backdoor_success"].iloc[-1] == pytest.approx(share)
    assert share > 0.5
    assert "backdoor_success" not in run(experiment()).frame


def experiment(*metrics: Any, **changes: Any) -> Experiment:
    x = np.random.default_rng(0).normal(size=(60, 3))
    data = changes.pop("data", Arrays(x, (x.sum(1) > 0).astype(int), owner=np.arange(60) % 4))
    task = Task(data, Logistic(), metrics=metrics, loss=changes.pop("loss", CrossEntropy()))
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


@dataclass(frozen=True)
class Bare(Metric):
    def __call__(self, outputs: Tensor, y: Tensor) -> float:
        return 1.0


@dataclass(frozen=True)
class Ones(OfExamples):
    def __call__(self, outputs: Tensor, y: Tensor) -> float:
        return 1.0


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
    with pytest.raises(Invalid, match="metrics = Bare: must be a function of outputs and labels"):
        experiment(Bare())
    assert run(experiment(Ones())).frame["Ones"].iloc[-1] == 1


def test_who_holds_out_keeps_whose_the_examples_are() -> None:
    data = Holdout(Arrays(np.ones((20, 2)), np.arange(20) % 2, owner=np.arange(20)), share=0.25).load()
    assert data.groups is not None
    assert data.test_groups is not None
    assert (len(data.groups), len(data.test_groups)) == (len(data.train), len(data.test))
    assert not set(data.groups.tolist()) & set(data.test_groups.tolist())
    assert isinstance(MacroF1(), Metric)


def test_a_list_on_a_command_line_may_hold_ones_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_metrics.py").write_text("def sure(outputs, y):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    e = codec.update(experiment(), [("task.metrics", "[mine_metrics:sure, ByClient(of=Accuracy), Recall]")])
    assert [metric.name for metric in e.task.metrics] == ["sure", "ByClient", "recall"]


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_gradient_norm_is_that_of_the_mean_over_honest_clients(l2: float) -> None:
    """By hand: autograd of the whole objective in float64, client by client; the Byzantine one's data are left out."""
    e = Experiment(
        task=Task(data=Blobs(), model=Logistic(), metrics=(GradientNorm(),), l2=l2),
        split=Dirichlet(0.3),
        clients=5,
        byzantine=1,
        attack=Backdoor(target=1),
        method=FedSGD(lr=0.1),
        rule=Mean(),
        rounds=3,
        evaluate_every=3,
    )
    result = run(e, dataset=(data := Blobs().load()))
    x = [value.double().requires_grad_() for value in result.model.values()]
    weight, bias = sorted(x, key=lambda t: -t.dim())
    shards = deal(e, data, Keys(e.seed, e.clients))
    total = l2 / 2 * sum(t.square().sum() for t in x)
    for shard in shards[:4]:
        outputs = data.train.x[shard].double().flatten(1) @ weight.T + bias  # type: ignore[index]
        total = total + torch.nn.functional.cross_entropy(outputs, data.train.y[shard]) / 4
    norm = sum(float(g.square().sum()) for g in torch.autograd.grad(total, x))
    assert result.frame["gradient_norm"].iloc[-1] == pytest.approx(norm, rel=1e-4)
