"""Error feedback with one untuned schedule against step sizes over five decades."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.batches import Fixed
from fedsim.datasets.holdout import Holdout
from fedsim.datasets.load import CIFAR10, MNIST
from fedsim.datasets.split import Dirichlet, GammaSimilarity
from fedsim.experiments.study import Study, axes
from fedsim.models import MLP, ResNet
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


# As read from the authors' released logs: the last of 91 evaluations, one seed, in percent.
REPORTED = {
    "EF21": 76.10,
    "EF21-SGDM": 73.74,
    "EControl": 74.34,
    "||EF21-HB||": 80.35,
    "||EF21-IGT||": 81.92,
    "||EF21-HM||": 83.11,
    "||EF21-RHM||": 79.62,
    "||EF21-MVR||": 77.66,
}
EPOCH, EPOCHS = 70, 90  # rounds of ten clients with 64 of their 4,500 examples, and how often these are seen


def untuned_resnet(reduced: bool = False) -> Study:
    """CIFAR-10, ResNet, 10 clients, half of the data by label, top 10 % of each layer: the table of arXiv:2511.14501.

    As the authors' code has it: constant steps, eta anew once an epoch, normalized steps by layer.
    6,300 rounds a cell: for a GPU, as `fedsim sweep untuned_resnet --device cuda`.
    """

    def method(name: str, estimator: str, lr: float, power: float = 0.0) -> str:
        decay = f"Decay(power={power:.6f}, every={EPOCH}, lag=1)"
        move = f"Normalized(lr={lr:g}, by_layer=True)" if power else f"Plain(lr={lr:g})"
        up = "ByLayer(inner=TopK(share=0.1))"
        return f"{name}(start=whole, estimator={estimator.format(decay)}, up={up}, move={move})"

    methods = {
        "EF21": method("EF21", "LastGradient", 1.0),
        "EF21-SGDM": method("EF21", "Polyak(eta=0.1)", 0.1),
        "EControl": method("EControl", "LastGradient", 1.0),
        "||EF21-HB||": method("EF21", "Polyak(eta={})", 0.1, 1 / 2),
        "||EF21-IGT||": method("EF21", "IGT(eta={})", 0.1, 4 / 7),
        "||EF21-HM||": method("EF21", "HM(eta={})", 0.1, 2 / 3),
        "||EF21-RHM||": method("EF21", "HM(eta={}, random=True)", 0.1, 2 / 3),
        "||EF21-MVR||": method("EF21", "MVR(eta={})", 0.1, 2 / 3),
    }
    base = Experiment(
        task=Task(data=Holdout(CIFAR10(scaling="standard"), share=0.1), model=ResNet()),
        split=GammaSimilarity(0.5),
        clients=10,
        rule=Mean(),
        method=EF21(),
        batches=Fixed(64),
        rounds=EPOCH * EPOCHS,
        evaluate_every=EPOCH,
    )
    notes = [
        "ResNet-20 with group norm stands for the authors' ResNet-18 with batch norm.",
        "Accuracy is on the tenth held out. Reported: one seed, read from the authors' logs.",
    ]
    if reduced:
        base = replace(base, rounds=EPOCH, evaluate_every=EPOCH // 5)
        notes.append("Reduced setting: one epoch of 90.")
    reported = [{"method": name, "accuracy": percent / 100} for name, percent in REPORTED.items()]
    return Study(base, axes({"method": methods, "seed": range(3)}), reported=reported, notes=notes)
