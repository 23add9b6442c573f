"""A robustness study on CIFAR-10, sized for one GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.attacks import ALIE
from fedsim.batches import Fixed
from fedsim.datasets.load import CIFAR10
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.study import Study, axes
from fedsim.models import CNN, ResNet
from fedsim.schedule import Milestones
from fedsim.spec import Experiment
from fedsim.strategies import NNM, Chain, HeavyBall, TrimmedMean
from fedsim.task import Task

RULES = {
    "mean": "Mean",
    "median": "Median",
    "NNM + median": "Chain(NNM, Median)",
    "NNM + trimmed mean": "Chain(NNM, TrimmedMean)",
    "NNM + Krum": "Chain(NNM, Krum)",
    "centred clipping": "CenteredClipping(1)",
}
ATTACKS = {"ALIE": "ALIE", "IPM 0.1": "IPM(0.1)", "sign flip": "SignFlip", "label flip": "LabelFlip"}


def cifar_robust(reduced: bool = False) -> Study:
    """CIFAR-10, n = 17, f = 3, Dirichlet 1 and 10: six rules, four attacks, ResNet-20 with group norm.

    Robust heavy ball, 2,000 rounds of batches of 50, step 0.25, then 0.025 from round 1,500 (as arXiv:2302.01772).
    """
    base = Experiment(
        task=Task(data=CIFAR10(scaling="standard"), model=ResNet(), l2=1e-4),
        split=Dirichlet(1.0),
        clients=17,
        byzantine=3,
        attack=ALIE(),
        rule=Chain(NNM(), TrimmedMean()),
        method=HeavyBall(lr=Milestones(0.25, (1500,)), momentum=0.9),
        batches=Fixed(50),
        rounds=2000,
        evaluate_every=100,
    )
    notes = [
        "No augmentation. The paper's CIFAR-10 results are curves; there is no table to set beside these."
    ]
    table: dict[str, Any] = {
        "rule": RULES,
        "attack": ATTACKS,
        "split.alpha": [1] if reduced else [1, 10],
        "seed": range(1 if reduced else 3),
    }
    if reduced:
        task = replace(base.task, model=CNN("small"))
        base = replace(base, task=task, rounds=100, evaluate_every=20, batches=Fixed(20))
        notes.append(
            "Reduced setting for two cores: the small CNN, 100 rounds of batches of 20, Dirichlet 1, one seed."
        )
    return Study(base, axes(table), notes=notes)
