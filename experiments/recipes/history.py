"""Centred clipping (arXiv:2012.10333) and bucketing (arXiv:2006.09365): the MNIST tables of the authors' logs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fedsim.attacks import IPM
from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import GammaSimilarity
from fedsim.experiments.study import Study, axes
from fedsim.models import CNN, MLP
from fedsim.spec import Experiment
from fedsim.strategies import HeavyBall, Median
from fedsim.task import Task

ATTACKS = {
    "BF": {"attack": "SignFlip"},
    "LF": {"attack": "LabelFlip"},
    "mimic": {"attack": "Mimic", "dealt": "honest"},
    "IPM": {"attack": "IPM(0.1)", "dealt": "honest"},
    "ALIE": {"attack": "ALIE", "dealt": "honest"},
}
# Undamped momentum m <- beta m + g is the damped one at step lr / (1 - beta); messages are (1 - beta) as long.
MOMENTUM = {"0": {"method.momentum": 0, "method.lr": 0.01}, "0.9": {"method.momentum": 0.9, "method.lr": 0.1}}
RULES = ("Krum", "CM", "RFA", "CC")
# arXiv:2006.09365, experiment 3, from the authors' output files: rule, momentum, then s = 0 and s = 2 for each attack.
EXPERIMENT_3 = """
Krum 0   27.8 45.1   1.0 20.2  37.3 53.1  36.9 54.1  78.9 72.5
Krum 0.9 10.0 25.5   1.0 43.3  29.0 64.8  10.0 46.8  11.4 10.1
CM   0   37.1 46.9  35.6 52.7  64.3 78.6  50.3 67.5  78.9 86.9
CM   0.9 42.9 63.8  50.6 70.6  57.2 76.5  36.2 59.3   9.9 46.3
RFA  0   68.7 87.6  90.3 91.6  78.9 91.2  14.6 90.6  79.7 91.2
RFA  0.9 82.8 96.8  95.8 97.4  85.9 97.1  13.5 95.9  11.4 91.7
CC   0   75.2 91.7  90.9 91.8  91.5 92.6  91.8 92.6  91.1 91.3
CC   0.9 97.6 97.7  97.6 97.7  97.8 97.8  97.6 97.7  98.0 98.0
"""
NOTES = (
    "Reported: the mean of the last five evaluations over three seeds, computed from the authors' csv files; the "
    "paper's printed numbers may differ slightly.",
    "The authors deal the sorted data to the honest clients and random examples to Byzantine ones. Here they go to the "
    "honest ones where the attack needs no data; under BF and LF all clients hold parts of them.",
    "The network has no dropout.",
)


def rules(momentum: str, mixer: str) -> dict[str, str]:
    """The four rules; the radius of centred clipping is 10 for undamped momentum, so 10 (1 - momentum) for ours."""
    plain = (
        "Krum",
        "Median",
        "RFA(iterations=8)",
        f"CenteredClipping(tau={10 * (1 - float(momentum)):g}, iterations=3)",
    )
    return {name: mixer.format(rule) for name, rule in zip(RULES, plain, strict=True)}


def _base(reduced: bool) -> Experiment:
    return Experiment(
        task=Task(data=MNIST(scaling="standard"), model=MLP(100, "relu") if reduced else CNN("large")),
        split=GammaSimilarity(0.0),
        clients=25,
        byzantine=5,
        attack=IPM(0.1),
        rule=Median(),
        method=HeavyBall(lr=0.01, momentum=0.0),
        batches=Fixed(32),
        rounds=600,
        evaluate_every=30,
    )


def _axes(mixers: dict[str, str], reduced: bool) -> dict[str, Any]:
    """Rule and momentum on one axis, since the radius of centred clipping depends on both."""
    return {
        "rule": {
            f"{name}, beta {momentum}{label}": {"rule": rule, **change}
            for label, mixer in mixers.items()
            for momentum, change in MOMENTUM.items()
            for name, rule in rules(momentum, mixer).items()
        },
        "attack": ATTACKS,
        "seed": range(1 if reduced else 3),
    }


def bucketing(reduced: bool = False) -> Study:
    """Experiment 3 of arXiv:2006.09365: MNIST sorted by label, n = 25, f = 5, with and without buckets of two.

    600 iterations of batches of 32, step 0.01, the large CNN; Krum, median, RFA, centred clipping; momentum 0 and 0.9.
    """
    return _study({"": "{}", ", s = 2": "Chain(Bucketing(2), {})"}, reduced)


def centred_clipping(reduced: bool = False) -> Study:
    """The same MNIST runs without buckets: centred clipping against Krum, median and RFA, momentum 0 and 0.9."""
    return _study({"": "{}"}, reduced)


def _study(mixers: dict[str, str], reduced: bool) -> Study:
    base, notes = _base(reduced), [*NOTES]
    if reduced:
        base = replace(base, rounds=150, evaluate_every=10)
        notes.append("Reduced setting: the 784-100-10 network, 150 iterations, one seed.")
    along = axes(_axes(mixers, reduced))
    reported = [line for line in _experiment_3() if line["rule"] in along["rule"]]
    return Study(base, along, reported=reported, notes=notes, score="last 5")


def _experiment_3() -> Iterator[dict[str, Any]]:
    for line in EXPERIMENT_3.strip().split("\n"):
        rule, momentum, *values = line.split()
        for attack, plain, mixed in zip(ATTACKS, values[::2], values[1::2], strict=True):
            name = f"{rule}, beta {momentum}"
            yield {"rule": name, "attack": attack, "accuracy": float(plain) / 100}
            yield {"rule": f"{name}, s = 2", "attack": attack, "accuracy": float(mixed) / 100}
