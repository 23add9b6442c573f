"""Nearest-neighbour mixing, "Fixing by Mixing" (arXiv:2302.01772), Table 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedsim.attacks import IPM, Adaptive
from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.study import Study, axes
from fedsim.models import CNN, MLP
from fedsim.runner import run
from fedsim.schedule import InverseTime
from fedsim.spec import Experiment
from fedsim.strategies import Median, SafeDSHB
from fedsim.task import Task
from fedsim.types import Dataset

if TYPE_CHECKING:
    import pandas as pd

RULES = {
    "Krum": "Krum",
    "GM": "RFA(nu=0.1, iterations=3, start=origin)",
    "CWMed": "Median",
    "CWTM": "TrimmedMean",
}
MIXERS = {"": "{}", "Bucketing+": "Chain(Bucketing(2), {})", "NNM+": "Chain(NNM, {})"}
ATTACKS = {
    "ALIE": {"attack": "Adaptive(ALIE)", "dealt": "honest"},
    "FOE": {"attack": "Adaptive(IPM)", "dealt": "honest"},
    "LF": {"attack": "LabelFlip"},
    "SF": {"attack": "IPM(1)", "dealt": "honest"},
    "Mimic": {"attack": "Mimic", "dealt": "honest"},
}
TABLE_2 = """
Krum            10.19  10.28  12.76  51.17  86.78
Bucketing+Krum  44.78  36.10  56.21  47.54  94.92
NNM+Krum        78.30  70.07  93.07  82.44  97.69
GM              92.01  65.61  93.94  57.86  96.85
Bucketing+GM    39.83  44.73  96.22  91.30  97.68
NNM+GM          81.26  75.27  94.23  86.33  97.17
CWMed           68.74  19.48  33.34  27.96  64.01
Bucketing+CWMed 55.86  42.80  70.16  50.96  94.43
NNM+CWMed       80.52  75.20  93.42  85.10  97.38
CWTM            76.16  69.96  36.87  27.45  89.83
Bucketing+CWTM  55.86  42.80  70.16  50.96  94.43
NNM+CWTM        79.04  79.91  94.75  84.78  96.02
"""


def fixing_by_mixing(reduced: bool = False) -> Study:
    """Table 2 of arXiv:2302.01772: MNIST, n = 17, f = 4, Dirichlet 0.1; also Dirichlet 1 and 10.

    Robust D-SHB: 800 steps of batches of 25, momentum 0.9, gradients clipped to 2, L2 1e-4, step 0.75 / (1 + t // 50),
    the small CNN; four rules plain, behind bucketing (s = 2) and behind NNM; five attacks; best accuracy of a run.
    """
    base = Experiment(
        task=Task(
            data=MNIST(scaling="standard"), model=MLP(100, "relu") if reduced else CNN("small"), l2=1e-4
        ),
        split=Dirichlet(0.1),
        clients=17,
        byzantine=4,
        attack=IPM(1.0),
        knowledge=("own", "honest", "rule"),
        rule=Median(),
        method=SafeDSHB(lr=InverseTime(0.75, 50, every=50), tau=2.0, beta=0.1),
        batches=Fixed(25),
        rounds=800,
        evaluate_every=25,
    )
    notes = [
        "As in the paper the accuracy is the best over the steps, and the fault-free run reaches 98.03 ± 0.70.",
        "Bucketing+Krum is left out: nine buckets with f = 4 are too few for Krum as its paper defines it.",
        "`Adaptive` searches the factor of ALIE and FOE on both sides; the paper's search is linear.",
        "The data go to the honest clients, but under label flip to all, who train on them.",
    ]
    table: dict[str, Any] = {
        "rule": {
            f"{mix}{name}": form.format(rule) for name, rule in RULES.items() for mix, form in MIXERS.items()
        },
        "attack": ATTACKS,
        "split.alpha": [0.1] if reduced else [0.1, 1, 10],
        "seed": range(1 if reduced else 5),
    }
    if reduced:
        base = replace(base, rounds=400)
        notes.append("Reduced setting: the 784-100-10 network, 400 steps, Dirichlet 0.1 alone, one seed.")
    return Study(base, axes(table), reported=list(_table_2()), notes=notes, score="best")


def _table_2() -> Iterator[dict[str, Any]]:
    for line in TABLE_2.split("\n"):
        if line:
            rule, *values = line.split()
            for attack, value in zip(ATTACKS, values, strict=True):
                yield {"rule": rule, "attack": attack, "split.alpha": "0.1", "accuracy": float(value) / 100}


def objectives(rounds: int = 150, dataset: Dataset | None = None) -> pd.DataFrame:
    """Best accuracy in % under a searched FOE and ALIE, for either aim of the search, in the reduced setting.

    "distance" is the paper's: the answer as far from the honest mean as possible, on whichever side; "reverse": as far
    back along it as possible.
    """
    import pandas as pd

    study = fixing_by_mixing(reduced=True)
    dataset = dataset or study.base.task.data.load()
    lines = []
    for cell in study.cells()[0]:
        attack = cell.experiment.attack
        if isinstance(attack, Adaptive) and cell.labels["rule"].endswith("+CWMed"):
            line = {name: cell.labels[name] for name in ("rule", "attack")}
            for objective in ("distance", "reverse"):
                aimed = replace(cell.experiment, attack=replace(attack, objective=objective), rounds=rounds)
                line[objective] = 100 * run(aimed, dataset=dataset).frame["accuracy"].max()
            lines.append(line)
    return pd.DataFrame(lines)
