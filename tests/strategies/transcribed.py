"""What a plain transcription of a method needs: small federations in float64, clients' batches and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from small import small
from torch import Tensor, nn

from fedsim import engines
from fedsim.datasets.load import Blobs
from fedsim.env import Draws
from fedsim.federation import Federation
from fedsim.gradients import ClientGradients, one_client, one_loss
from fedsim.method import Method
from fedsim.spec import Experiment
from fedsim.standing import Standing
from fedsim.task import Task
from fedsim.types import Batch, Examples, Model


@dataclass(frozen=True)
class Normed(Model):
    """A group norm between two layers."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, classes))


def experiment(method: Method, **changes: Any) -> Experiment:
    """Six clients, of whom four take part in each of four rounds."""
    fields: dict[str, Any] = {"task": Task(data=Blobs(features=5, classes=3), model=Normed()), "clients": 6}
    return small(method, Normed(), **(fields | {"cohort": 4, "rounds": 4, "evaluate_every": 1} | changes))


class Double(Federation):
    """A federation in float64, in which rounding hides nothing."""

    def __init__(self, e: Experiment) -> None:
        super().__init__(e)
        self.model.double()
        self.x0, self.gradients = self.x0.double(), ClientGradients(self.model, loss=self.loss)
        assert isinstance(self.train.x, Tensor)
        self.train = Examples(self.train.x.double(), self.train.y)

    def _fetched(self, place: Tensor, weight: Tensor) -> Batch:
        return super()._fetched(place, weight.double())


def after(e: Experiment, engine: str) -> tuple[Tensor, Tensor]:
    """The server's model (d,) after a run in float64, and those that clients use (n, d)."""
    fed = Double(e)
    asks = engines.Everyone(engines.get(engine))
    now = Standing.start(fed, asks.first(fed))
    while now.goes_on(fed):
        asked = now.asked(fed)
        now, _ = now.after(fed, *asks(fed, now.states.of(asked), now.told(fed), now.round, asked))
    x = now.x(fed)
    return x, e.method.personal(now.states.of(np.arange(e.clients)), x, fed.layout.trained).expand(
        e.clients, -1
    )


def close(ours: Tensor, truth: Tensor) -> None:
    assert ours.dtype == truth.dtype == torch.float64
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-11)


class Client:
    """What a plain transcription needs of a client in a round: its batches, and gradients on them."""

    def __init__(self, fed: Federation, t: int, i: int) -> None:
        self.fed, self.t, self.i = fed, t, i
        batch = fed.batch(t, np.array([i])).part(0)
        self.batches = list(batch.split(fed.experiment.method.steps))

    def grad(self, y: Tensor, k: int) -> Tensor:
        return one_client(self.fed.model, y, self.batches[k])

    def loss(self, y: Tensor, k: int) -> float:
        return float(one_loss(self.fed.model, y, self.batches[k], self.fed.loss))

    def work(self, least: int, most: int) -> int:
        u = float(Draws(self.fed, "client", self.t, np.array([self.i])).own(1)[0, 0])
        return least + int(u * (most - least + 1))


def rounds(e: Experiment) -> tuple[Federation, Iterator[list[Client]]]:
    fed = Double(e)
    return fed, ([Client(fed, t, i) for i in fed.cohort(t).tolist()] for t in range(e.rounds))


def weights(clients: list[Client]) -> list[float]:
    """FedAvg's: each client by its examples."""
    sizes = [int(c.fed.sizes[c.i]) for c in clients]
    return [size / sum(sizes) for size in sizes]


def fedavg(c: Client, x: Tensor, lr: float, steps: int) -> Tensor:
    y = x.clone()
    for k in range(steps):
        y = y - lr * c.grad(y, k)
    return y
