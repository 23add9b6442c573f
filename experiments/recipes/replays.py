"""Stale replays: attackers of asynchronous methods who send what was honest once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.experiments.recipes.speeds import speeds
from fedsim.experiments.study import Study, axes

METHODS = {
    "Ringleader": "Ringleader(lr=0.05)",
    "Malenia": "Malenia(lr=0.7)",
    "IA2SGD": "IA2SGD(lr=0.05)",
    "FedBuff": "FedBuff(lr=0.1, buffer=5, local_steps=2)",
}


def replays(reduced: bool = False) -> Study:
    """Digits, 10 clients of which 2 send messages of their own that are old: accuracy at a time, by how old.

    The setting of `speeds`: 300 simulated seconds, one step size for each method, not tuned.
    """
    base = replace(speeds(reduced=True).base, attack=None)
    table: dict[str, Any] = {
        "method": METHODS,
        "attackers": {
            "none": {"byzantine": 0},
            "10 messages old": {"attack": "Replay(age=10)"},
            "200 messages old": {"attack": "Replay(age=200)"},
            "200 messages old, fast": {"attack": "Replay(age=200)", "clock.byzantine": "Constant(0.25)"},
        },
        "rule": {"mean": "Mean", "NNM + trimmed mean": "Chain(NNM, TrimmedMean)"},
        "seed": range(1 if reduced else 3),
    }
    notes = ["No paper has this table. A run ends after 300 simulated seconds."]
    if reduced:
        notes.append("Reduced setting: one of three seeds.")
    return Study(base, axes(table), notes=notes)
