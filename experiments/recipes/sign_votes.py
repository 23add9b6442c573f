"""signSGD with majority vote under growing numbers of adversaries, and how often a sign comes out wrong."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.attacks import OmniscientSign
from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import IID
from fedsim.engines import vector
from fedsim.experiments.study import Study, axes
from fedsim.federation import Federation
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import MajorityVote, SignSGD
from fedsim.task import Task
from fedsim.types import Batch, Dataset

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
ATTACKS = {
    "blind": "BlindSignFlip",
    "colluding": "OmniscientSign(tactic=cancel)",
    "omniscient": "OmniscientSign(tactic=oppose)",
}


def wrong_sign(p: float, n: int, f: int) -> float:
    """The exact chance that omniscient voters turn a coordinate: P[Z <= n/2], Z ~ Bin(n - f, p); a tie counts as wrong.

    p is the chance that an honest sign is right. The expression behind arXiv:2502.19170, see arXiv:2202.02085.
    """
    from scipy.stats import binom

    return float(binom.cdf(n // 2, n - f, p))


def wrong_signs(right: Floats, wrong: Floats, n: int) -> Floats:
    """`wrong_sign` for f = 0 .. n - 1, (n, d), where an honest vote is 0 with chance 1 - right - wrong, each (d,)."""
    chance = np.zeros((2 * n + 1, len(right)))  # of each sum of the honest votes, from -n to n
    chance[n] = 1
    table = np.zeros((n, len(right)))
    for f in range(n - 1, -1, -1):
        up, down = np.roll(chance, 1, axis=0), np.roll(chance, -1, axis=0)
        chance = right * up + wrong * down + (1 - right - wrong) * chance
        table[f] = chance[: n + f + 1].sum(0)
    return table


def bound(p: float, n: int, f: int) -> float:
    """The published bound sqrt(p (1 - p) (1 - a)) / (2 (p (1 - a) - 1/2) sqrt(n)), a = f / n (arXiv:2202.02085).

    It holds where p (1 - a) > 1/2, and is 1 elsewhere.
    """
    a = f / n
    room = p * (1 - a) - 0.5
    return min(1.0, float(np.sqrt(p * (1 - p) * (1 - a)) / (2 * room * np.sqrt(n)))) if room > 0 else 1.0


def votes(p: float, n: int, f: int, coordinates: int = 20_000, seed: int = 0) -> float:
    """The share of wrong signs as `MajorityVote` gives them: honest votes right with chance p, f against the truth."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(n - f, coordinates, generator=generator) < p
    rows = torch.cat([torch.where(right, 1.0, -1.0), -torch.ones(f, coordinates)])
    return _vote(rows, f)


def probabilities(n: int = 25) -> pd.DataFrame:
    """Measured, exact and bounded chance of a wrong sign, for p = 0.6 to 0.9 and f up to n / 2."""
    import pandas as pd

    lines = [
        {"p": p, "f": f, "measured": votes(p, n, f), "exact": wrong_sign(p, n, f), "bound": bound(p, n, f)}
        for p in (0.6, 0.7, 0.8, 0.9)
        for f in range(0, n // 2 + 1, 2)
    ]
    return pd.DataFrame(lines)


def in_training(experiment: Experiment, rounds: int = 50, dataset: Dataset | None = None) -> pd.DataFrame:
    """The chance of a wrong sign at the initial model of a run of signSGD, over its batches of `rounds` rounds.

    For each f: the share of coordinates (of those with a gradient) in which the vote goes against the gradient over all
    the data, with f votes against it; beside it the exact chance, from how often an honest vote is right, wrong or 0 at
    that coordinate in the same batches.
    """
    import pandas as pd

    fed = Federation(experiment, dataset=dataset)
    n, everyone = experiment.clients, np.arange(experiment.clients)
    truth = whole_gradient(fed).sign()
    live, states = truth != 0, fed.client_states()
    told = {"x": fed.x0}
    sent = (vector.rows(fed, states, told, t, everyone)[1].rows for t in range(rounds))
    votes = [signs[:, live] * truth[live] for signs in sent]
    cast = torch.cat(votes)
    right, wrong = (cast > 0).double().mean(0).numpy(), (cast < 0).double().mean(0).numpy()
    exact = wrong_signs(right, wrong, n).mean(1)
    lines = []
    for f in range(0, n // 2 + 1, 2):
        forged = -torch.ones(f, int(live.sum()))
        turned = [_vote(torch.cat([v[: n - f], forged]), f) for v in votes]
        lines.append({"f": f, "measured": float(np.mean(turned)), "exact": exact[f]})
    return pd.DataFrame(lines)


def _vote(rows: Tensor, f: int) -> float:
    """The share of coordinates in which the majority is not +1."""
    return float((MajorityVote()(rows, f) <= 0).double().mean())


def whole_gradient(fed: Federation) -> Tensor:
    """The gradient (d,) of the mean loss over all training examples at the initial model."""
    size = len(fed.train)
    batch = Batch(fed.train.x, fed.train.y, torch.full((size,), 1 / size)).map(lambda t: t[None])
    return fed.gradients(fed.x0, batch)[0]


def sign_votes(reduced: bool = False) -> Study:
    """signSGD with majority vote on MNIST, 25 clients: blind, colluding and omniscient adversaries, f = 2 to 12.

    The set-up of arXiv:2502.19170 is not public: here batches of 128, step 1e-3, 784-100-10, 2,000 rounds.
    `probabilities` and `in_training` give the chance of a wrong sign beside the exact expression and the bound.
    """
    base = Experiment(
        task=Task(data=MNIST(), model=MLP(100, "relu")),
        split=IID(),
        clients=25,
        byzantine=2,
        attack=OmniscientSign(),
        rule=MajorityVote(),
        method=SignSGD(lr=1e-3),
        batches=Fixed(128),
        rounds=2000,
        evaluate_every=100,
    )
    notes = ["The paper's own set-up and numbers are not public: this is its question, answered here."]
    table: dict[str, Any] = {
        "attack": ATTACKS,
        "method": {"signSGD": "SignSGD(lr=1e-3)", "Signum": "Signum(lr=1e-3)"},
        "byzantine": [2, 8, 12] if reduced else [2, 4, 6, 8, 10, 12],
        "seed": range(1 if reduced else 3),
    }
    if reduced:
        base = dataclasses.replace(base, rounds=300, evaluate_every=30)
        notes.append("Reduced setting: 300 rounds, f = 2, 8, 12, one seed.")
    return Study(base, axes(table), notes=notes)
