"""Plain central DP-SGD by Opacus alone: what a private federation is measured against."""

from __future__ import annotations

import itertools
import warnings

import torch
from torch.utils.data import DataLoader, TensorDataset

from fedsim.batches import Poisson
from fedsim.check import Invalid
from fedsim.federation import Federation
from fedsim.layout import flatten
from fedsim.privacy import ExampleDP
from fedsim.schedule import rate
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD
from fedsim.task import evaluate
from fedsim.types import Dataset, single


def central(experiment: Experiment, dataset: Dataset | None = None) -> float:
    """Test accuracy of Opacus' DP-SGD on all data in one place: same model, step, clip, noise multiplier, rate, steps.

    The task's l2 comes after the noise, as in a federation. Raises `Invalid` where the experiment is not DP-SGD:
    FedSGD with example-level privacy and a Poisson rate.
    """
    privacy, batches, method = experiment.privacy, experiment.batches, experiment.method
    if not (
        isinstance(privacy, ExampleDP)
        and isinstance(privacy.clip, float)
        and isinstance(batches, Poisson)
        and batches.rate is not None
        and type(method) is FedSGD
    ):
        raise Invalid("central: the experiment must be FedSGD with ExampleDP(clip=...) and Poisson(rate=...)")
    from opacus import PrivacyEngine

    fed = Federation(experiment, dataset=dataset)
    assert fed.ledger is not None
    examples = TensorDataset(single(fed.train.x, "central"), fed.train.y)
    loader = DataLoader(examples, batch_size=round(batches.rate * len(examples)))
    descent = torch.optim.SGD(fed.model.parameters(), lr=1.0, weight_decay=experiment.task.l2)
    torch.manual_seed(experiment.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus on its secure mode, and its hooks on a first layer
        engine = PrivacyEngine()
        model, optimizer, loader = engine.make_private(
            module=fed.model,
            optimizer=descent,
            data_loader=loader,
            noise_multiplier=fed.ledger.multiplier,
            max_grad_norm=privacy.clip,
        )
        steps = itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), experiment.rounds)
        for step, (x, y) in enumerate(steps):
            optimizer.param_groups[0]["lr"] = rate(method.lr, step)
            optimizer.zero_grad()
            fed.loss(model(x), y).mean().backward()
            optimizer.step()
    return evaluate(fed.model, fed.loss, flatten(fed.model), fed.test)["accuracy"]
