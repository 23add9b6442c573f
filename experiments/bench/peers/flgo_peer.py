"""FLGo's FedAsync on its virtual clock: an MLP of 128 hidden units, one step of a batch of 4, a ladder of latencies.

python flgo_peer.py FOLDER NAME CLIENTS EVENTS

For each line on standard input, EVENTS messages after the last ones: the answer has their seconds, as JSON.
Clients take 1 + rank and |N(0, (rank + 1)^2)| units of time, rounded up, as FLGo's clock steps unit by unit.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flgo
import flgo.benchmark.partition
import numpy as np
import torch
from flgo.algorithm import fedasync
from flgo.benchmark.toolkits.cv.classification import FromDatasetPipe
from flgo.simulator.base import BasicSimulator

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what it prints is no answer
CONFIG = """
import torch
from torch.utils.data import TensorDataset

generator = torch.Generator().manual_seed(0)
y = torch.randint(10, ({examples},), generator=generator)
x = torch.randn({examples}, 1, 28, 28, generator=generator) + y[:, None, None, None] / 10
train_data, test_data = TensorDataset(x, y), TensorDataset(x[:100], y[:100])
train_data.classes = test_data.classes = list(range(10))
train_data.targets, test_data.targets = y.tolist(), y[:100].tolist()


def get_model(*args, **kwargs):
    layers = [torch.nn.Flatten(), torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)]
    return torch.nn.Sequential(*layers)
"""


class Ladder(BasicSimulator):  # type: ignore[misc]
    """Latencies of a client's place in a random order."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        self.ranks = dict(
            zip(self.all_clients, self.random_module.permutation(len(self.all_clients)), strict=True)
        )

    def update_client_responsiveness(self, client_ids: Any, *args: Any, **kwargs: Any) -> None:
        ranks = [int(self.ranks[client]) for client in client_ids]
        drawn = [1 + rank + abs(self.random_module.normal(0, rank + 1)) for rank in ranks]
        self.set_variable(client_ids, "latency", [ceil(seconds) for seconds in drawn])


class Server(fedasync.Server):  # type: ignore[misc]
    """FLGo's own, which stops to tell the time."""

    events, left, began = 0, 0, 0.0

    def package_handler(self, received_packages: dict[str, Any]) -> bool:
        moved: bool = super().package_handler(received_packages)
        self.left -= len(received_packages["__cid"])
        while self.left <= 0:
            if self.began:
                seconds = time.perf_counter() - self.began
                print(json.dumps({"rounds": [(seconds, 0.0)]}), file=ANSWERS, flush=True)
            if not sys.stdin.readline():
                os._exit(0)  # whoever asked is gone
            self.left += self.events
            self.began = time.perf_counter()
        return moved


def _items(self: Any, indices: list[int]) -> list[Any]:
    """What torch asks of its sets of examples since FLGo was written."""
    return [self[i] for i in indices]


def main(clients: int, events: int) -> None:
    torch.set_num_threads(1)
    Server.events, FromDatasetPipe.TaskDataset.__getitems__ = events, _items
    with TemporaryDirectory(prefix="flgo-") as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        Path("config.py").write_text(CONFIG.format(examples=10 * clients))
        benchmark = import_module(flgo.gen_benchmark_from_file("events", "config.py", target_path="."))
        benchmark.visualize = lambda *_: None  # type: ignore[attr-defined]
        flgo.gen_task_by_(benchmark, flgo.benchmark.partition.IIDPartitioner(num_clients=clients), "task")
        option = {
            "sample": "uniform_available",
            "proportion": 1.0,
            "num_rounds": 10**9,
            "num_steps": 1,
            "batch_size": 4,
            "learning_rate": 0.01,
            "eval_interval": -1,
            "train_holdout": 0.0,
            "no_log_console": True,
            "no_tqdm": True,
            "log_level": "ERROR",
        }
        algorithm = type("algorithm", (), {"Server": Server, "Client": fedasync.Client})
        flgo.init("task", algorithm, option, Simulator=Ladder).run()


if __name__ == "__main__":
    np.random.seed(0)
    main(*map(int, sys.argv[3:]))
