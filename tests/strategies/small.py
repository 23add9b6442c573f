"""A small federation of synthetic classes, and the model that a run of it leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsim.batches import Fixed
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.method import Method
from fedsim.runner import Result, run
from fedsim.spec import Experiment
from fedsim.strategies import Mean
from fedsim.task import Task
from fedsim.types import Model


def small(method: Method, model: Model, **changes: Any) -> Experiment:
    """Six rounds of five examples a client, of Dirichlet's shares of classes, aggregated by the mean."""
    base = Experiment(
        task=Task(data=Blobs(), model=model),
        split=Dirichlet(1.0),
        clients=4,
        rule=Mean(),
        method=method,
        batches=Fixed(5),
        rounds=6,
        evaluate_every=3,
    )
    return replace(base, **changes)


def flat(result: Result) -> Tensor:
    """The final model (d,)."""
    return torch.cat([value.flatten() for value in result.model.values()])


def final(e: Experiment, engine: str = "vector") -> Tensor:
    """The model (d,) at the end of a run."""
    return flat(run(e, engine=engine))
