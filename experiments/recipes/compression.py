"""Compressed messages under attack: what fewer bits cost, behind which rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.attacks import ALIE
from fedsim.batches import Fixed
from fedsim.datasets.load import Digits
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.study import Study, axes
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import NNM, Chain, HeavyBall, TrimmedMean
from fedsim.task import Task

EF21 = "EF21(estimator=Polyak(eta=0.1), move=Plain(lr=0.3), up={})"
METHODS = {
    "heavy ball, 32 bits": "HeavyBall(lr=0.3, momentum=0.9)",
    "natural, 9 bits": EF21.format("All(coder=NaturalCompression)"),
    "top 10 %, 4.2 bits": EF21.format("TopK(share=0.1)"),
    "top 10 % natural, 1.9 bits": EF21.format("TopK(share=0.1, coder=NaturalCompression)"),
    "rank 1": EF21.format("RankK(rank=1)"),
    "scaled signs, 1 bit": EF21.format("All(coder=Signs)"),
    "top 1 %, 0.5 bits": EF21.format("TopK(share=0.01)"),
    "random 10 %, 3.2 bits": EF21.format("RandK(share=0.1, unbiased=False)"),
}
REDUCED = (
    "heavy ball, 32 bits",
    "natural, 9 bits",
    "top 10 %, 4.2 bits",
    "scaled signs, 1 bit",
    "top 1 %, 0.5 bits",
)
ATTACKS: dict[str, Any] = {
    "none": {"attack": "none", "byzantine": "0"},
    "sign flip": "SignFlip",
    "ALIE": "ALIE",
    "IPM": "IPM(10)",
    "mimic": "Mimic",
    "sparse": "Concentrated(share=0.1, places=rarest)",
}


def compression(reduced: bool = False) -> Study:
    """Digits, 25 clients, 5 Byzantine, Dirichlet 1: seven compressors of EF21-SGDM, three rules, five attacks or none.

    MLP of 64 hidden units, batches of 32, 200 rounds, one step size for all; forged messages are compressed as well.
    """
    base = Experiment(
        task=Task(data=Digits(), model=MLP(64, "relu")),
        split=Dirichlet(1.0),
        clients=25,
        byzantine=5,
        f=5,
        attack=ALIE(),
        rule=Chain(NNM(), TrimmedMean()),
        method=HeavyBall(lr=0.3),
        batches=Fixed(32),
        rounds=200,
        evaluate_every=50,
    )
    table: dict[str, Any] = {
        "seed": range(3),
        "method": METHODS,
        "attack": ATTACKS,
        "rule": {"median": "Median", "NNM + trimmed mean": "Chain(NNM, TrimmedMean)", "RFA": "RFA"},
    }
    notes = [
        "Bits are those of one coordinate of a client's message; the rule sees each client's memory g_i.",
        "Without an attack the rules guard against 5 all the same; sparse: 10 % of the places, where few are.",
    ]
    if reduced:
        base = replace(base, rounds=60, evaluate_every=20)
        table["method"] = {name: METHODS[name] for name in REDUCED}
        notes.append("Reduced setting: 60 rounds, four of seven compressors.")
    return Study(base, axes(table), notes=notes)
