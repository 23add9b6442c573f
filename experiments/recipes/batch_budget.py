"""How large a batch should be for a budget of examples: Scion by batch size, at two budgets."""

from __future__ import annotations

from fedsim.batches import Fixed
from fedsim.datasets.load import Digits
from fedsim.datasets.split import IID
from fedsim.experiments.study import Study, axes
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import Mean, Scion
from fedsim.strategies.methods.scion import budget_batch
from fedsim.task import Task

CLIENTS = 10
CONSTANTS = (0.03, 0.06, 0.125, 0.25, 0.5)


def batch_budget(reduced: bool = False) -> Study:
    """Scion on digits, 10 clients alike: 16,000 or 128,000 examples in all, in batches of `budget_batch(budget, 1, c)`.

    The rule of arXiv:2603.21191 is right here where the best c is the same at both budgets: eight times the examples
    are four times the batch and twice the rounds. Two step sizes, of which the better one counts.
    """
    base = Experiment(
        task=Task(data=Digits(), model=MLP((64, 64), "relu")),
        split=IID(),
        clients=CLIENTS,
        rule=Mean(),
        method=Scion(),
        batches=Fixed(8),
        rounds=100,
        evaluate_every=10_000,
    )
    settings = {
        f"{budget:,} examples, c = {c}": sized(budget, c) for budget in (16_000, 128_000) for c in CONSTANTS
    }
    notes = ["Accuracy and loss after the last round, when the budget is spent."]
    if reduced:
        settings = {label: changes for label, changes in settings.items() if label.startswith("16")}
        notes.append("Reduced setting: the smaller budget alone.")
    return Study(base, axes({"batch": settings, "method.lr": [0.01, 0.03], "seed": range(3)}), notes=notes)


def sized(budget: int, constant: float) -> dict[str, str]:
    """The batch of a client, and the rounds that spend the budget."""
    size = max(1, round(budget_batch(budget, constant=constant) / CLIENTS))
    return {"batches": f"Fixed({size})", "rounds": str(round(budget / (size * CLIENTS)))}
