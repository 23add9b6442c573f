"""Error feedback with one untuned schedule against step sizes over five decades."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.study import Study, axes
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import EF21, Mean
from fedsim.task import Task

DECADES = (0.001, 0.01, 0.1, 1, 10)
HALVES = (0.003, 0.03, 0.3, 3)
PLAIN = {"EF21": "LastGradient", "EF21-SGDM": "Polyak(eta=0.1)"}
NORMALIZED = {
    "HB": ("Polyak(eta=Decay(power=0.5))", 0.75),
    "IGT": ("IGT", 0.714286),
    "MVR": ("MVR", 0.666667),
    "HM": ("HM", 0.666667),
}
METHOD = "EF21(start=whole, estimator={}, up=TopK(share=0.1), move={})"


def untuned(reduced: bool = False) -> Study:
    """MNIST, 10 clients, Dirichlet 0.5, top 10 %: EF21 and EF21-SGDM over five decades of lr, ||EF21-..|| with one.

    The claim of arXiv:2511.14501. Normalized: lr (t + 1)^-p and eta (2 / (t + 2))^q as in its theory, lr = 1, untuned.
    MLP of 64 hidden units, batches of 32, 300 rounds. Backprops a round: 1, for MVR and HM 2.
    """
    base = Experiment(
        task=Task(data=MNIST(), model=MLP(64, "relu")),
        split=Dirichlet(0.5),
        clients=10,
        rule=Mean(),
        method=EF21(),
        batches=Fixed(32),
        rounds=300,
        evaluate_every=30,
    )
    plain = {
        f"{name}, lr {lr:g}": METHOD.format(estimator, f"Plain(lr={lr:g})")
        for name, estimator in PLAIN.items()
        for lr in (DECADES if reduced else sorted((*DECADES, *HALVES)))
    }
    normalized = {
        f"||EF21-{name}||": METHOD.format(estimator, f"Normalized(lr=Power(start=1, power={power:g}))")
        for name, (estimator, power) in NORMALIZED.items()
    }
    table: dict[str, Any] = {"method": plain | normalized, "seed": range(3)}
    notes = ["Normalized methods have one step size, 1, which was not searched for."]
    if reduced:
        base = replace(base, rounds=100, evaluate_every=20)
        notes.append("Reduced setting: 100 rounds, whole decades.")
    return Study(base, axes(table), notes=notes)
