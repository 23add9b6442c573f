"""Other simulators do the same work: with noise too small to matter they end at the same parameters.

A peer's environment is looked for in the folder FEDSIM_PEERS (`fedsim bench peers NAME --into FOLDER`); without it the
peer's test is skipped. Opacus is always there.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from fedsim.check import LEAST_NOISE, Invalid
from fedsim.experiments.bench import against as bench_peers
from fedsim.experiments.bench import rounds as bench_rounds
from fedsim.federation import Federation
from fedsim.privacy import ExampleDP, MessageDP
from fedsim.strategies import FedAvg

FOLDER = Path(os.environ.get("FEDSIM_PEERS", "peers"))
NAMED = bench_rounds.WORKLOADS
WORK = {
    "W1": replace(NAMED["W1"], clients=4),
    "W3": replace(NAMED["W3"], clients=4, privacy=MessageDP(noise=LEAST_NOISE)),
    "W4": replace(NAMED["W4"], clients=7, byzantine=2, privacy=MessageDP(noise=LEAST_NOISE)),
    "W5": replace(NAMED["W5"], clients=4, method=FedAvg(lr=0.1, local_steps=3)),
    "W6": replace(NAMED["W6"], clients=4, privacy=ExampleDP(clip=1.0, noise=LEAST_NOISE)),
    # In steps of 0.1 this network multiplies float32's rounding so much that after three rounds a plain pass in float64
    # is as far from one in float32, 14 % of the way, as any peer.
    "W8": replace(NAMED["W8"], cohort=4, method=FedAvg(lr=0.0001, local_steps=5)),
}
CAN = {
    "pfl": ("W1", "W3", "W5", "W8"),
    "flower": ("W1", "W3", "W5", "W6", "W8"),
    "byzfl": ("W1", "W3", "W4", "W5"),
    "opacus": ("W6",),
}


@pytest.mark.parametrize(
    ("name", "workload"), [(name, each) for name, known in CAN.items() for each in known]
)
def test_a_peer_ends_where_fedsim_does(
    name: str, workload: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        bench_peers.python(name, FOLDER)
    except Invalid as missing:
        pytest.skip(str(missing))
    ends: list[Tensor] = []
    monkeypatch.setattr(
        bench_rounds, "evaluate", lambda model, loss, x, test: {"accuracy": ends.append(x.clone()) or 0.0}
    )
    monkeypatch.setitem(bench_rounds.WORKLOADS, workload, WORK[workload])
    lines = list(bench_rounds.bench_rounds([workload], rounds=1, threads=1, against=[name], peers=FOLDER))
    assert len(ends) == len(lines) == 2 + len(bench_peers.PEERS[name].modes)
    fed = Federation(WORK[workload])
    moved, noise = (ends[-1] - fed.x0).norm(), 0.0
    if fed.ledger is not None:  # of two ends, each with noise of its own; steps of rate 0.1 on a mean
        deviation = fed.deviation(0, fed.cohort(0)).norm() / fed.experiment.clients
        noise = 2 * 0.1 * float(deviation) * len(fed.x0) ** 0.5
    for x in ends:
        assert (x - ends[-1]).norm() < 1e-3 * moved + 2 * noise
