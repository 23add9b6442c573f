"""Real heterogeneity against synthetic: MNIST by its writers, and Dirichlet look-alikes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedsim.attacks import ALIE
from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import Natural
from fedsim.experiments.study import Study, axes
from fedsim.models import MLP
from fedsim.schedule import InverseTime
from fedsim.spec import Experiment
from fedsim.strategies import HeavyBall, TrimmedMean
from fedsim.task import Task

if TYPE_CHECKING:
    import pandas as pd

SPLITS = {
    "by writer": "Natural",
    "IID": "IID",
    "Dirichlet 10": "Dirichlet(10)",
    "Dirichlet 1": "Dirichlet(1)",
    "Dirichlet 0.1": "Dirichlet(0.1)",
}


def writers(reduced: bool = False) -> Study:
    """MNIST dealt to 49 clients by its 539 writers (11 each), and by IID and Dirichlet: which one predicts the first?

    f = 9, four attacks, plain and mixed trimmed mean; robust heavy ball, 600 rounds of batches of 25.
    """
    base = Experiment(
        task=Task(data=MNIST(scaling="standard"), model=MLP(100, "relu")),
        split=Natural(),
        clients=49,
        byzantine=9,
        attack=ALIE(),
        rule=TrimmedMean(),
        method=HeavyBall(lr=InverseTime(0.75, 50, every=50), momentum=0.9),
        batches=Fixed(25),
        rounds=600,
        evaluate_every=50,
    )
    table: dict[str, Any] = {
        "split": SPLITS,
        "rule": {"trimmed mean": "TrimmedMean", "NNM + trimmed mean": "Chain(NNM, TrimmedMean)"},
        "attack": {"ALIE": "ALIE", "IPM 0.1": "IPM(0.1)", "label flip": "LabelFlip", "mimic": "Mimic"},
        "seed": range(3 if reduced else 5),
    }
    notes = [
        "Writers are those of QMNIST's labels. They differ in hand, hardly in classes: the report shows both splits."
    ]
    if reduced:
        base = replace(base, rounds=100, evaluate_every=20)
        notes.append("Reduced setting: 100 rounds, three seeds.")
    return Study(base, axes(table), notes=notes)


def look_alikes(table: pd.DataFrame) -> pd.DataFrame:
    """How well each synthetic split predicts the accuracies by writer, from the table of a report on `writers`.

    Over all pairs of rule and attack: the mean difference and mean absolute difference to "by writer", in points, and
    the rank correlation.
    """
    import pandas as pd

    cells = table.pivot_table("accuracy", ["rule", "attack"], "split", sort=False)
    real = cells.pop("by writer")
    lines = {
        name: {
            "difference": (column - real).mean(),
            "absolute difference": (column - real).abs().mean(),
            "rank correlation": column.corr(real, method="spearman"),
        }
        for name, column in cells.items()
    }
    return pd.DataFrame(lines).T.rename_axis("split").reset_index()
