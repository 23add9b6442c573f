"""Opacus: one private model that visits the clients in turn, in the mode that ends the system's name.

"hooks" keeps every example's gradient, "ghost" has its fast gradient clipping: norms first, then one weighted backward
pass. Clients start from the same parameters, so their noisy gradients are summed up and one step is taken.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Clock, Task, leave_out


def private(
    network: nn.Module, task: Task, mode: str
) -> tuple[DPOptimizer, Callable[[Tensor, Tensor], None]]:
    """The private optimiser of a network, and what fills in the gradients of a batch."""
    warnings.simplefilter("ignore")
    clip = task.experiment["privacy"]["clip"]
    batch = task.batches.shape[2]
    options = {
        "noise_multiplier": task.deviation * batch / clip,  # noise enters the sum, which is then divided
        "max_grad_norm": clip,
        "expected_batch_size": batch,
    }
    sgd = torch.optim.SGD(network.parameters(), lr=task.lr)
    loss: Callable[..., Any] = F.cross_entropy
    if mode == "ghost":
        model: nn.Module = GradSampleModuleFastGradientClipping(
            network, max_grad_norm=clip, use_ghost_clipping=True
        )
        optimiser: DPOptimizer = DPOptimizerFastGradientClipping(sgd, **options)
        loss = DPLossFastGradientClipping(model, optimiser, nn.CrossEntropyLoss(), "mean")
    else:
        model, optimiser = GradSampleModule(network), DPOptimizer(sgd, **options)

    def gradients(x: Tensor, y: Tensor) -> None:
        optimiser.zero_grad()
        loss(model(x), y).backward()

    return optimiser, gradients


def run(task: Task, clock: Clock) -> None:
    network = task.model()
    optimiser, gradients = private(network, task, task.system.split()[-1])
    parameters = list(network.parameters())
    for round in range(task.rounds):
        clock.begin()
        total = [torch.zeros_like(p) for p in parameters]
        for client in range(task.clients):
            gradients(*task.batch(round, client))
            optimiser.pre_step()  # clips, adds the noise, divides
            torch._foreach_add_(total, [p.grad for p in parameters])
        with torch.no_grad():
            torch._foreach_add_(parameters, total, alpha=-task.lr / task.clients)
        clock.end()
    clock.finish(parameters, "opacus")


if __name__ == "__main__":
    task = Task(*sys.argv[1:])
    if task.level != "example" or task.steps > 1 or task.byzantine:
        leave_out("it is there for privacy per example")
    run(task, Clock(task))
