"""Numbers on a line in groups: exact k-means, and how many groups there are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def within(values: Floats, most: int) -> Floats:
    """The least sums of squares (k,) around the means of 1, 2, ... `most` groups of n sorted values, n >= most.

    On a line the groups of the best k-means are intervals, so that each optimum follows from those of one group less
    (Wang and Song, The R Journal 3(2), 2011).
    """
    cost = _costs(values)
    best, sums = cost[0], [cost[0, -1]]
    for _ in range(1, most):  # best[j]: of the values up to j; the last group begins at i
        best = np.concatenate([[0.0], (best[:-1, None] + cost[1:]).min(0)[1:]])
        sums.append(best[-1])
    least: Floats = np.maximum(np.array(sums), 0)
    return least


def two(values: Floats) -> int:
    """Where the second of two groups begins in the best 2-means of n >= 2 sorted values."""
    cost = _costs(values)
    return int((cost[0, :-1] + cost[1:, -1]).argmin()) + 1


def groups(values: Floats, references: Floats, most: int = 7) -> int:
    """How many groups n sorted values on [0, 1] form, by the gap statistic (Tibshirani et al., 2001).

    Gap(k) = ln mean_b W_k(reference_b) - ln W_k, s_k = sd_b(ln W_k(reference_b)) sqrt(1 + 1/B): the least k with
    Gap(k) >= Gap(k + 1) - s_{k + 1}. `references` (B, n) are uniform on [0, 1].
    """
    most = min(most, len(values))
    tiny = 1e-12 * len(values)  # sums of squares of which rounding alone is left
    drawn = np.array([within(np.sort(row), most) for row in references]) + tiny
    gap = np.log(drawn.mean(0)) - np.log(within(values, most) + tiny)
    spread = np.log(drawn).std(0) * np.sqrt(1 + 1 / len(references))
    enough = gap[:-1] >= gap[1:] - spread[1:]
    return int(enough.argmax()) + 1 if enough.any() else most


def _costs(values: Floats) -> Floats:
    """The sum of squares (n, n) of values i to j around their mean; Inf where j < i."""
    n = len(values)
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values, values**2))
    count = np.arange(n)[None] - np.arange(n)[:, None] + 1
    total, square = (s[None, 1:] - s[:-1, None] for s in (sums, squares))
    return np.where(count > 0, square - total**2 / np.maximum(count, 1), np.inf)
