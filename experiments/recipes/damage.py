"""Damage over training: every attack against seven rules, by the accuracy that is left at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.attacks import ALIE
from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST, Digits
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.study import Study, axes
from fedsim.models import Logistic
from fedsim.schedule import Cosine
from fedsim.spec import Experiment
from fedsim.strategies import HeavyBall, Median
from fedsim.task import Task

RULES = {
    "mean": "Mean",
    "median": "Median",
    "trimmed mean": "TrimmedMean",
    "Krum": "Krum",
    "geometric median": "GeometricMedian",
    "centred clipping": "CenteredClipping(tau=1)",
    "NNM + trimmed mean": "Chain(NNM, TrimmedMean)",
}
PLAIN = {
    "sign flip": "SignFlip",
    "IPM(10)": "IPM",
    "IPM(0.1)": "IPM(0.1)",
    "ALIE": "ALIE",
    "min-max": "MinMax",
    "min-max, unit": "MinMax('unit')",
    "min-sum": "MinSum",
    "mimic": "Mimic",
    "label flip": "LabelFlip",
    "Gaussian": "Gaussian",
}
SEARCHED = {
    "Adaptive(ALIE)": "Adaptive(ALIE)",
    "Adaptive(IPM), reverse": "Adaptive(IPM, objective='reverse', grid=8)",
    "Adaptive(IPM), progress": "Adaptive(IPM, objective='progress', grid=8)",
    "Adaptive(IPM), drift": "Adaptive(IPM, objective='drift', grid=8)",
    "WorstCase": "WorstCase",
    "Portfolio": "Portfolio",
}
SPLITS = {"alike": "IID", "Dirichlet 0.1": "Dirichlet(0.1)"}


def damage(reduced: bool = False) -> Study:
    """25 clients, 5 Byzantine, logistic regression: 16 attacks, seven rules, alike and Dirichlet 0.1, three seeds.

    Heavy ball 0.9, batches of 32, 150 rounds, a step that falls as a cosine so that the last round tells.
    """
    base = Experiment(
        task=Task(data=MNIST(), model=Logistic()),
        split=Dirichlet(0.1),
        clients=25,
        byzantine=5,
        attack=ALIE(),
        knowledge=("own", "honest", "rule"),
        rule=Median(),
        method=HeavyBall(lr=Cosine(0.1, 150)),
        batches=Fixed(32),
        rounds=150,
        evaluate_every=50,
    )
    if reduced:
        task, method = Task(data=Digits(), model=Logistic()), HeavyBall(lr=Cosine(0.3, 60))
        base = replace(base, task=task, method=method, rounds=60, evaluate_every=20)
    table: dict[str, Any] = {"seed": range(3), "split": SPLITS, "rule": RULES, "attack": PLAIN | SEARCHED}
    notes = ["A worst case is compared with the plain attack that leaves the least accuracy, cell by cell."]
    if reduced:
        notes.append("Reduced setting: the 8 x 8 digits in place of MNIST, 60 rounds, step 0.3.")
    return Study(base, axes(table), notes=notes)
