"""The audit passes what is right and notices what is wrong: each planted fault, at every level and sampling."""

import json
import os
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
from fedsim.experiments.audit.command import audit
from fedsim.experiments.audit.controls import FAULTS, THIN, controls, planted
from fedsim.experiments.audit.shadows import Shadows
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
    scores = fed.watch(heads, 3).scores
    up, down = scores[heads.numpy()], scores[~heads.numpy()]
    mu2 = float(np.mean(up) - np.mean(down))  # N(mu^2 / 2, mu^2) against N(-mu^2 / 2, mu^2)
    most = 3 / 2.5**2  # three releases, if the canaries' gradients are opposite and clipped
    assert mu2 == pytest.approx(most, rel=0.1)
    assert np.mean(up) == pytest.approx(-np.mean(down), abs=0.1 * mu2)
    assert np.var(up) == pytest.approx(mu2, rel=0.15)


def poisson(seed: int) -> Experiment:
    private = ExampleDP(clip=0.5, noise=1.2, delta=DELTA)
    return experiment(batches=Poisson(rate=0.3), privacy=private, rounds=4, seed=seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_correct_run_passes(seed):
    verdict = audit(experiment(seed=seed, rounds=4), runs=400)
    assert verdict.passed, verdict
    assert verdict.proved <= verdict.epsilon
    assert audit(poisson(seed), runs=400).passed


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", [*FAULTS, THIN])
def test_each_planted_fault_is_seen(fault, seed):
    with planted(fault) as factor:
        verdict = audit(poisson(seed), runs=400, noise_factor=factor)
    assert not verdict.passed
    assert verdict.faults


@pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="an hour: FEDSIM_LONG=1")
def test_faults_are_seen_and_correct_runs_pass_at_defaults():
    rows = list(controls(range(20)))
    assert all(row["passed"] == (row["fault"] == "none") for row in rows)


def test_most_of_the_ledger_is_proved_where_nothing_amplifies():
    full = audit(experiment(), runs=1000)
    assert full.proved > 0.6 * full.epsilon


def test_the_audit_says_what_it_would_have_seen():
    verdict = audit(poisson(0), runs=400)
    with_fault = audit(poisson(0), runs=400, noise_factor=verdict.noise_caught - 0.005)
    assert not with_fault.passed
    assert verdict.noise_caught > 0.95
    said = str(verdict)
    for word in ("assumes", "cannot see", "would see", "times the rate of the draw"):
        assert word in said


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
    chosen = replace(experiment(**SETTINGS[name]), rounds=5)
    right = audit(chosen, runs=400)
    assert right.passed, right
    assert 0.9 < right.moved <= 1.001
    wrong = audit(chosen, runs=400, noise_factor=0.6)
    assert not wrong.passed


def test_guesses_alone_prove_that_noise_is_missing():
    wrong = audit(experiment(rounds=10), runs=1000, noise_factor=0.4)
    assert any("guesses prove" in fault for fault in wrong.faults)


def test_a_round_without_noise_is_noticed(monkeypatch):
    honest = Shadows.noisy

    def forgets(self, rows, purpose, round, *args, **kwargs):
        return rows if round == 2 else honest(self, rows, purpose, round, *args, **kwargs)

    monkeypatch.setattr(Shadows, "noisy", forgets)
    verdict = audit(experiment(rounds=4), runs=200)
    assert any("noisy releases of a client, where 4 were due" in fault for fault in verdict.faults)


def test_noise_that_is_not_normal_and_noise_shared_in_part_are_noticed(monkeypatch):
    honest = Shadows.normal

    def uniform(self, z, keys):
        for row, key in zip(z, keys, strict=True):
            row.uniform_(-(3**0.5), 3**0.5, generator=torch.Generator().manual_seed(int(key) >> 1))
        return z

    def shared(self, z, keys):
        common = torch.empty_like(z[0]).normal_(generator=torch.Generator().manual_seed(1))
        return honest(self, z, keys).mul_(0.9**0.5).add_(common, alpha=0.1**0.5)

    for wrong in (uniform, shared):
        monkeypatch.setattr(Shadows, "normal", wrong)
        assert not audit(experiment(rounds=4), runs=400).passed


def test_a_mechanism_that_forgets_to_clip_is_noticed(monkeypatch):
    honest = ClientGradients.prepare
    monkeypatch.setattr(ClientGradients, "prepare", lambda self, x, batch, clip=None: honest(self, x, batch))
    verdict = audit(experiment(rounds=4), runs=200)
    assert any("one example moves a release" in fault for fault in verdict.faults)


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
    words = ["audit", "quick", "--runs", "200", "--set", "rounds=4", "--json"]
    good = CliRunner().invoke(app, words)
    assert good.exit_code == 0
    said = json.loads(good.stdout.splitlines()[-1])
    assert said["passed"]
    assert said["proved"] <= said["epsilon"]
    assert CliRunner().invoke(app, [*words, "--true-noise-factor", "0.1"]).exit_code == 1
    assert CliRunner().invoke(app, ["audit", "mnist_robust"]).exit_code == 2
    central = [
        "--set",
        "privacy=CentralDP(noise=3)",
        "--set",
        "method=ByzClipSGD(lr=0.5, tau=1.0)",
        "--set",
        "rule=Mean",
    ]
    one = CliRunner().invoke(
        app, ["audit", "quick", "--runs", "100", "--set", "attack=none", "--set", "byzantine=0", *central]
    )
    assert one.exit_code == 0, one.output
    assert "one shot, no bound" in one.stdout
