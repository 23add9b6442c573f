"""Privacy, utility and robustness at once: accuracy over epsilon x f x heterogeneity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.attacks import ALIE
from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.study import Study, Tuning, axes
from fedsim.models import MLP
from fedsim.privacy import ExampleDP
from fedsim.spec import Experiment
from fedsim.strategies import NNM, Chain, SafeDSHB, TrimmedMean
from fedsim.task import Task

METHODS = {
    "Safe-DSHB": "SafeDSHB(lr=0.5, tau=inf, beta=0.1)",
    "Byz-Clip21-SGD2M+": "ByzClip21SGD2MPlus(lr=0.5, tau=1, beta=0.1, beta_hat=1)",
}


def surface(reduced: bool = False) -> Study:
    """MNIST, 25 clients: accounted epsilon 0.5 to 8, f = 1 to 10, Dirichlet 0.1 to 10, worst of three attacks.

    Example-level privacy, delta 1e-5, batches of 64, 500 rounds, NNM + trimmed mean; the step tuned for each cell.
    """
    base = Experiment(
        task=Task(data=MNIST(), model=MLP(100, "relu")),
        split=Dirichlet(1.0),
        clients=25,
        byzantine=5,
        attack=ALIE(),
        rule=Chain(NNM(), TrimmedMean()),
        method=SafeDSHB(lr=0.5, tau=float("inf"), beta=0.1),
        privacy=ExampleDP(clip=1.0, epsilon=2.0, delta=1e-5),
        batches=Fixed(64),
        rounds=500,
        evaluate_every=50,
    )
    counts: dict[str, Any] = {str(f): f for f in ((2, 8) if reduced else (1, 2, 5, 8, 10))}
    table: dict[str, Any] = {
        "method": METHODS,
        "attack": {"ALIE": "ALIE", "IPM": "IPM(10)", "label flip": "LabelFlip"},
        "byzantine": counts,
        "split.alpha": [0.1, 10] if reduced else [0.1, 0.3, 1, 10],
        "privacy.epsilon": [0.5, 4] if reduced else [0.5, 1, 2, 4, 8],
        "seed": range(1 if reduced else 3),
    }
    notes = ["Epsilon is accounted, for one example replaced by another, batches of fixed size."]
    if reduced:
        base = replace(base, rounds=60, evaluate_every=20)
        notes.append("Reduced setting: 60 rounds, two values on each axis, step 0.5 throughout, one seed.")
    tuning = None if reduced else Tuning(grid={"method.lr": ("2", "0.5", "0.1")})
    return Study(base, axes(table), tuning, notes=notes)
