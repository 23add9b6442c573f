"""pfl-research: SimulatedBackend and FederatedAveraging in one process, without evaluation.

One local step of rate 1 makes the model difference minus the gradient, which the central SGD applies at the task's
rate; with several local steps they run at the task's rate and the central one at 1. Noise on messages: its own
GaussianMechanism as each user's local postprocessor.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Clock, Task, leave_out


class Rounds(TrainingProcessCallback):  # type: ignore[misc]
    def __init__(self, clock: Clock, total: int) -> None:
        self.clock, self.total = clock, total

    def on_train_begin(self, *, model: Any) -> Metrics:
        self.clock.begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.clock.end()
        if central_iteration + 1 < self.total:
            self.clock.begin()
        return False, Metrics()


class WithLoss(nn.Module):
    """A network as pfl wants it: with `loss` and `metrics`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.network(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


def run(task: Task, clock: Clock) -> None:
    np.random.seed(0)
    visits: Counter[int] = Counter()

    def user(client: int) -> PyTorchTensorDataset:
        batch = task.batch(visits[client], client)
        visits[client] += 1
        return PyTorchTensorDataset(batch, user_id=str(client))

    data = FederatedDataset(user, MinimizeReuseUserSampler(list(range(task.clients))))
    noise = []
    if task.level == "message":
        tau = task.method["tau"]
        noise = [GaussianMechanism(tau, task.deviation / tau)]
    local, central = (1.0, task.lr) if task.steps == 1 else (task.lr, task.method["server_lr"])
    network = WithLoss(task.model())
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=central))
    FederatedAveraging().run(
        # The first iteration evaluates every user whatever the frequency; later ones do not.
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=task.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=noise),
        model,
        NNTrainHyperParams(
            local_batch_size=task.batches.shape[2] // task.steps,
            local_num_epochs=1,
            local_learning_rate=local,
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Rounds(clock, task.rounds)],
        send_metrics_to_platform=False,
    )
    assert set(visits.values()) == {task.rounds}
    clock.finish(list(network.parameters()), "pfl")


if __name__ == "__main__":
    task = Task(*sys.argv[1:])
    if task.byzantine:
        leave_out("it has no robust aggregation")
    if task.level == "example":
        leave_out("it clips users, not examples")
    run(task, Clock(task))
