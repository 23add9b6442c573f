"""ByzFL: its Client, Server, aggregators and attacks in the round of its distributed SGD and FedAvg loops.

The library has no privacy and no error feedback: its `Clipping` clips, and the noise, the momenta and the memories of
Byz-Clip21-SGD2M are a few lines here. A loader hands out whole batches by index, its quickest form.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from turns import Clock, Task, leave_out


def declare_torchvision() -> torch.library.Library:
    """Let a torchvision that is built for CUDA be imported beside a CPU build of torch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


if not torch.cuda.is_available():
    keep = declare_torchvision()

from byzfl import ByzantineClient, Client, Server  # noqa: E402
from byzfl.aggregators.preaggregators import Clipping  # noqa: E402
from byzfl.fed_framework import models  # noqa: E402


class Federation:
    """ByzFL's server and clients, at the task's initial parameters."""

    def __init__(self, task: Task) -> None:
        base = {"device": task.device, "model_name": network_like(task), "optimizer_name": "SGD"}
        base |= {"learning_rate": task.lr, "weight_decay": 0.0, "milestones": [], "learning_rate_decay": 1.0}
        client = {"loss_name": "NLLLoss", "LabelFlipping": False, "nb_labels": 10, "momentum": 0.0}
        client |= {"store_per_client_metrics": False}
        data = TensorDataset(task.x, task.y)
        self.clients = []
        for batches in task.batches.unbind(1):
            steps = [part for batch in batches for part in batch.chunk(task.steps)]
            loader = DataLoader(data, batch_size=None, sampler=steps)
            self.clients.append(Client({**base, **client, "training_dataloader": loader}))
        rule, mixers = {"name": "Average", "parameters": {}}, []
        if task.byzantine:
            rule = {"name": "Median", "parameters": {}}
            mixers = [{"name": "NNM", "parameters": {"f": task.byzantine}}]
        self.server = Server({
            **base,
            "test_loader": DataLoader(data),  # asked for, never read
            "aggregator_info": rule,
            "pre_agg_list": mixers,
        })  # fmt: skip
        with torch.no_grad():
            for ours, theirs in zip(self.server.model.parameters(), task.model().parameters(), strict=True):
                ours.copy_(theirs)

    def broadcast(self) -> None:
        state = self.server.get_dict_parameters()
        for client in self.clients:
            client.set_model_state(state)

    def gradients(self) -> list[Tensor]:
        for client in self.clients:
            client.compute_gradients()
        return [client.get_flat_gradients_with_momentum() for client in self.clients]


def network_like(task: Task) -> str:
    """ByzFL's own network of the same layers; it ends in log-softmax, and the loss begins behind that."""
    shapes = [p.shape for p in task.model().parameters()]
    fitting = (
        name
        for name in ("fc_mnist", "cnn_mnist")
        if [p.shape for p in getattr(models, name)().parameters()] == shapes
    )
    return next(fitting, "") or leave_out("it has no network of these layers")


def gradient_round(fed: Federation, task: Task) -> None:
    rows: Any = fed.gradients()
    if task.level == "message":
        rows = Clipping(c=task.method["tau"])(rows)
        rows.add_(torch.randn_like(rows), alpha=task.deviation)
    fed.server.update_model_with_gradients(rows)


def local_round(fed: Federation, task: Task) -> None:
    for client in fed.clients:
        client.compute_model_update(task.steps)
    fed.server.update_model_with_weights([client.get_flat_parameters() for client in fed.clients])


class Clip21Round:
    """Byz-Clip21-SGD2M around ByzFL's gradients, attack and aggregators."""

    def __init__(self, fed: Federation, task: Task) -> None:
        n, d = task.clients, fed.server.get_flat_parameters().numel()
        self.v, self.g = torch.zeros(2, n, d, device=task.device)
        self.m = torch.zeros(n + task.byzantine, d, device=task.device)
        factor = task.experiment["attack"]["factor"]
        attack = {"name": "InnerProductManipulation", "f": task.byzantine, "parameters": {"tau": factor}}
        self.attack, self.clip = ByzantineClient(attack), Clipping(c=task.method["tau"])

    def __call__(self, fed: Federation, task: Task) -> None:
        beta, beta_hat = task.method["beta"], task.method["beta_hat"]
        self.v.lerp_(torch.stack(fed.gradients()), beta)
        q = self.clip(self.v - self.g)
        self.g.add_(q, alpha=beta_hat)
        q = q + task.deviation * torch.randn_like(q)
        self.m.add_(torch.cat([q, torch.stack(self.attack.apply_attack(q))]), alpha=beta_hat)
        fed.server.update_model_with_gradients(self.m)


def run(task: Task, clock: Clock) -> None:
    fed = Federation(task)
    torch.manual_seed(0)
    step: Callable[[Federation, Task], None] = local_round if task.steps > 1 else gradient_round
    if task.byzantine:
        step = Clip21Round(fed, task)
    fed.broadcast()
    for _ in range(task.rounds):
        clock.begin()
        step(fed, task)
        fed.broadcast()
        clock.end()
    clock.finish(list(fed.server.model.parameters()), "byzfl")


if __name__ == "__main__":
    task = Task(*sys.argv[1:])
    if task.level == "example":
        leave_out("it has no privacy per example")
    run(task, Clock(task))
