"""The studies of privacy's price, on small data: what they measure, and the baseline that they stand beside."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedsim.batches import Fixed, Full
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.experiments.central import central
from fedsim.experiments.recipes.private_signs import excess, figure, private_signs, slopes
from fedsim.experiments.recipes.private_utility import beside_central, private_utility
from fedsim.runner import run
from fedsim.strategies import HeavyBall


def small(study, **changes):
    task = replace(study.base.task, data=Blobs())
    return replace(study, base=replace(study.base, task=task, **changes))


def test_slopes_are_those_of_power_laws():
    mu = np.array([0.1, 0.2, 0.5])
    lines = [
        {"method": name, "mu": m, "excess": 3 * m**p} for name, p in (("a", -2.0), ("b", -1.0)) for m in mu
    ]
    assert slopes(pd.DataFrame(lines)) == pytest.approx({"a": -2.0, "b": -1.0})


def test_noise_costs_dp_sgd_its_square_and_dp_signsgd_itself():
    table = excess(small(private_signs(reduced=True), batches=Fixed(900)))
    found = slopes(table)
    assert found["DP-SGD"] == pytest.approx(-2, abs=0.35)
    assert found["DP-SignSGD"] == pytest.approx(-1, abs=0.25)
    assert figure(table).png().startswith(b"\x89PNG")


def test_one_client_is_as_accurate_as_central_training_by_opacus():
    study = small(private_utility(reduced=True))
    table = beside_central(study)
    assert len(table) == len(study.cells()[0])
    alone = table[table.clients == "1"]
    assert (alone.accuracy - alone.central).abs().max() < 0.05
    assert (table.accuracy > 0.5).all()


def test_the_baseline_has_the_l2_of_the_task():
    """With so large a term that it shows, more than the noise of ten seeds does."""
    base = small(private_utility(reduced=True), clients=1).base
    base = replace(base, task=replace(base.task, l2=0.2))
    runs = [replace(base, seed=seed) for seed in range(10)]
    theirs, ours = np.mean([(central(e), run(e).accuracy) for e in runs], axis=0)
    assert theirs == pytest.approx(ours, abs=0.03)


@pytest.mark.parametrize(
    "changes", [{"method": HeavyBall(lr=1.0)}, {"batches": Full()}, {"privacy": None}, {"batches": Fixed(5)}]
)
def test_the_baseline_refuses_what_is_not_dp_sgd(changes):
    with pytest.raises(Invalid, match="must be FedSGD with ExampleDP"):
        central(small(private_utility(), **changes).base)
