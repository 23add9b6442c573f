"""What example-level privacy costs a federation, beside the same privacy with all data in one place."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from fedsim.batches import Poisson
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import IID
from fedsim.experiments.study import Study, axes
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task
from fedsim.types import Dataset

if TYPE_CHECKING:
    import pandas as pd


def private_utility(reduced: bool = False) -> Study:
    """DP-SGD on MNIST by 1, 5 and 20 clients without attackers, epsilon = 1 to 8 for one example, delta = 1e-5.

    Every client noises for itself, at the multiplier that one client with all data would use. `beside_central` puts
    Opacus' own central DP-SGD beside it, at the same multiplier, sampling rate and number of steps.
    """
    base = Experiment(
        task=Task(data=MNIST(), model=Logistic()),
        split=IID(),
        clients=20,
        rule=Mean(),
        method=FedSGD(lr=2.0),
        privacy=ExampleDP(clip=1.0, epsilon=8.0, delta=1e-5),
        batches=Poisson(rate=0.05),
        rounds=150,
        evaluate_every=50,
    )
    notes = ["Logistic regression; accounted by RDP."]
    table: dict[str, Any] = {"clients": [1, 5, 20], "privacy.epsilon": [1.0, 2.0, 4.0, 8.0], "seed": range(3)}
    if reduced:
        base = dataclasses.replace(base, rounds=30, evaluate_every=30)
        table = {"clients": [1, 20], "privacy.epsilon": [1.0, 8.0], "seed": range(1)}
        notes.append("Reduced setting: 30 steps, two numbers of clients, two budgets, one seed.")
    return Study(base, axes(table), notes=notes)


def beside_central(study: Study, dataset: Dataset | None = None) -> pd.DataFrame:
    """A line for each cell of the study: its accuracy, and that of central DP-SGD with the same seed."""
    import pandas as pd

    from fedsim.experiments.central import central

    dataset = dataset or study.base.task.data.load()
    lines, baseline = [], dict[tuple[str, str], float]()
    for cell in study.cells()[0]:
        key = cell.labels["privacy.epsilon"], cell.labels["seed"]
        if key not in baseline:
            baseline[key] = central(cell.experiment, dataset)
        accuracy = run(cell.experiment, dataset=dataset).accuracy
        lines.append({**cell.labels, "accuracy": accuracy, "central": baseline[key]})
    return pd.DataFrame(lines)
