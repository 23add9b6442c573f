"""Flower's simulation on Ray: FedAvg, and a ClientApp of the task's local steps on one core for each client.

A client loads the arrays that it was sent into a model kept by its worker process, which is cheaper than building one
for each message. All clients have as many examples, so FedAvg's weighted mean of models is the mean of their steps.
Noise on messages: its own LocalDpMod on the model update, which is the gradient times the rate. Privacy per example:
Opacus in the client, as in its example.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor
from torch.nn import functional as F
from turns import Clock, Task, leave_out

DELTA = 1e-5


class Worker:
    """What a worker process keeps: the data, a model and its optimiser."""

    def __init__(self, folder: str) -> None:
        self.task = Task(folder, "flower")
        torch.set_num_threads(1)  # Ray gives a client one core
        self.model = self.task.model()
        self.optimiser: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=self.task.lr)
        self.gradients: Callable[[Tensor, Tensor], None] = self.plain
        if self.task.level == "example":
            from opacus_peer import private

            self.optimiser, self.gradients = private(self.model, self.task, "ghost")

    def plain(self, x: Tensor, y: Tensor) -> None:
        self.optimiser.zero_grad()
        F.cross_entropy(self.model(x), y).backward()


@cache
def worker(folder: str) -> Worker:
    return Worker(folder)


def train(msg: Message, context: Context) -> Message:
    """A client's round. At module level, so that Ray pickles its name and not its code for each message."""
    config: Any = msg.content["config"]
    arrays: Any = msg.content["arrays"]
    mine = worker(config["folder"])
    mine.model.load_state_dict(arrays.to_torch_state_dict())
    x, y = mine.task.batch(config["server-round"] - 1, int(context.node_config["partition-id"]))
    for part in zip(x.chunk(mine.task.steps), y.chunk(mine.task.steps), strict=True):
        mine.gradients(*part)
        mine.optimiser.step()
    metrics = MetricRecord({"num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(mine.model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


def client_app(task: Task) -> ClientApp:
    mods: list[Any] = []
    if task.level == "message":
        bound, deviation = task.lr * task.method["tau"], task.lr * task.deviation
        epsilon = bound * math.sqrt(2 * math.log(1.25 / DELTA)) / deviation  # it makes the deviation of this
        mods = [LocalDpMod(bound, bound, epsilon, DELTA)]
    app = ClientApp(mods=mods)
    app.train()(train)
    return app


def server_app(task: Task, clock: Clock) -> ServerApp:
    app, model = ServerApp(), task.model()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        def between(server_round: int, arrays: ArrayRecord) -> None:
            if server_round:
                clock.end()
            if server_round < task.rounds:
                clock.begin()

        n = task.clients
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=n, min_available_nodes=n)
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.state_dict()),
            num_rounds=task.rounds,
            train_config=ConfigRecord({"folder": str(task.folder)}),
            evaluate_fn=between,
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())
        clock.finish(list(model.parameters()), "flwr", "ray", client_threads=1)

    return app


def main() -> None:
    task = Task(*sys.argv[1:])
    if task.byzantine:
        leave_out("it has no nearest-neighbour mixing")
    run_simulation(
        server_app=server_app(task, Clock(task)),
        client_app=client_app(task),
        num_supernodes=task.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    import flower_peer  # so that `train` belongs to a module that the workers can import

    flower_peer.main()
