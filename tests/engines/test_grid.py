"""The grid engine is the loop to the bit: every method, through Flower's messages; with cohorts, and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_parity import CASES, experiment

from fedsim.attacks import ALIE
from fedsim.batches import Poisson
from fedsim.datasets.split import Dirichlet
from fedsim.runner import Result, run
from fedsim.spec import Experiment
from fedsim.strategies import FedAvg, Mean


def equal(ours: Result, truth: Result) -> None:
    assert ours.model.keys() == truth.model.keys()
    for name, value in truth.model.items():
        assert torch.equal(ours.model[name], value), name
    columns = truth.frame.columns.drop("seconds")
    assert ours.frame[columns].equals(truth.frame[columns])


def both(e: Experiment) -> None:
    equal(run(e, engine="grid", device="cpu"), run(e, engine="loop", device="cpu"))


@pytest.mark.parametrize("case", CASES)
def test_grid_equals_loop(case: str) -> None:
    both(experiment(*CASES[case]))


def test_with_cohorts_uneven_batches_and_a_message_attack() -> None:
    e = experiment(*CASES["ByzClip21SGD2MPlus"])
    both(replace(e, attack=ALIE(), batches=Poisson(size=6), cohort=5, rounds=4))


WEIGHTED = replace(
    experiment(FedAvg(lr=0.5, local_steps=2), Mean(), None),
    split=Dirichlet(0.3),
    byzantine=0,
    attack=None,
    rounds=2,
)


def test_a_mean_weighted_by_examples() -> None:
    both(WEIGHTED)
    both(replace(WEIGHTED, cohort=4))


def test_a_run_on_the_grid_goes_on_where_the_loop_stopped(tmp_path: Path) -> None:
    e = experiment(*CASES["ByzClip21SGD2M"])

    def stop(round: int, _: object) -> None:
        if round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(e, engine="loop", device="cpu", out=tmp_path, progress=stop)
    resumed = run(e, engine="grid", device="cpu", out=tmp_path, resume=True)
    assert all(torch.equal(resumed.model[k], v) for k, v in run(e, engine="loop", device="cpu").model.items())
