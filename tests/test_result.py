"""A result is written and read again, and tells labels as its network does."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedsim import Experiment, Invalid, Task, load, run
from fedsim.datasets.holdout import Holdout
from fedsim.datasets.load import Arrays, Blobs
from fedsim.datasets.split import IID
from fedsim.experiments.load import load as frame_of
from fedsim.losses import Binary, Squared
from fedsim.models import MLP, Frozen, Logistic
from fedsim.strategies import FedSGD, Mean

BASE = Experiment(
    task=Task(data=Blobs(train=60, test=40, features=4, classes=3), model=MLP(5)),
    split=IID(),
    clients=3,
    rule=Mean(),
    method=FedSGD(0.5),
    rounds=4,
    evaluate_every=2,
)
X = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)


class Both(nn.Module):
    """Two inputs, of which one is a token; a buffer that no state_dict of a run has."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(3, 2), nn.Linear(4, classes)
        self.register_buffer("shift", torch.ones(1))

    def forward(self, kind: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.token(kind), value + self.shift], 1))
        return out


def test_what_was_measured_is_what_it_tells(tmp_path: Path) -> None:
    result = run(BASE, out=tmp_path / "run")
    test = BASE.task.data.load().test
    assert isinstance(test.x, Tensor)
    for each in (result, load(tmp_path / "run")):
        told = each.predict(test.x.numpy())
        assert float((told == test.y).double().mean()) == pytest.approx(result.accuracy)
        torch.testing.assert_close(told, each.outputs(test.x).argmax(1))
        assert each.evaluate(test) == {key: result.summary[key] for key in ("accuracy", "loss")}


def test_the_true_test_part_after_a_holdout() -> None:
    result = run(replace(BASE, task=replace(BASE.task, data=Holdout(BASE.task.data))))
    test = BASE.task.data.load().test
    found = result.evaluate(test)
    assert found["accuracy"] == float((result.predict(test.x) == test.y).double().mean())
    assert found != {key: result.summary[key] for key in ("accuracy", "loss")}


@pytest.mark.parametrize("keep", ["run", "save"])
def test_read_again_it_is_the_same(tmp_path: Path, keep: str) -> None:
    e = replace(BASE, task=replace(BASE.task, model=Frozen(MLP(5), ("1.*",))))
    place = tmp_path / "there"
    result = run(e, out=place if keep == "run" else None)
    if keep == "save":
        assert result.save(place) == place
    again = load(place)
    pd.testing.assert_frame_equal(again.frame, result.frame)
    assert again.experiment == e
    assert again.notes == result.notes
    assert again.signature == result.signature
    assert {**again.summary, "out": None} == {**result.summary, "out": None}
    assert all(torch.equal(value, result.model[name]) for name, value in again.model.items())
    assert len(frame_of(tmp_path)) == 2  # the report's reader finds it, too
    with pytest.raises(Invalid, match="holds the record of a run; allowed is a new folder"):
        result.save(place)


def test_two_lines_in_another_process(tmp_path: Path) -> None:
    result = run(BASE, out=tmp_path)
    code = f"import fedsim; print(fedsim.load({str(tmp_path)!r}).predict([[0.0] * 4]).tolist())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == f"{result.predict(np.zeros((1, 4))).tolist()}\n"


def test_several_inputs_and_a_network_that_is_an_object(tmp_path: Path) -> None:
    net = Both()
    x = {"kind": np.arange(30) % 3, "value": X}
    e = replace(BASE, task=Task(Arrays(x, np.arange(30) % 2), net))
    result = run(e, out=tmp_path)
    out = result.outputs(
        {"kind": [0, 2], "value": [[1, 2], [3, 4]]}
    )  # whole numbers become what the network takes
    again = load(tmp_path, net=Both())
    torch.testing.assert_close(again.outputs({"kind": [0, 2], "value": [[1, 2], [3, 4]]}), out)
    assert result.predict({"kind": [0, 2], "value": X[:2]}).dtype == torch.int64
    pair = run(replace(BASE, task=Task(Arrays((x["kind"], X), np.arange(30) % 2), net))).outputs(
        ([0, 2], X[:2])
    )
    torch.testing.assert_close(pair, result.outputs({"kind": [0, 2], "value": X[:2]}))
    with pytest.raises(Invalid, match="was in the memory of another process"):
        load(tmp_path).predict(x)
    with pytest.raises(Invalid, match=re.escape("x: inputs ['kind']; must be ['kind', 'value']")):
        result.predict({"kind": [0]})


def test_numbers_and_yes_or_no() -> None:
    number = run(replace(BASE, task=Task(Arrays(X, X.sum(1)), Logistic(), loss=Squared())))
    assert number.predict(X).shape == (30,)
    with pytest.raises(Invalid, match="accuracy: there is none where labels are numbers"):
        number.accuracy  # noqa: B018
    binary = run(replace(BASE, task=Task(Arrays(X, (X.sum(1) > 0) * 1.0), Logistic(), loss=Binary())))
    assert set(binary.predict(X).tolist()) <= {0, 1}


@pytest.mark.parametrize("x", [[1.0], [[1.0]], 1.0, [[1.0] * 5]])
def test_inputs_of_another_shape(x: Any) -> None:
    with pytest.raises(Invalid, match=re.escape("must be (b, 4), b examples")):
        run(BASE).predict(x)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="holds no record of a run"):
        load(tmp_path)
    run(BASE, out=tmp_path)
    (tmp_path / "model.pt").write_bytes(b"not a model")
    with pytest.raises(Invalid, match=r"model.pt: not a readable model \("):
        load(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(Invalid, match=r"result.json: not the result of a run"):
        load(tmp_path)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(Invalid, match="has not come to its end yet"):
        load(tmp_path)
