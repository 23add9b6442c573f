"""What absent clients cost: rounds of workload W7 as more clients are registered and as many take part.

python -m fedsim.experiments.bench.absent N MOST ROUNDS GIB: the peak memory of one point, as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from fedsim.batches import Fixed
from fedsim.datasets.load import Blobs
from fedsim.experiments.bench.process import MIB, in_fresh_process, proc_bytes
from fedsim.experiments.bench.rounds import WORKLOADS, Run
from fedsim.federation import Federation
from fedsim.machine import malloc as heap
from fedsim.machine.mapped import Space
from fedsim.spec import Experiment

MODULE = "fedsim.experiments.bench.absent"
WARM = 3
EACH = 2  # examples of a client, and of its batch: the same work at every number of clients


def bench_absent(
    registered: Sequence[int], rounds: int = 20, memory: float = 1.0, threads: int | None = None
) -> Iterator[dict[str, Any]]:
    """A line for each number of registered clients, of whom 100 take part in a round, with two states each.

    MNIST has too few examples, so the data are synthetic ones of its shape, the same for all. The runs take turns,
    round by round, in one process: `over_first` is the median of the ratios of a round to the first run's. `peak_mb` is
    what a process of its own takes at its most, data included. `memory` is the GiB that states may take before they
    spill. Raises `Invalid` where such a process fails.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    most = max(registered)
    runs = [_run(n, most, memory) for n in registered]
    times: list[list[float]] = [[] for _ in runs]
    with heap.kept():
        for _ in range(WARM + rounds):
            for run, seconds in zip(runs, times, strict=True):
                seconds.append(run.turn(1)[0][0])
    for run in runs:
        run.states.close()
    for n, run, seconds in zip(registered, runs, times, strict=True):
        pairs = zip(seconds[WARM:], times[0][WARM:], strict=True)
        yield {
            "registered": n,
            "active": run.fed.experiment.active,
            "seconds_per_round": median(seconds[WARM:]),
            "over_first": median(mine / first for mine, first in pairs),
            "peak_mb": _peak(n, most, rounds, memory),
            "all_states_mb": n * _row_bytes(run.fed) / MIB,
            "memory_gib": memory,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        }


def _run(n: int, most: int, memory: float) -> Run:
    return Run(Federation(_experiment(n, most), space=Space(memory)), "vector")


def _experiment(n: int, most: int) -> Experiment:
    data = Blobs(train=EACH * most, test=100, features=784)
    w7 = WORKLOADS["W7"]
    return replace(w7, clients=n, task=replace(w7.task, data=data), batches=Fixed(EACH))


def _row_bytes(fed: Federation) -> int:
    return sum(value.numel() * value.element_size() for value in fed.client_state().values())


def _peak(n: int, most: int, rounds: int, memory: float) -> float:
    words, threads = (n, most, rounds, memory), torch.get_num_threads()
    return float(in_fresh_process(MODULE, *words, threads=threads, what=f"registered = {n}")["peak_mb"])


if __name__ == "__main__":
    n, most, rounds = map(int, sys.argv[1:4])
    run = _run(n, most, float(sys.argv[4]))
    run.turn(rounds)
    run.states.close()
    print(json.dumps({"peak_mb": proc_bytes("VmHWM") / MIB}))
