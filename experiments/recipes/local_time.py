"""Local SGD in time: what local steps are worth when a round costs tau seconds and a gradient h."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.batches import Fixed
from fedsim.clock import Clock, Constant
from fedsim.datasets.load import Digits
from fedsim.datasets.split import IID
from fedsim.experiments.study import Study, Tuning, axes
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import Mean, MinibatchSGD
from fedsim.task import Task

METHODS = {
    "Minibatch": "MinibatchSGD(lr=0.1,local_steps=1)",
    "Local": "FedAvg(lr=0.1,local_steps=1,weights=equal)",
    "Dual": "DualLocalSGD(lr=0.1,local_steps=1)",
    "Decaying": "DecayingLocalSGD(lr=0.1,local_steps=1)",
}
HERO = {"method": METHODS["Local"], "clients": "1", "clock.network": "none"}


def local_time(reduced: bool = False) -> Study:
    """Digits, 16 clients with data alike, batches of one example, h = 1 s: loss and accuracy after 1,000 s.

    A round of K local steps lasts tau + K h. Step size and K are tuned for each method and tau on held-out data; Hero
    is one client with all data, alone. Regimes of arXiv:2509.23207. An MLP of 32 hidden units.
    """
    base = Experiment(
        task=Task(data=Digits(), model=MLP(32, "relu")),
        split=IID(),
        clients=16,
        rule=Mean(),
        method=MinibatchSGD(lr=0.1),
        batches=Fixed(1),
        clock=Clock(Constant(1.0), horizon=1000.0),
        rounds=100_000,
        evaluate_every=5,
    )
    timed = {
        f"tau {tau:g}, {name}": {
            "method": method,
            "clock.network": f"Bandwidth(latency={tau / 2})" if tau else "none",
        }
        for tau in (0, 1, 10, 100)
        for name, method in METHODS.items()
    }
    grid = {
        "method.lr": ("0.003", "0.01", "0.03", "0.1", "0.3"),
        "method.local_steps": ("1", "4", "16", "64"),
    }
    notes = [
        "The paper's figures have other problems, over rounds; here the regimes are looked at, not its numbers.",
    ]
    table: dict[str, Any] = {"setting": {"Hero": HERO, **timed}, "seed": range(3 if reduced else 10)}
    if reduced:
        base = replace(base, clock=Clock(Constant(1.0), horizon=400.0))
        grid |= {"method.lr": ("0.01", "0.03", "0.1"), "method.local_steps": ("1", "8", "64")}
        notes.append("Reduced setting: 400 of 1,000 seconds, 3 of 10 seeds, 9 of 20 points of the grid.")
    return Study(base, axes(table), Tuning(grid=grid), notes=notes)
