"""What a sweep saves: 24 small MNIST cells at once against `fedsim run`, one command after the other.

python -m fedsim.experiments.bench.sweep [SINGLES]: times the sweep, and the first SINGLES cells (default: all) alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = ["--set", "rounds=30", "--set", "evaluate_every=30"]
RULES = ["Median", "TrimmedMean", "Krum", "Chain(NNM, Median)"]
SEEDS = range(6)


def main(singles: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        axes = ["--over", f"rule={';'.join(RULES)}", "--over", f"seed={';'.join(map(str, SEEDS))}"]
        together = timed("sweep", "mnist_robust", *SMALL, *axes, "--out", f"{place}/sweep")
        cells = [(rule, str(seed)) for rule in RULES for seed in SEEDS]
        alone = [
            timed(
                "run",
                "mnist_robust",
                *SMALL,
                "--set",
                f"rule={rule}",
                "--seed",
                seed,
                "--out",
                f"{place}/runs",
            )
            for rule, seed in cells[:: len(cells) // singles][:singles]
        ]
        frames = len(list(Path(place, "sweep").glob("*/*/model.pt")))
    each = sum(alone) / len(alone)
    facts = {"cells": frames, "sweep_seconds": together, "run_seconds": each, "runs_timed": len(alone)}
    print(json.dumps(facts | {"times_faster": len(cells) * each / together}))


def timed(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "fedsim", *words],
        check=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(RULES) * len(SEEDS))
