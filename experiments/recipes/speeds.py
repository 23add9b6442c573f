"""Time as an attack surface: asynchronous methods whose Byzantine clients are fast, slow, or like the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.attacks import SignFlip
from fedsim.batches import Fixed
from fedsim.clock import Clock, Ladder
from fedsim.datasets.load import Digits
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.study import Study, axes
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import NNM, Chain, Ringleader, TrimmedMean
from fedsim.task import Task

METHODS = {
    "Ringleader": "Ringleader(lr=0.05)",
    "Ringleader, n - f": "Ringleader(lr=0.05, missing=2)",
    "Malenia": "Malenia(lr=0.7)",
    "IA2SGD": "IA2SGD(lr=0.05)",
    "ASGD, buffer of 5": "AsyncSGD(lr=0.1, buffer=5)",
    "ASGD, 5 clients": "AsyncSGD(lr=0.1, buffer=5, distinct=True)",
}


def speeds(reduced: bool = False) -> Study:
    """Digits, 10 clients of which 2 send -5 times their gradient: accuracy at a time, by the attackers' speed.

    Clients take 1 + rank seconds and noise (`Ladder(noise=0.5)`), the attackers 0.25 s, 60 s, or as the others. An MLP
    of 32 hidden units, batches of 16, Dirichlet 1; one step size for each method, not tuned.
    """
    base = Experiment(
        task=Task(data=Digits(), model=MLP(32, "relu")),
        split=Dirichlet(1.0),
        clients=10,
        byzantine=2,
        f=2,
        attack=SignFlip(5.0),
        rule=Chain(NNM(), TrimmedMean()),
        method=Ringleader(lr=0.05),
        batches=Fixed(16),
        clock=Clock(Ladder(noise=0.5), horizon=1000.0),
        rounds=100_000,
        evaluate_every=50,
    )
    table: dict[str, Any] = {
        "method": METHODS,
        "attackers": {
            "none": {"byzantine": 0, "attack": "none"},
            "like the others": {"clock.byzantine": "none"},
            "fast": {"clock.byzantine": "Constant(0.25)"},
            "slow": {"clock.byzantine": "Constant(60.0)"},
        },
        "rule": {"mean": "Mean", "NNM + trimmed mean": "Chain(NNM, TrimmedMean)"},
        "seed": range(3 if reduced else 5),
    }
    notes = ["No paper has this table. A run ends at its horizon, not after so many updates."]
    if reduced:
        base = replace(base, clock=Clock(Ladder(noise=0.5), horizon=300.0))
        notes.append("Reduced setting: 300 of 1,000 simulated seconds, three of five seeds.")
    return Study(base, axes(table), notes=notes)
