"""Memory of an asynchronous run whose tables, a row and a model of each client, are larger than it may be.

python -m fedsim.experiments.bench.crowded CLIENTS HIDDEN MEMORY: one run of Ringleader, as a line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from hashlib import sha256
from typing import Any

from fedsim.batches import Fixed
from fedsim.clock import Clock, Constant
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.experiments.bench.process import MIB, proc_bytes
from fedsim.federation import Federation
from fedsim.models import MLP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import Mean, Ringleader
from fedsim.task import Task

MODULE = "fedsim.experiments.bench.crowded"
EVERY = 0.002  # seconds between two looks at what is taken


def point(clients: int, hidden: int, memory: float) -> dict[str, Any]:
    """A round of Ringleader, an update for each client, with `memory` GiB for its tables: two of rows, one of models.

    `peak_mb` is the most that the process took beside what it had before the run, pages of files aside, which the
    system takes back when it is short; `model` names the last model to the bit.
    """
    experiment = Experiment(
        task=Task(data=Blobs(train=4 * clients, test=100, features=784), model=MLP(hidden, "relu")),
        split=IID(),
        clients=clients,
        rule=Mean(),
        method=Ringleader(lr=0.05),
        batches=Fixed(4),
        clock=Clock(Constant(1.0)),
        rounds=clients,
        evaluate_every=clients,
    )
    fed = Federation(experiment)
    tables, base = fed.space.taken * 1024, proc_bytes("RssAnon")
    most, done = 0.0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(EVERY):
            most = max(most, proc_bytes("RssAnon") - base)

    looking = threading.Thread(target=look)
    looking.start()
    began = time.perf_counter()
    try:
        model = run(experiment, memory=memory).model
    finally:
        done.set()
        looking.join()
    digest = sha256(b"".join(value.numpy().tobytes() for value in model.values()))
    return {
        "clients": clients,
        "d": fed.x0.numel(),
        "memory_mb": memory * 1024,
        "tables_mb": tables,
        "peak_mb": most / MIB,
        "seconds": time.perf_counter() - began,
        "model": digest.hexdigest()[:16],
    }


if __name__ == "__main__":
    print(json.dumps(point(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
