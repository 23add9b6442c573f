"""What every peer's script shares: the task as files, and a clock that runs rounds when told to.

A script runs in the peer's own environment, which has torch and NumPy but not fedsim:

    python NAME_peer.py FOLDER SYSTEM

FOLDER holds task.json (the experiment and what follows from it), x.npy and y.npy (training examples), batches.npy
(which of them a client of a round's cohort uses: int64 (rounds, clients, steps * b)) and model.pt (the network, at the
initial parameters). On standard input comes a number of rounds for each turn. The answer to a turn is a line of JSON on
standard output, with the seconds of each round and of the floor measured right after it. At the end come the versions
that ran, and SYSTEM.npy holds the parameters. All other output goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a peer prints is no answer


class Task:
    """The task in FOLDER."""

    def __init__(self, folder: str, system: str) -> None:
        self.folder, self.system = Path(folder), system
        facts: dict[str, Any] = json.loads((self.folder / "task.json").read_text())
        self.experiment: dict[str, Any] = facts["experiment"]
        if self.experiment["cohort"] != "none" and facts["kept"]:
            leave_out("its script keeps nothing of clients who take part now and then")
        self.method: dict[str, Any] = self.experiment["method"]
        self.byzantine: int = self.experiment["byzantine"]
        self.lr: float = self.method["lr"]
        self.level: str | None = facts["level"]  # of privacy: None, "message" or "example"
        self.deviation: float = facts["deviation"]  # of the noise on each coordinate
        self.steps: int = facts["steps"]
        self.threads: int = facts["threads"]
        self.device: str = facts["device"]
        torch.set_num_threads(self.threads)
        self.x, self.y = (torch.from_numpy(np.load(self.folder / f"{name}.npy")) for name in "xy")
        self.x, self.y = self.x.to(self.device), self.y.to(self.device)
        self.batches = torch.from_numpy(np.load(self.folder / "batches.npy")).to(self.device)
        self.rounds, self.clients = self.batches.shape[:2]

    def model(self) -> nn.Module:
        """The network at the initial parameters, a new one each time."""
        network: nn.Module = torch.load(self.folder / "model.pt", weights_only=False)
        return network.to(self.device)

    def batch(self, round: int, client: int) -> tuple[Tensor, Tensor]:
        """The examples of a round's client, by its place in the cohort; of its local steps one after the other."""
        index = self.batches[round, client]
        return self.x[index], self.y[index]


def leave_out(why: str) -> NoReturn:
    """Say why this peer cannot do the task, and end."""
    _answer({"left_out": why})
    sys.exit()


class Clock:
    """`begin` and `end` around each round; `begin` waits for the turn, `end` also measures the floor."""

    def __init__(self, task: Task) -> None:
        self.task, self.left, self.began = task, 0, 0.0
        self.rounds: list[tuple[float, float]] = []
        network = task.model()
        index = task.batches[0].flatten()
        inputs, labels = task.x[index], task.y[index]
        parameters = list(network.parameters())
        self.floor: Callable[[], object] = lambda: torch.autograd.grad(
            F.cross_entropy(network(inputs), labels), parameters
        )

    def begin(self) -> None:
        if not self.left:
            order = sys.stdin.readline()
            if not order:
                os._exit(1)  # whoever asked is gone
            self.left = int(order)
        self.began = self._now()

    def end(self) -> None:
        done = self._now()
        self.floor()
        self.rounds.append((done - self.began, self._now() - done))
        self.left -= 1
        if not self.left:
            _answer({"rounds": self.rounds})
            self.rounds = []

    def finish(self, parameters: list[Tensor], *packages: str, **facts: Any) -> None:
        """After the last round: leave the final parameters (d,) behind, and say which versions ran."""
        flat = torch.cat([p.detach().flatten() for p in parameters]).cpu().numpy()
        np.save(self.task.folder / f"{self.task.system}.npy", flat)
        versions = {name: version(name) for name in (*packages, "torch")}
        _answer({"versions": versions, **facts})

    def _now(self) -> float:
        if self.task.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def _answer(line: dict[str, Any]) -> None:
    print(json.dumps(line), file=ANSWERS, flush=True)
