"""Steps by layer under attack, and how exact a polar factor has to be."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsim.attacks import ALIE
from fedsim.batches import Fixed
from fedsim.datasets.load import Digits
from fedsim.datasets.split import IID, Dirichlet
from fedsim.engines import vector
from fedsim.experiments.study import Study, axes
from fedsim.federation import Federation
from fedsim.models import MLP
from fedsim.privacy import ExampleDP
from fedsim.spec import Experiment
from fedsim.strategies import NNM, Chain, FedSGD, Mean, Muon, Scion, TrimmedMean
from fedsim.strategies.oracles import ExactPolar
from fedsim.task import Task

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.experiments.report.canvas import Plot

MLP64 = Task(data=Digits(), model=MLP((64, 64), "relu"))
POLARS = {f"{k} steps": f"NewtonSchulz(steps={k})" for k in (1, 2, 3, 5)} | {"exact": "ExactPolar"}


def layer_attacks(reduced: bool = False) -> Study:
    """Where the oracle belongs under attack: Scion with the LMO before the rule or after it, beside heavy ball.

    Digits, 15 clients, 3 Byzantine, Dirichlet 1, batches of 32; rules of whole messages and layer by layer.
    """
    base = Experiment(
        task=MLP64,
        split=Dirichlet(1.0),
        clients=15,
        byzantine=3,
        attack=ALIE(),
        rule=Chain(NNM(), TrimmedMean()),
        method=Scion(),
        batches=Fixed(32),
        rounds=200,
        evaluate_every=50,
    )
    rules = {
        "mean": "Mean",
        "median": "Median",
        "NNM + trimmed mean": "Chain(NNM, TrimmedMean)",
        "the same by layer": "PerLayer(Chain(NNM, TrimmedMean))",
    }
    table: dict[str, Any] = {
        "method": {
            "LMO after the rule": "Scion(lr=0.02)",
            "LMO before the rule": "Scion(lr=0.02, lmo=before)",
            "heavy ball": "HeavyBall(lr=0.3)",
        },
        "attack": {
            "none": "none",
            "sign flip": "SignFlip",
            "ALIE": "ALIE",
            "IPM": "IPM(10)",
            "mimic": "Mimic",
        },
        "rule": rules,
        "seed": range(3 if reduced else 5),
    }
    notes = ["One step size for each method, not tuned by cell; with no attack the 3 clients are honest."]
    if reduced:
        base = replace(base, rounds=100, evaluate_every=50)
        notes.append("Reduced setting: 100 rounds, three seeds.")
    return Study(base, axes(table), notes=notes)


def newton_schulz(reduced: bool = False) -> Study:
    """Does the best step size move with the precision of the polar factor? Muon by steps x lr x momentum.

    The question of arXiv:2510.19933, whose bounds have a smaller step and a larger momentum for a coarser factor; here
    digits, 10 clients alike, batches of 16, the mean. `best_steps` has the step size of least test loss.
    """
    base = Experiment(
        task=MLP64,
        split=IID(),
        clients=10,
        rule=Mean(),
        method=Muon(0.02),
        batches=Fixed(16),
        rounds=200,
        evaluate_every=50,
    )
    table: dict[str, Any] = {
        "method.polar": POLARS,
        "method.lr": [0.005, 0.01, 0.02, 0.05, 0.1, 0.2],
        "method.momentum": [0.8, 0.95] if reduced else [0.5, 0.8, 0.9, 0.95],
        "seed": range(3),
    }
    notes = ["Vectors and the output layer move by Adam, whose step size is 0.015 times lr."]
    if reduced:
        base = replace(base, rounds=60, evaluate_every=30)
        notes.append("Reduced setting: 60 rounds, momentum 0.8 and 0.95.")
    return Study(base, axes(table), notes=notes)


def best_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each polar factor and momentum: the step size of least mean test loss, and that loss over seeds."""
    import pandas as pd

    lines = []
    for (polar, momentum), some in frame.groupby(["method.polar", "method.momentum"], sort=False):
        means = some.groupby("method.lr")["loss"].mean()
        lr = means.idxmin()
        held = some[some["method.lr"] == lr]["loss"]
        lines.append(
            {"polar": polar, "momentum": momentum, "lr": lr, "loss": held.mean(), "deviation": held.std()}
        )
    return pd.DataFrame(lines).sort_values(["momentum", "polar"], ignore_index=True)


def noisy_singular_values(
    multipliers: tuple[float, ...] = (0.0, 0.02, 0.1, 0.5, 2.0), seeds: int = 3
) -> pd.DataFrame:
    """What the noise of ExampleDP does to the singular values of a mean gradient, and to its polar factor.

    The hidden layer (64 x 64) of digits at the initial model, 10 clients, batches of 32, clip 1. A line for each noise
    multiplier and place in the spectrum: the value, that of the noise alone, and the cosines of the noisy gradient and
    of its polar factor to those without noise.
    """
    import pandas as pd

    lines = []
    for seed in range(seeds):
        clean = _hidden(0, seed)
        for z in multipliers:
            noisy = _hidden(z, seed)
            overlap = _cosine(ExactPolar()(noisy), ExactPolar()(clean))
            gradient = _cosine(noisy, clean)
            pairs = zip(torch.linalg.svdvals(noisy), torch.linalg.svdvals(noisy - clean), strict=True)
            for place, (value, noise) in enumerate(pairs, 1):
                facts = {"noise": z, "seed": seed, "place": place, "value": float(value)}
                lines.append(facts | {"alone": float(noise), "polar": overlap, "gradient": gradient})
    return pd.DataFrame(lines)


def noise_figure(table: pd.DataFrame) -> Plot:
    """The spectra, means over seeds, and beside them how much of the clean direction is left."""
    from fedsim.experiments.report.canvas import Plot, canvas, inked, look

    with inked():
        picture, (left, right) = canvas(1, 2)
        for i, (z, some) in enumerate(table.groupby("noise")):
            means = some.groupby("place")["value"].mean()
            left.semilogy(means.index, means, label=f"noise multiplier {z:g}", **look(i))
        kept = table.groupby("noise")[["gradient", "polar"]].mean()
        for i, (name, label) in enumerate((("gradient", "gradient"), ("polar", "polar factor"))):
            right.plot(
                np.arange(len(kept)),
                kept[name],
                marker="o",
                label=f"{label}, cosine to its own without noise",
                **look(i + 4),
            )
        left.set(xlabel="place in the spectrum", ylabel="singular value")
        right.set(xlabel="noise multiplier", ylim=(0, 1.02))
        right.set_xticks(np.arange(len(kept)), [f"{z:g}" for z in kept.index])
        picture.legend(loc="outside upper left", fontsize=8, frameon=False, ncols=2)
    return Plot("noisy_singular_values", picture)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def _hidden(noise: float, seed: int) -> Tensor:
    """The mean message of a first round, of the hidden layer; without noise clipped alike."""
    experiment = Experiment(
        task=MLP64,
        split=IID(),
        clients=10,
        rule=Mean(),
        method=FedSGD(0.1),
        privacy=ExampleDP(clip=1.0, noise=noise or 1.0),
        batches=Fixed(32),
        rounds=1,
        seed=seed,
    )
    fed = Federation(experiment)
    ids = np.arange(experiment.clients)
    if noise:
        rows = vector.rows(fed, fed.client_states(), {"x": fed.x0}, 0, ids)[1].rows
    else:
        rows = fed.gradients(fed.x0, fed.batch(0, ids), clip=1.0)
    views = zip(fed.layout.blocks, fed.layout.views(rows.mean(0)), strict=True)
    return next(part for block, part in views if block.role == "hidden")
