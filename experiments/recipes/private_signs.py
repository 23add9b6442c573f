"""How DP-SGD and DP-SignSGD pay for privacy: the excess loss over epsilon."""

from __future__ import annotations

import dataclasses
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from fedsim.batches import Fixed
from fedsim.check import LEAST_NOISE
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import IID
from fedsim.experiments.study import Study, axes
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.result import Result
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task
from fedsim.types import Dataset, single

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.experiments.report.canvas import Plot

METHODS = {"DP-SGD": "FedSGD(lr=0.05)", "DP-SignSGD": "SignSGD(lr=0.004)"}
EXPECTED = {"DP-SGD": -2, "DP-SignSGD": -1}


def private_signs(reduced: bool = False) -> Study:
    """DP-SGD against DP-SignSGD over epsilon on MNIST (logistic regression, fixed step): arXiv:2603.03226.

    Near the optimum the excess loss of DP-SGD falls as sigma^2, that of DP-SignSGD as sigma, and the paper has epsilon
    proportional to 1/sigma. `excess` measures it, `slopes` fits it. The paper's clip and steps are not public; here one
    client, batches of 6,000, noise without amplification, and an l2 strong enough that 400 steps suffice.
    """
    base = Experiment(
        task=Task(data=MNIST(), model=Logistic(), l2=0.3),
        split=IID(),
        clients=1,
        rule=Mean(),
        method=FedSGD(lr=0.05),
        privacy=ExampleDP(clip=1.0, epsilon=1.0, delta=1e-5, accountant="exact"),
        batches=Fixed(6000),
        rounds=400,
        evaluate_every=400,
    )
    budgets = [0.25, 1.0, 4.0] if reduced else [0.25, 0.5, 1.0, 2.0, 4.0]
    notes = ["The paper's own set-up is not public: this is its question, answered here."]
    if reduced:
        base = dataclasses.replace(base, batches=Fixed(1500))
        notes.append("Reduced setting: batches of 1,500 (four times the noise), three budgets.")
    table: dict[str, Any] = {"method": METHODS, "privacy.epsilon": budgets}
    return Study(base, axes(table), notes=notes)


def excess(study: Study, dataset: Dataset | None = None) -> pd.DataFrame:
    """The training objective at the end of every cell, less where the same steps end without noise.

    Beside the accounted epsilon stands mu = sqrt(T) / z, which is proportional to the paper's.
    """
    import pandas as pd

    dataset = dataset or study.base.task.data.load()
    quiet = dataclasses.replace(
        study.base,
        privacy=ExampleDP(clip=1.0, noise=LEAST_NOISE, accountant="exact"),
        rounds=2 * study.base.rounds,
    )
    floor = _objective(run(quiet, dataset=dataset), dataset)
    lines = []
    for cell in study.cells()[0]:
        result = run(cell.experiment, dataset=dataset)
        mu = sqrt(cell.experiment.rounds) / result.summary["noise_multiplier"]
        loss = _objective(result, dataset) - floor
        lines.append({**cell.labels, "epsilon": result.summary["epsilon"], "mu": mu, "excess": loss})
    return pd.DataFrame(lines)


def slopes(table: pd.DataFrame, over: str = "mu") -> dict[str, float]:
    """The slope of ln(excess) over ln(mu), or another column, of each method, by least squares."""
    return {
        str(name): float(np.polyfit(np.log(lines[over]), np.log(lines.excess), 1)[0])
        for name, lines in table.groupby("method")
    }


def figure(table: pd.DataFrame) -> Plot:
    """The excess loss over epsilon in log-log, with the slopes that were found."""
    from fedsim.experiments.report.canvas import Plot, canvas, inked, look

    found, accounted = slopes(table), slopes(table, "epsilon")
    with inked():
        picture, (axis,) = canvas()
        for i, (name, lines) in enumerate(table.groupby("method")):
            slope = f"{found[str(name)]:.2f} over 1/sigma (theory {EXPECTED[str(name)]})"
            label = f"{name}: slope {slope}, {accounted[str(name)]:.2f} over epsilon"
            axis.loglog(lines.epsilon, lines.excess, marker="o", label=label, **look(i))
        axis.set(xlabel="accounted epsilon at delta = 1e-5", ylabel="excess training loss")
        axis.set_xticks(table.epsilon.unique(), [f"{epsilon:g}" for epsilon in table.epsilon.unique()])
        axis.minorticks_off()
        picture.legend(loc="outside upper left", fontsize=8, frameon=False)
    return Plot("private_signs", picture)


def _objective(result: Result, dataset: Dataset) -> float:
    """Mean cross-entropy over the training data plus (l2 / 2) ||x||^2 at the model of a run."""
    task = result.experiment.task
    model = task.model.build(tuple(single(dataset.train.x, "private_signs").shape[1:]), dataset.classes)
    model.load_state_dict(result.model)
    norm = sum(float(w.square().sum()) for w in result.model.values())
    with torch.no_grad():
        loss = F.cross_entropy(model(dataset.train.x), dataset.train.y)
    return float(loss) + task.l2 / 2 * norm
