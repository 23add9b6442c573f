"""The audit passes what is right and notices what is wrong: less noise than booked, at every level and sampling."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedsim.attacks import IPM
from fedsim.batches import Epochs, Fixed, Full, Poisson
from fedsim.check import Invalid
from fedsim.cli.app import app
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.experiments.audit.canary import Shadows
from fedsim.experiments.audit.command import audit
from fedsim.gradients import ClientGradients
from fedsim.models import Logistic
from fedsim.privacy import CentralDP, ExampleDP, MessageDP, Quantile
from fedsim.schedule import InverseTime, Milestones
from fedsim.spec import Experiment
from fedsim.strategies import ByzClip21SGD2M, ByzClip21SGD2MPlus, ByzClipSGD, FedAvg, FedSGD, Mean
from fedsim.task import Task

DELTA = 1e-3


def experiment(**changes) -> Experiment:
    base = Experiment(
        task=Task(data=Blobs(), model=Logistic(), l2=1e-3),
        split=IID(),
        clients=40,
        rule=Mean(),
        method=FedSGD(lr=0.5),
        privacy=ExampleDP(clip=0.5, noise=2.5, delta=DELTA),
        rounds=40,
    )
    return replace(base, **changes)


def test_the_scores_are_log_likelihood_ratios_of_the_mechanism():
    fed = Shadows(experiment(), 3000, 1.0, "cpu", None)
    heads = torch.arange(3000) % 2 == 0
    scores = fed.watch(heads, 3)
    up, down = scores[heads.numpy()], scores[~heads.numpy()]
    mu2 = float(np.mean(up) - np.mean(down))  # N(mu^2 / 2, mu^2) against N(-mu^2 / 2, mu^2)
    most = 3 / 2.5**2  # three releases, if the canaries' gradients are opposite and clipped
    assert 0.6 * most < mu2 < most * 1.1
    assert np.mean(up) == pytest.approx(-np.mean(down), abs=0.1 * mu2)
    assert np.var(up) == pytest.approx(mu2, rel=0.15)


@pytest.mark.parametrize("seed", range(20))
def test_a_correct_run_passes_and_one_with_a_quarter_of_the_noise_does_not(seed):
    verdict = audit(experiment(seed=seed), runs=1000)
    assert verdict.passed
    assert verdict.posterior[0] <= verdict.epsilon <= 2
    assert not audit(experiment(seed=seed), runs=1000, noise_factor=0.25).passed


SETTINGS = {
    "poisson": {"batches": Poisson(rate=0.3), "privacy": ExampleDP(clip=0.5, noise=1.2, delta=DELTA)},
    "epochs": {"batches": Epochs(5)},
    "fixed": {
        "batches": Fixed(6),
        "privacy": ExampleDP(clip=0.5, noise=2.5, delta=DELTA, accountant="exact"),
    },
    "fixed, amplified": {"batches": Fixed(6), "privacy": ExampleDP(clip=0.5, noise=1.0, delta=DELTA)},
    "local steps": {"method": FedAvg(lr=0.1, local_steps=2)},
    "two momenta": {"method": ByzClip21SGD2MPlus(lr=0.5, tau=1.0)},
    "by layer": {"privacy": ExampleDP(clip=0.5, noise=2.5, delta=DELTA, by_layer=True)},
    "adaptive clip": {"privacy": ExampleDP(clip=Quantile(start=0.5), noise=2.5, delta=DELTA)},
    "schedules": {
        "privacy": ExampleDP(
            clip=InverseTime(0.5, 9), noise=2.5, delta=DELTA, schedule=Milestones(1.0, (2,), 2.0)
        )
    },
    "budget": {"privacy": ExampleDP(clip=0.5, epsilon=8.0, delta=DELTA)},
    "local steps, messages": {
        "method": FedAvg(lr=0.1, local_steps=2, tau=0.1),
        "privacy": MessageDP(noise=2.5, delta=DELTA),
    },
    "messages": {"method": ByzClipSGD(lr=0.5, tau=0.1), "privacy": MessageDP(noise=2.5, delta=DELTA)},
    "error feedback": {
        "method": ByzClip21SGD2M(lr=0.5, tau=0.1),
        "privacy": MessageDP(epsilon=8.0, delta=DELTA),
    },
    "attacked": {"clients": 50, "byzantine": 10, "dealt": "honest", "attack": IPM(), "batches": Full()},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_level_and_sampling_is_audited(name):
    chosen = experiment(**SETTINGS[name])
    assert audit(chosen, runs=2400).passed
    wrong = audit(chosen, runs=2400, noise_factor=0.2)
    assert not wrong.passed
    assert wrong.posterior[0] > wrong.epsilon


def test_a_mechanism_that_forgets_to_clip_is_noticed(monkeypatch):
    honest = ClientGradients.prepare
    monkeypatch.setattr(ClientGradients, "prepare", lambda self, x, batch, clip=None: honest(self, x, batch))
    assert not audit(experiment(), runs=1000).passed


def test_an_adversary_of_amplified_sampling_knows_not_what_the_draw_decides():
    # With almost no noise whoever knew the draw would prove any epsilon; the amplified ledger must still hold.
    chosen = experiment(
        batches=Poisson(rate=0.05), privacy=ExampleDP(clip=0.5, noise=0.5, delta=1e-2), rounds=1
    )
    assert audit(chosen, runs=4000).passed


@pytest.mark.parametrize("privacy", [None, CentralDP(noise=1.0)])
def test_without_noise_on_the_clients_there_is_nothing_to_audit(privacy):
    with pytest.raises(Invalid, match="nothing to test where clients add no noise"):
        audit(experiment(privacy=privacy, method=ByzClipSGD(lr=0.5, tau=0.1)))


def test_the_command_exits_with_1_where_more_is_proved_than_booked():
    words = ["audit", "quick", "--runs", "1200", "--json"]
    good = CliRunner().invoke(app, words)
    assert good.exit_code == 0
    said = json.loads(good.stdout.splitlines()[-1])
    assert said["passed"]
    assert said["posterior"][0] <= said["epsilon"]
    assert CliRunner().invoke(app, [*words, "--true-noise-factor", "0.1"]).exit_code == 1
    assert CliRunner().invoke(app, ["audit", "mnist_robust"]).exit_code == 2
