"""What an experiment brought to life promises: noise that is nowhere the same, and inputs that a clip can bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsim.attacks import IPM
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import FedAvg, Mean
from fedsim.task import Task
from fedsim.types import Examples

BASE = Experiment(
    task=Task(data=Blobs(), model=Logistic()),
    split=IID(),
    clients=100,
    rule=Mean(),
    method=FedAvg(lr=0.1, local_steps=20),
    privacy=ExampleDP(clip=1.0, noise=1.0, delta=1e-4),
    rounds=200,
    seed=2134,
)


def test_no_two_gradients_of_a_run_get_the_same_noise() -> None:
    """With a purpose for every local step, step 8 of round 0 and step 18 of round 46 had at this seed."""
    fed = Federation(BASE)
    first, second = (
        fed.noisy(torch.zeros(1, fed.x0.numel()), "gradient", round, np.array([client]), call)
        for round, client, call in ((0, 0, 8), (46, 30, 18))
    )
    assert not torch.equal(first, second)
    few = Federation(replace(BASE, clients=3))
    noise = [
        few.noisy(torch.zeros(3, few.x0.numel()), "gradient", round, np.arange(3), call)
        for round in range(4)
        for call in range(20)
    ]
    assert len(torch.cat(noise)[:, 0].unique()) == 3 * 4 * 20


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_inputs_that_no_clip_bounds_are_refused(broken: float) -> None:
    dataset = BASE.task.data.load()
    dataset.train.x[7, 3] = broken
    with pytest.raises(Invalid, match="training example 7 holds NaN or Inf"):
        run(BASE, dataset=dataset)
    dataset.train.x[7] = 3e38  # their sum is not finite, and they are
    Federation(BASE, dataset=dataset)


def test_byzantine_clients_without_data_need_an_attack() -> None:
    attacked = replace(BASE, byzantine=5, dealt="honest", attack=IPM(10.0))
    with pytest.raises(
        Invalid, match=r"attack = none: the 5 Byzantine clients have nothing to send; .* f = 5"
    ):
        replace(attacked, attack=None)
    Federation(replace(attacked, attack=None, byzantine=0, f=5))


@pytest.mark.parametrize("part", ["training", "test"])
def test_labels_that_are_fewer_than_inputs_are_refused(part: str) -> None:
    data = Blobs().load()
    some = data.train if part == "training" else data.test
    short = replace(data, **{"train" if part == "training" else "test": Examples(some.x, some.y[:-1])})
    e = Experiment(
        task=Task(data=Blobs(), model=Logistic()), method=FedAvg(lr=0.1), rule=Mean(), split=IID(), clients=5
    )
    with pytest.raises(Invalid, match=rf"{len(some)} {part} inputs x and {len(some) - 1} labels y"):
        Federation(e, dataset=short)
