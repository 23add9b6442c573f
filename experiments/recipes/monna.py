"""MoNNA among peers (arXiv:2209.10931), with and without momentum, against other rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.attacks import IPM
from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.study import Study, axes
from fedsim.models import CNN, MLP
from fedsim.schedule import InverseTime
from fedsim.spec import Experiment
from fedsim.strategies import NNA, MoNNA
from fedsim.task import Task

GM = "RFA(nu=0.1, iterations=3, start=origin)"
METHODS = {
    "MoNNA": {"rule": "NNA", "method.momentum": 0.99},
    "MoCWTM": {"rule": "TrimmedMean", "method.momentum": 0.99},
    "MoGM": {"rule": GM, "method.momentum": 0.99},
    "NNA": {"rule": "NNA", "method.momentum": 0.0},
    "BRIDGE (CWTM)": {"rule": "TrimmedMean", "method.momentum": 0.0},
    "GM": {"rule": GM, "method.momentum": 0.0},
}
ATTACKS = {
    "ALIE": {"attack": "Adaptive(ALIE)", "dealt": "honest"},
    "FOE": {"attack": "Adaptive(IPM)", "dealt": "honest"},
    "sign flip": {"attack": "IPM(1)", "dealt": "honest"},
    "label flip": {"attack": "LabelFlip"},
}
FIXED = {
    **ATTACKS,
    "ALIE": {"attack": "ALIE", "dealt": "honest"},
    "FOE": {"attack": "IPM(0.1)", "dealt": "honest"},
}


def monna(reduced: bool = False) -> Study:
    """MNIST of arXiv:2209.10931: n = 26 peers, f = 5, Dirichlet 1 and 5, four attacks with a searched factor.

    600 steps of batches of 25, step 0.75 / (1 + t / 50), L2 1e-4, the small CNN; the accuracy of node 0.
    """
    base = Experiment(
        task=Task(
            data=MNIST(scaling="standard"), model=MLP(100, "relu") if reduced else CNN("small"), l2=1e-4
        ),
        split=Dirichlet(1.0),
        clients=26,
        byzantine=5,
        attack=IPM(1.0),
        knowledge=("own", "honest", "rule"),
        rule=NNA(),
        method=MoNNA(lr=InverseTime(0.75, 50, every=50), momentum=0.99),
        batches=Fixed(25),
        rounds=600,
        evaluate_every=50,
    )
    notes = [
        "The paper prints curves only. Its factor search has 16 evaluations; here `Adaptive` searches a grid.",
        "The paper's label flip forges from the honest nodes' gradients on labels 9 - y; here Byzantine nodes train "
        "on them. SCC (centred clipping around each node's own vector) and LEARN are left out.",
        "Dirichlet deals each class over the nodes, without overlap; the authors draw each node's classes.",
    ]
    table: dict[str, Any] = {
        "method": METHODS,
        "attack": FIXED if reduced else ATTACKS,
        "split.alpha": [1] if reduced else [1, 5],
        "seed": range(1 if reduced else 5),
    }
    if reduced:
        base = replace(base, rounds=100, evaluate_every=25)
        notes.append(
            "Reduced setting: the 784-100-10 network, 100 steps, Dirichlet 1 alone, one seed; ALIE at its own factor "
            "and FOE (IPM) at 0.1 in place of the search, which asks 21 nodes at each of its factors."
        )
    return Study(base, axes(table), notes=notes)
