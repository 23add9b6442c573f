"""What a run has made is free when it ends: no reference goes in a circle around its arrays."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
from torch import Tensor

from fedsim import run
from fedsim.attacks import ALIE, WorstCase
from fedsim.batches import Fixed
from fedsim.clock import Clock, LogNormal
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.models import MLP
from fedsim.privacy import ExampleDP
from fedsim.spec import Experiment
from fedsim.strategies import EF21, FedAvg, FedSGD, Mean, Median, MoNNA, Ringleader
from fedsim.task import Task

BASE = Experiment(
    task=Task(data=Blobs(), model=MLP(4)),
    split=IID(),
    clients=8,
    rule=Mean(),
    method=FedSGD(lr=0.1),
    batches=Fixed(5),
    rounds=3,
    evaluate_every=1,
)
ATTACKED = replace(BASE, byzantine=2, attack=ALIE(), rule=Median())


@pytest.mark.parametrize(
    "experiment",
    [
        BASE,
        replace(BASE, privacy=ExampleDP(clip=1.0, noise=1.0)),
        replace(BASE, clock=Clock(LogNormal(1.0, 0.5), deadline=1.2, late="carried")),
        replace(BASE, method=Ringleader(lr=0.1), clock=Clock(LogNormal(1.0, 0.5))),
        replace(ATTACKED, method=EF21()),
        replace(ATTACKED, method=FedAvg(lr=0.1, local_steps=3)),
        replace(ATTACKED, method=MoNNA(lr=0.1)),
        replace(ATTACKED, attack=WorstCase(), knowledge=("own", "honest", "rule")),
    ],
    ids=lambda e: f"{type(e.method).__name__}-{type(e.attack or e.privacy or e.clock).__name__}",
)
def test_no_array_waits_for_the_garbage_collector(experiment: Experiment) -> None:
    run(experiment)  # what is kept from the first run on
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run(experiment)
        gc.collect()
        assert [type(one).__name__ for one in gc.garbage if isinstance(one, Tensor)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
