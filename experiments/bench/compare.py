"""Two runs of `fedsim bench rounds --json`: what has become slower, and what is noise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import t as student

from fedsim.check import Invalid

FEWEST = 8  # values that an interval takes
DRAWS = 999
SETTING = ("threads", "device", "cores")  # what must be the same in both


def bench_compare(old: Path, new: Path, margin: float = 0.05) -> Iterator[dict[str, Any]]:
    """A line for each workload and system that is in both files: how many times the old time over the floor it takes.

    Rounds are paired by their number: round r has the same batches in both, and its time is over the floor that was
    measured right after it. `times` is the median of the ratios new / old, `low` and `high` its 99 % interval. The
    verdict is "slower" where all of the interval is above 1 + margin, "faster" where all of it is below
    1 / (1 + margin), "same" where it lies between the two, otherwise "unclear": too much noise to tell.
    Raises `Invalid` where nothing can be compared.
    """
    before, after = _lines(old), _lines(new)
    if not before.keys() & after.keys():
        raise Invalid(f"{new}: no workload and system in common with {old}")
    for key in (key for key in before if key in after):
        one, other = before[key], after[key]
        for field in SETTING:
            if one[field] != other[field]:
                raise Invalid(
                    f"{new}: {field} = {other[field]!r}, in {old} {one[field]!r}: measure both alike"
                )
        ratios = [b / a for a, b in zip(one["ratios"], other["ratios"], strict=False)]
        low, high = interval(ratios)
        yield {
            "workload": key[0],
            "system": key[1],
            "old_over_floor": one["over_floor"],
            "new_over_floor": other["over_floor"],
            "times": median(ratios),
            "low": low,
            "high": high,
            "verdict": verdict(low, high, margin),
        }


def interval(values: Sequence[float], level: float = 0.99) -> tuple[float, float]:
    """Holds the median of the distribution that positive `values` come from; (0, inf) where they are too few.

    Rounds side by side are alike (a machine is slow for a while), so what is drawn again and again are blocks of
    sqrt(n) values on a circle (Politis and Romano 1992): median * exp(-+ t s), s the deviation of the logarithm of
    the medians of these draws, t Student's quantile for n / block - 1 degrees of freedom.
    """
    n, block = len(values), math.ceil(len(values) ** 0.5)
    if n < FEWEST:
        return 0.0, math.inf
    logs = np.log(np.asarray(values, float))
    starts = np.random.default_rng(0).integers(0, n, (DRAWS, math.ceil(n / block)))
    places = (starts[:, :, None] + np.arange(block)).reshape(DRAWS, -1)[:, :n] % n
    deviation = np.median(logs[places], axis=1).std() * math.sqrt(n / (n - block))
    half = float(student.ppf((1 + level) / 2, n / block - 1) * deviation)
    middle = median(values)
    return middle * math.exp(-half), middle * math.exp(half)


def verdict(low: float, high: float, margin: float) -> str:
    if low > 1 + margin:
        return "slower"
    if high < 1 / (1 + margin):
        return "faster"
    return "same" if low >= 1 / (1 + margin) and high <= 1 + margin else "unclear"


def _lines(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The measured lines of a file by workload and system."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        return {(line["workload"], line["system"]): line for line in lines if "left_out" not in line}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{path}: not the output of fedsim bench rounds --json ({error})") from None
