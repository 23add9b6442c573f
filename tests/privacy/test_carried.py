"""Noise that float32 cannot carry beside its message, and bounds that it cannot keep, are refused before a round."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from torch import Tensor, nn

from fedsim.batches import Batches, Fixed, Full, Poisson
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.flower.client import federation_of
from fedsim.method import Env
from fedsim.models import Logistic
from fedsim.privacy import CentralDP, ExampleDP, MessageDP, Quantile
from fedsim.runner import run
from fedsim.schedule import InverseTime, Milestones
from fedsim.spec import Experiment
from fedsim.strategies import FedAvg, FedSGD, Mean
from fedsim.task import Task
from fedsim.types import Batch, Model, State

MANY = 200_010


def experiment(privacy: ExampleDP | MessageDP | CentralDP, batches: Batches, train: int = 2000) -> Experiment:
    return Experiment(
        task=Task(data=Blobs(train=train, features=1, classes=2), model=Logistic()),
        split=IID(),
        clients=1,
        rule=Mean(),
        method=FedSGD(lr=0.1) if isinstance(privacy, ExampleDP) else FedAvg(lr=0.1, tau=1.0, weights="equal"),
        privacy=privacy,
        batches=batches,
        rounds=2,
    )


@pytest.mark.parametrize(
    ("privacy", "batches", "train", "reason"),
    [
        (ExampleDP(clip=1.0, noise=1.0), Full(), MANY, "one example moves a release by 1e-05 of its bound"),
        (ExampleDP(clip=1.0, noise=1.0), Poisson(rate=0.9), MANY, "moves a release by 5.6e-06 of its bound"),
        (ExampleDP(clip=1.0, noise=0.01), Full(), 50_000, "noise of 4e-07 times the bound .* in round 0"),
        (
            ExampleDP(clip=1.0, noise=0.1, schedule=Milestones(start=1.0, rounds=(1,), factor=0.1)),
            Full(),
            50_000,
            "noise of 4e-07 times the bound .* in round 1",
        ),
        (
            MessageDP(noise=1.0, schedule=InverseTime(start=1.0, period=1e-5)),
            Full(),
            2000,
            "1e-05 in round 1",
        ),
        (ExampleDP(clip=InverseTime(start=1e-5, period=0.1), noise=1.0), Full(), 2000, "9.09e-07 in round 1"),
        (
            CentralDP(noise=1e-3, schedule=Milestones(start=1.0, rounds=(1,))),
            Full(),
            2000,
            "0.0001 in round 1",
        ),
        (MessageDP(epsilon=1e12), Full(), 2000, "noise multiplier of .* in round 0"),
    ],
    ids=repr,
)
def test_what_float32_does_not_carry_is_refused(
    privacy: ExampleDP | MessageDP | CentralDP, batches: Batches, train: int, reason: str
) -> None:
    with pytest.raises(Invalid, match=reason):
        Federation(experiment(privacy, batches, train))


def test_large_batches_and_little_noise_within_seven_digits_stay() -> None:
    Federation(experiment(ExampleDP(clip=1.0, noise=0.5), Full(), 60_000))
    Federation(experiment(ExampleDP(clip=1e6, noise=0.001), Fixed(100)))


@pytest.mark.parametrize(
    ("named", "sent"),
    [
        ('"tau":1.0', '"tau":1e-30'),
        ('"lr":0.1', '"lr":1e-23'),
        ('"noise":5.0', '"noise":1e12'),
        ('"noise":5.0', '"noise":Infinity'),
        ('"tau":1.0', '"tau":NaN'),
    ],
)
def test_a_server_cannot_have_a_client_send_beyond_them(named: str, sent: str) -> None:
    """A client, simulated or on a device, reads the experiment from what the server sends."""
    asked = experiment(MessageDP(noise=5.0), Full())
    text = asked.to_json()
    assert named in text
    with pytest.raises(Invalid):
        federation_of(text.replace(named, sent), asked.fingerprint)


class Unclipped(FedAvg):
    """Sends what it has, whatever its bound says."""

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        return state, env.noisy(env.first_gradient() * 1e4)


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_a_method_that_does_not_clip_as_it_says_is_found_where_noise_is_added(engine: str) -> None:
    """Noise is made for `message_bound`."""
    asked = replace(experiment(MessageDP(noise=5.0), Full()), method=Unclipped(lr=0.1, tau=1.0))
    with pytest.raises(Invalid, match=r"Unclipped: a message of norm .* its message_bound says 1"):
        run(asked, engine=engine)


@dataclass(frozen=True)
class Half(Model):
    """A model that computes in another type."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Logistic().build(shape, classes).half()


def test_parameters_of_another_type_are_refused() -> None:
    task = Task(data=Blobs(features=3, classes=2), model=Half())
    with pytest.raises(Invalid, match=r"parameters of torch.float16; must be torch.float32"):
        Federation(replace(experiment(MessageDP(noise=1.0), Full()), task=task))


@pytest.mark.parametrize("spend", [1e-300, 0.999999999])
def test_what_a_count_spends_has_a_range(spend: float) -> None:
    with pytest.raises(Invalid, match="spend"):
        Quantile(start=1.0, spend=spend)


def test_the_methods_of_the_first_finding_are_refused() -> None:
    """lr = 1e-23 and tau = 1e-30: squares underflow, nothing was clipped, and the noise was beside the message."""
    for make in (
        lambda: FedAvg(lr=1e-23, tau=1e-30),
        lambda: ExampleDP(clip=1e-32, noise=5.0),
        lambda: replace(experiment(MessageDP(noise=1000.0), Full()), method=FedAvg(lr=0.1, tau=1e-30)),
    ):
        with pytest.raises(Invalid, match=r"1e-23|1e-30|1e-32"):
            make()
