"""How cost grows: seconds per round and peak memory against n clients and d parameters, each in a process of its own.

python -m fedsim.experiments.bench.growth RULE N D ROUNDS: one point, as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from fedsim.batches import Fixed
from fedsim.experiments.bench.process import CLEAR, MIB, in_fresh_process, proc_bytes
from fedsim.experiments.bench.rounds import W1, Run
from fedsim.experiments.report.canvas import MUTED, PALETTE, Plot, inked
from fedsim.federation import Federation
from fedsim.machine import malloc as heap
from fedsim.machine.files import writing
from fedsim.models import MLP
from fedsim.strategies import Mean, Median
from fedsim.types import Rule

MODULE = "fedsim.experiments.bench.growth"
N, D = 100, 79_510  # of the points on the other axis: W1's
RULES: dict[str, Rule] = {"Mean": Mean(), "Median": Median()}


def bench_growth(
    ns: Sequence[int], ds: Sequence[int], rounds: int = 5, threads: int | None = None
) -> Iterator[dict[str, Any]]:
    """A line for each n at W1's d, and for each d at W1's n, of the mean and of the median.

    The experiment is W1 with batches of 6, what MNIST holds for each of 10,000 clients, and a hidden layer as wide as d
    asks. The median's rows are kept, the mean's added up. `peak_mb` is what rounds took at their most beside the loaded
    data and the model; `rows_mb` is one number of 4 bytes for each client and parameter. Raises `Invalid` where a
    process fails.
    """
    for axis, n, d in [*(("n", n, D) for n in ns), *(("d", N, d) for d in ds)]:
        for rule in RULES:
            what = f"{rule}, n = {n}, d = {d}"
            yield {"axis": axis} | in_fresh_process(MODULE, rule, n, d, rounds, threads=threads, what=what)


@heap.kept()
def point(rule: str, n: int, d: int, rounds: int) -> dict[str, Any]:
    """Measure the vector engine in this process."""
    width = max(1, round((d - 10) / 795))  # 784 h + h + 10 h + 10 parameters
    task = replace(W1.task, model=MLP(hidden=width, activation="relu"))
    fed = Federation(replace(W1, clients=n, task=task, batches=Fixed(6), rule=RULES[rule]))
    run = Run(fed, "vector")
    base = proc_bytes("VmRSS")
    if CLEAR.exists():
        CLEAR.write_text("5")
    began = time.perf_counter()
    times = run.turn(1) + run.turn(rounds)
    d = fed.x0.numel()
    return {
        "rule": rule,
        "n": n,
        "d": d,
        "seconds_per_round": median(seconds for seconds, _ in times[1:]),
        "over_floor": median(seconds / floor for seconds, floor in times[1:]),
        "peak_mb": (proc_bytes("VmHWM") - base) / MIB if CLEAR.exists() else None,
        "rows_mb": 4 * n * d / MIB,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seconds": time.perf_counter() - began,
    }


def save_growth(lines: Sequence[dict[str, Any]], out: Path) -> None:
    """Write the table and the picture, growth.csv and growth.svg."""
    frame = pd.DataFrame(lines)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out / "growth.csv", index=False)
        (out / "growth.svg").write_text(Plot("growth", growth_figure(frame)).svg())


def growth_figure(frame: pd.DataFrame) -> Figure:
    """Seconds and memory over n and over d, on logarithmic scales; dotted: in proportion to a rule's largest point."""
    axes_of = {"n": f"clients n, with d = {D:,}", "d": f"parameters d, with n = {N}"}
    shown = {axis: text for axis, text in axes_of.items() if (frame["axis"] == axis).any()}
    values = {"seconds_per_round": "seconds per round", "peak_mb": "peak memory, MB"}
    with inked():
        figure = Figure(figsize=(4.2 * len(shown), 5.6), layout="constrained")
        grid = figure.subplots(2, len(shown), sharey="row", sharex="col", squeeze=False)
        for column, (axis, label) in enumerate(shown.items()):
            for row, (value, name) in enumerate(values.items()):
                axes = grid[row, column]
                for colour, (rule, part) in zip(
                    PALETTE, frame[frame["axis"] == axis].sort_values(axis).groupby("rule"), strict=False
                ):
                    last = part.iloc[-1]
                    axes.plot(part[axis], part[value], "o-", color=colour, markersize=4, label=rule)
                    axes.plot(part[axis], part[axis] * (last[value] / last[axis]), ":", color=MUTED)
                axes.set(
                    xscale="log", yscale="log", xlabel=label if row else "", ylabel="" if column else name
                )
        grid[0, 0].legend()
    return figure


if __name__ == "__main__":
    print(json.dumps(point(sys.argv[1], *map(int, sys.argv[2:]))))
