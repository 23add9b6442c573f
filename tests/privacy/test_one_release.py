"""A message leaves with the noise of one release: neither bare, nor twice with the same noise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import Tensor

from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.method import Env
from fedsim.models import Logistic
from fedsim.privacy import MessageDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import ByzClipSGD, Mean
from fedsim.task import Task
from fedsim.types import Batch, State


@dataclass(frozen=True)
class Bare(ByzClipSGD):
    """Sends its clipped gradient as it is."""

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        return state, env.grad(x, batch, self.tau)


@dataclass(frozen=True)
class Twice(ByzClipSGD):
    """The difference of two messages whose noise is the same has none."""

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        g = env.grad(x, batch, self.tau)
        return state, env.noisy(g) - env.noisy(g / 2)


@pytest.mark.parametrize("engine", ["loop", "vector", "grid"])
@pytest.mark.parametrize(("method", "sentence"), [(Bare, "without env.noisy"), (Twice, "twice in a round")])
def test_a_message_has_the_noise_of_one_release(method: type[ByzClipSGD], sentence: str, engine: str) -> None:
    experiment = Experiment(
        task=Task(Blobs(train=60, test=20), Logistic()),
        method=method(lr=0.1, tau=0.5),
        rule=Mean(),
        split=IID(),
        privacy=MessageDP(noise=1.0),
        clients=3,
        rounds=1,
    )
    with pytest.raises((Invalid, RuntimeError), match=sentence):
        run(experiment, engine=engine)
