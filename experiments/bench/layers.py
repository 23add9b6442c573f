"""Milliseconds of a round of methods whose steps go layer by layer, beside their likes without an oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedsim.batches import Fixed
from fedsim.check import Invalid, nearest
from fedsim.experiments.bench.rounds import W1, Run
from fedsim.federation import Federation
from fedsim.machine import malloc as heap
from fedsim.models import CNN, MLP
from fedsim.strategies import NNM, Chain, ClientMuon, FedSGD, HeavyBall, Mean, Muon, Scion, TrimmedMean
from fedsim.types import Rule

MODELS: dict[str, Any] = {"mlp": MLP(hidden=100, activation="relu"), "cnn": CNN()}
RULES: dict[str, Rule] = {"mean": Mean(), "robust": Chain(NNM(), TrimmedMean())}
BESIDE = {  # each method, and the one whose gradients it follows without an oracle
    "FedSGD": (FedSGD(0.1), "FedSGD"),
    "Muon": (Muon(0.02), "FedSGD"),
    "ClientMuon": (ClientMuon(0.02), "FedSGD"),
    "HeavyBall": (HeavyBall(0.1), "HeavyBall"),
    "Scion": (Scion(0.02), "HeavyBall"),
}


def bench_layers(
    models: Sequence[str] = tuple(MODELS),
    batches: Sequence[int] = (32, 128),
    rules: Sequence[str] = tuple(RULES),
    methods: Sequence[str] = tuple(BESIDE),
    *,
    clients: int = 25,
    rounds: int = 8,
    threads: int | None = None,
) -> Iterator[dict[str, Any]]:
    """A line for each model, rule, batch and method: clients on MNIST, the vector engine.

    Methods take turns of one round in one process, after two that do not count. `ratio` is that of least times to the
    method in `beside`, `flops_ratio` that of the flops of all products and convolutions in a round: what the ratio
    would be if nothing else took time.
    """
    for given, known, what in (
        (models, MODELS, "model"),
        (rules, RULES, "rule"),
        (methods, BESIDE, "method"),
    ):
        for name in given:
            if name not in known:
                raise Invalid(f"{what} = {name!r}: unknown; {nearest(name, known)}")
    chosen = {name: BESIDE[name] for name in [*(BESIDE[m][1] for m in methods), *methods]}
    torch.set_num_threads(threads or torch.get_num_threads())
    for model in models:
        task = replace(W1.task, model=MODELS[model])
        data = task.data.load()
        for rule in rules:
            for size in batches:
                base = replace(W1, task=task, clients=clients, rule=RULES[rule], batches=Fixed(size))
                with ExitStack() as stack:
                    stack.enter_context(heap.kept())
                    runs = {
                        name: Run(Federation(replace(base, method=method), dataset=data), "vector")
                        for name, (method, _) in chosen.items()
                    }
                    flops = {name: _flops(run) for name, run in runs.items()}
                    times = _turns(runs, rounds)
                for name, (_, beside) in chosen.items():
                    yield {
                        "model": model,
                        "rule": rule,
                        "batch": size,
                        "method": name,
                        "least_ms": 1e3 * min(times[name]),
                        "median_ms": 1e3 * median(times[name]),
                        "beside": beside,
                        "ratio": min(times[name]) / min(times[beside]),
                        "gflops": flops[name] / 1e9,
                        "flops_ratio": flops[name] / flops[beside],
                    }


def _turns(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run's rounds; a first one was its count of flops."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for count in range(1 + rounds):
        for name, run in runs.items():
            seconds = run.seconds()
            times[name] += [seconds] if count else []
    return times


def _flops(run: Run) -> int:
    """Of one round, which it makes."""
    with FlopCounterMode(display=False) as counter:
        run.seconds()
    total: int = counter.get_total_flops()
    return total
