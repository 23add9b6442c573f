"""Tasks that a newcomer would try: at most 20 lines each, imports among them, alike on the loop and vector engines."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import Experiment, run

LINES = 20


def numpy_binary_classification() -> Experiment:
    import numpy as np

    from fedsim import Experiment, Task
    from fedsim.datasets.load import Arrays
    from fedsim.datasets.split import IID
    from fedsim.losses import Binary
    from fedsim.models import Logistic
    from fedsim.strategies import FedAvg, Mean

    x = np.random.default_rng(0).normal(size=(120, 4))
    task = Task(Arrays(x, (x @ [1, -2, 1, 0] > 0) * 1.0), Logistic(), loss=Binary())
    return Experiment(task=task, split=IID(), clients=6, method=FedAvg(lr=1.0), rule=Mean(), rounds=8)


def pandas_regression() -> Experiment:
    import numpy as np
    import pandas as pd

    from fedsim import Experiment, Task
    from fedsim.datasets.load import Table
    from fedsim.datasets.split import Natural
    from fedsim.losses import Huber
    from fedsim.metrics import RMSE
    from fedsim.models import MLP
    from fedsim.strategies import FedSGD, Median

    rng = np.random.default_rng(0)
    stays = pd.DataFrame({"age": rng.integers(20, 80, 120), "ward": rng.choice(["a", "b"], 120)})
    stays["days"], stays["clinic"] = stays.age / 20 + (stays.ward == "b"), np.arange(120) % 6
    stays.to_csv("stays.csv", index=False)
    data = Table("stays.csv", label="days", kind="numbers", owner="clinic", scale=(("age", 50.0, 20.0),))
    task = Task(data, MLP(8), loss=Huber(), metrics=(RMSE(),))
    return Experiment(task=task, split=Natural(), clients=6, method=FedSGD(lr=0.3), rule=Median(), rounds=8)


def lstm_on_text() -> Experiment:
    from pathlib import Path

    from fedsim import Experiment, Task
    from fedsim.datasets.load import Text
    from fedsim.datasets.split import IID
    from fedsim.models import LSTM
    from fedsim.strategies import FedAvg, Mean

    Path("rhyme.txt").write_text("one two three four five, once I caught a fish alive\n" * 12)
    task = Task(Text("rhyme.txt", window=8), LSTM(width=8, layers=1, embedding=4))
    return Experiment(task=task, split=IID(), clients=4, method=FedAvg(lr=2.0), rule=Mean(), rounds=8)


def transformer_on_text() -> Experiment:
    from pathlib import Path

    from fedsim import Experiment, Task
    from fedsim.datasets.load import Text
    from fedsim.datasets.split import IID
    from fedsim.models import GPT
    from fedsim.privacy import ExampleDP
    from fedsim.strategies import Adam, Mean

    Path("rhyme.txt").write_text("one two three four five, once I caught a fish alive\n" * 12)
    task = Task(Text("rhyme.txt", window=8), GPT(width=8, layers=1, heads=2))
    private = ExampleDP(clip=1.0, noise=1.0, delta=1e-3)
    return Experiment(
        task=task, split=IID(), clients=4, method=Adam(lr=0.01), rule=Mean(), privacy=private, rounds=8
    )


def two_inputs() -> Experiment:
    import numpy as np
    from torch import cat, nn

    from fedsim import Experiment, Task
    from fedsim.datasets.load import Arrays
    from fedsim.datasets.split import IID
    from fedsim.strategies import FedAvg, Mean

    class Net(nn.Module):
        def __init__(self):  # type: ignore[no-untyped-def]
            super().__init__()
            self.kind, self.out = nn.Embedding(3, 2), nn.Linear(4, 2)

        def forward(self, kind, size):  # type: ignore[no-untyped-def]
            return self.out(cat([self.kind(kind), size], 1))

    kind, size = np.arange(90) % 3, np.random.default_rng(0).normal(size=(90, 2))
    task = Task(Arrays({"kind": kind, "size": size}, (kind + size[:, 0] > 1).astype(int)), Net())
    return Experiment(task=task, split=IID(), clients=3, method=FedAvg(lr=0.5), rule=Mean(), rounds=8)


def frozen_backbone_with_a_new_head() -> Experiment:
    import torch
    from torch import nn

    from fedsim import Experiment, Task
    from fedsim.datasets.load import Blobs
    from fedsim.datasets.split import IID
    from fedsim.models import Frozen, Pretrained, own
    from fedsim.strategies import FedSGD, Krum

    def net(classes):  # type: ignore[no-untyped-def]
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, classes))

    torch.save(net(7).state_dict(), "before.pt")
    model = Frozen(Pretrained(own(net)(), "before.pt", leave=("2.*",)), ("0.*",))
    task = Task(Blobs(train=120, test=40, features=5, classes=3), model)
    return Experiment(
        task=task, split=IID(), clients=6, byzantine=1, method=FedSGD(lr=0.5), rule=Krum(), rounds=8
    )


def a_split_as_lists_of_indices() -> Experiment:
    from fedsim import Experiment, Task
    from fedsim.attacks import IPM
    from fedsim.datasets.load import Blobs
    from fedsim.datasets.split import Indices
    from fedsim.models import Logistic
    from fedsim.strategies import HeavyBall, TrimmedMean

    mine = Indices([range(0, 10), range(10, 40), range(40, 100), [100, 102, 104], range(105, 120)])
    task = Task(Blobs(train=120, test=40, features=5, classes=3), Logistic())
    return Experiment(
        task=task, split=mine, clients=5, byzantine=1, attack=IPM(3.0), method=HeavyBall(lr=0.5),
        rule=TrimmedMean(), rounds=8,
    )  # fmt: skip


def fedprox() -> Experiment:
    from fedsim import Experiment, Task
    from fedsim.datasets.load import Blobs
    from fedsim.datasets.split import Shards
    from fedsim.models import Logistic
    from fedsim.strategies import FedProx, Mean

    task = Task(Blobs(train=120, test=40, features=5, classes=3), Logistic())
    prox = FedProx(lr=0.3, local_steps=4, mu=0.1)
    return Experiment(task=task, split=Shards(), clients=6, method=prox, rule=Mean(), rounds=8)


def scaffold_at_a_fifth_of_the_clients() -> Experiment:
    from fedsim import Experiment, Task
    from fedsim.batches import Fixed
    from fedsim.datasets.load import Blobs
    from fedsim.datasets.split import Dirichlet
    from fedsim.models import Logistic
    from fedsim.strategies import SCAFFOLD, Mean

    task = Task(Blobs(train=300, test=60, features=5, classes=3), Logistic())
    scaffold = SCAFFOLD(lr=0.2, local_steps=4)
    return Experiment(
        task=task,
        split=Dirichlet(0.3),
        clients=20,
        cohort=4,
        method=scaffold,
        rule=Mean(),
        batches=Fixed(5),
        rounds=8,
    )


def a_metric_of_my_own() -> Experiment:
    from fedsim import Experiment, Task
    from fedsim.datasets.load import Blobs
    from fedsim.datasets.split import Dirichlet
    from fedsim.metrics import ByClient
    from fedsim.models import Logistic
    from fedsim.strategies import FedAvg, Mean

    task = Task(Blobs(train=120, test=40, features=5, classes=3), Logistic(), metrics=(ByClient(), sure))
    return Experiment(task=task, split=Dirichlet(), clients=5, method=FedAvg(lr=0.5), rule=Mean(), rounds=8)


def sure(outputs, y):  # type: ignore[no-untyped-def]
    return outputs.softmax(1).amax(1).mean()


def a_loss_of_my_own() -> Experiment:
    import numpy as np

    from fedsim import Experiment, Task
    from fedsim.datasets.load import Arrays
    from fedsim.datasets.split import IID
    from fedsim.models import Logistic
    from fedsim.strategies import FedSGD, GeometricMedian

    x = np.random.default_rng(0).normal(size=(100, 3))
    task = Task(Arrays(x, x.sum(1)), Logistic(), loss=ninth_tenth)
    return Experiment(
        task=task, split=IID(), clients=5, method=FedSGD(lr=0.5), rule=GeometricMedian(), rounds=8
    )


def ninth_tenth(outputs, y):  # type: ignore[no-untyped-def]
    error = y - outputs.squeeze(1)
    return (0.9 * error).maximum(-0.1 * error)


TASKS: list[Callable[[], Experiment]] = [
    numpy_binary_classification,
    pandas_regression,
    lstm_on_text,
    transformer_on_text,
    two_inputs,
    frozen_backbone_with_a_new_head,
    a_split_as_lists_of_indices,
    fedprox,
    scaffold_at_a_fifth_of_the_clients,
    a_metric_of_my_own,
    a_loss_of_my_own,
]
BESIDE: dict[str, Any] = {"a_metric_of_my_own": sure, "a_loss_of_my_own": ninth_tenth}


def lines(made: Callable[..., Any]) -> int:
    """The lines of a task: of its function but for the first, and of what stands beside it."""
    text = [line for line in inspect.getsource(made).splitlines()[1:] if line.strip()]
    beside = BESIDE.get(made.__name__)
    return len(text) + (len(inspect.getsource(beside).splitlines()) if beside else 0)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_task_takes_few_lines_and_learns_alike_on_both_engines(
    task: Callable[[], Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lines(task) <= LINES
    e = task()
    loop, vector = (run(e, engine=engine) for engine in ("loop", "vector"))
    for name, value in loop.model.items():
        torch.testing.assert_close(vector.model[name], value, rtol=1e-4, atol=1e-5)
    for name, value in loop.frame.iloc[-1].items():
        if name != "seconds" and isinstance(value, float):
            assert vector.frame.iloc[-1][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert vector.summary["loss"] < start(e)


def start(e: Experiment) -> float:
    """The loss before the first round."""
    from fedsim.federation import Federation
    from fedsim.task import evaluate

    fed = Federation(e)
    return evaluate(fed.model, fed.loss, fed.x0, fed.test)["loss"]
