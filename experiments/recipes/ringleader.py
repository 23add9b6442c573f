"""How fast asynchronous methods come to a stationary point where clients' data and speeds differ."""

from __future__ import annotations

from dataclasses import replace

from fedsim.batches import Fixed
from fedsim.clock import Clock, Ladder
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import EqualDirichlet
from fedsim.experiments.study import Study, axes
from fedsim.metrics import GradientNorm
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import Mean, Ringleader
from fedsim.task import Task

# Step sizes of the released code; Ringmaster and Rennala, which it has not, take those of IA2SGD and Malenia. Smaller
# ones beside them, since the release's are for inputs of another scale. Between two evaluations are 250 to 500 seconds.
METHODS = {
    "Ringleader": {"method": "Ringleader(lr=0.05)", "evaluate_every": "100"},
    "Malenia": {"method": "Malenia(lr=0.7)", "evaluate_every": "1"},
    "IA2SGD": {"method": "IA2SGD(lr=0.01)", "evaluate_every": "700"},
    "Ringleader, lr 0.01": {"method": "Ringleader(lr=0.01)", "evaluate_every": "100"},
    "Malenia, lr 0.2": {"method": "Malenia(lr=0.2)", "evaluate_every": "1"},
    "IA2SGD, lr 0.003": {"method": "IA2SGD(lr=0.003)", "evaluate_every": "700"},
    "Ringmaster": {"method": "Ringmaster(lr=0.01,R=100)", "evaluate_every": "700"},
    "Rennala": {"method": "Rennala(lr=0.7,buffer=100)", "evaluate_every": "10"},
}


def ringleader(reduced: bool = False) -> Study:
    """MNIST, 100 clients, Dirichlet 0.1 in equal parts, an MLP of 128 hidden units, batches of 4: ||grad f||^2 in time.

    The setting of Ringleader ASGD (arXiv:2509.22860): a gradient takes the client of rank r 1 + r + |N(0, (r + 1)^2)|
    seconds, 40,000 of which are run with 30 seeds.
    """
    base = Experiment(
        task=Task(data=MNIST(), model=MLP(128, "relu"), metrics=(GradientNorm(),)),
        split=EqualDirichlet(0.1),
        clients=100,
        rule=Mean(),
        method=Ringleader(lr=0.05),
        batches=Fixed(4),
        clock=Clock(Ladder(), horizon=40_000.0),
        rounds=10_000_000,
    )
    notes = [
        "The paper gives curves and no table. Step sizes of its released code; Ringmaster and Rennala, not in it, take "
        "those of IA2SGD and Malenia. A smaller step beside each of the first three.",
    ]
    if reduced:
        base = replace(base, clock=Clock(Ladder(), horizon=2000.0))
        notes.append("Reduced setting: 2,000 of 40,000 simulated seconds, 3 of 30 seeds.")
    return Study(base, axes({"method": METHODS, "seed": range(3 if reduced else 30)}), notes=notes)
