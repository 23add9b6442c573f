"""Negative controls: mechanisms with one fault each, which an audit must notice, and correct ones, which it must pass.

python -m fedsim.experiments.audit.controls --seeds 20
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from fedsim.batches import Batches, Poisson
from fedsim.env import AtClients
from fedsim.experiments.audit.command import audit
from fedsim.experiments.recipes.demo import quickstart
from fedsim.keys import Keys
from fedsim.privacy import ExampleDP, MessageDP
from fedsim.spec import Experiment
from fedsim.strategies import ByzClipSGD, FedSGD

Ints = NDArray[np.int64]
NOISE = ("gradient/0", "message/0")
keys_of, draw, place = Keys.of, Batches.draw, Poisson.place


def heavy_weights(self: Batches, keys: Keys, round: int, ids: Ints, sizes: Ints, steps: int) -> Any:
    index, weight = draw(self, keys, round, ids, sizes, steps)
    return index, 5 * weight


def actual_batch(self: Batches, keys: Keys, round: int, ids: Ints, sizes: Ints, steps: int) -> Any:
    index, weight = draw(self, keys, round, ids, sizes, steps)
    there = (weight > 0).reshape(len(ids), steps, -1)
    mean = there / np.maximum(1, there.sum(-1, keepdims=True))
    return index, mean.reshape(len(ids), -1).astype(np.float32)


def same_every_round(self: Keys, purpose: str, round: int = 0, ids: Any = 0) -> Any:
    return keys_of(self, purpose, 0 if purpose in NOISE else round, ids)


def shared_by_two(self: Keys, purpose: str, round: int = 0, ids: Any = 0) -> Any:
    return keys_of(self, purpose, round, np.where(ids == 1, 0, ids) if purpose in NOISE else ids)


def twice_the_rate(self: Poisson, keys: Keys, ids: Ints, sizes: Ints, steps: Ints) -> Any:
    rate = cast(float, self.rate)
    return place(replace(self, rate=min(1.0, 2 * rate)), keys, ids, sizes, steps)


FAULTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "weights of drawn examples five times too large": (Batches, "draw", heavy_weights),
    "Poisson divided by the actual batch": (Poisson, "draw", actual_batch),
    "the same noise in every round": (Keys, "of", same_every_round),
    "noise shared by two clients": (Keys, "of", shared_by_two),
    "twice the booked rate": (Poisson, "place", twice_the_rate),
}
THIN = "noise times 0.6"


@contextmanager
def planted(fault: str) -> Iterator[float]:
    """The library with a fault in it; yields the factor on the noise that is part of it."""
    if fault == THIN:
        yield 0.6
        return
    where, name, wrong = FAULTS[fault]
    unseen = patch.object(
        AtClients, "_require_weights", lambda self, batch: None
    )  # the product refuses two of them
    with patch.object(where, name, wrong), unseen:
        yield 1.0


def settings() -> dict[str, Experiment]:
    """The quickstart recipe (full batches, Byz-Clip21-SGD2M+) and what else there is to account for."""
    full = quickstart().main
    return {
        "Byz-Clip21-SGD2M+": full,
        "example-level, full batch": replace(full, method=FedSGD(lr=0.5)),
        "example-level, Poisson": replace(
            full,
            method=FedSGD(lr=0.5),
            batches=Poisson(rate=0.2),
            privacy=ExampleDP(clip=1.0, epsilon=8.0, delta=1e-4),
        ),
        "message-level": replace(
            full, method=ByzClipSGD(lr=0.5, tau=0.5), privacy=MessageDP(epsilon=8.0, delta=1e-4)
        ),
    }


def controls(seeds: range, runs: int = 2000, rounds: int | None = None) -> Iterator[dict[str, Any]]:
    """One row for each seed and setting without a fault, and for each seed and fault (under Poisson sampling)."""
    for seed in seeds:
        shorter: dict[str, Any] = {"seed": seed} | ({} if rounds is None else {"rounds": rounds})
        poisson = replace(settings()["example-level, Poisson"], **shorter)
        for fault in (*FAULTS, THIN):
            with planted(fault) as factor:
                yield _row(poisson, "example-level, Poisson", fault, runs, factor)
        for name, experiment in settings().items():
            yield _row(replace(experiment, **shorter), name, "none", runs, 1.0)


def _row(experiment: Experiment, setting: str, fault: str, runs: int, factor: float) -> dict[str, Any]:
    start = time.perf_counter()
    verdict = audit(experiment, runs=runs, noise_factor=factor)
    return {
        "seed": experiment.seed,
        "setting": setting,
        "fault": fault,
        "passed": verdict.passed,
        "share": round(verdict.proved / verdict.epsilon, 3),
        "epsilon": round(verdict.epsilon, 3),
        "why": verdict.faults[:1],
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--rounds", type=int)
    chosen = parser.parse_args()
    for row in controls(range(chosen.first, chosen.first + chosen.seeds), chosen.runs, chosen.rounds):
        print(json.dumps(row), flush=True)
