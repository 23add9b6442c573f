"""What one run proves: Steinke, Nasr and Jagielski, arXiv:2305.08846.

Of m canaries each is in one of two worlds by a fair coin of its own. From what one run puts out, r of the coins are
guessed and v guessed right; under (epsilon, delta)-privacy v is hardly more than binomial(r, 1 / (1 + e^-epsilon)). The
guesses need not be independent: this is its worth.
"""

from __future__ import annotations

from math import exp

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

Floats = NDArray[np.float64]
TOP = 50.0  # no run proves more


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The chance of v or more of r guesses right, of m coins, in an (epsilon, delta)-private run: theorem 5.2.

    min(1, beta + 2 m delta alpha), beta = P(B >= v), alpha = max over i of P(v > B >= v - i) / i.
    """
    q = 1 / (1 + exp(-epsilon))
    beyond = float(binom.sf(v - 1, r, q))
    if delta == 0 or v == 0:
        return min(1.0, beyond)
    i = np.arange(1, v + 1)
    alpha = float(((binom.sf(v - i - 1, r, q) - beyond) / i).max())
    return min(1.0, beyond + 2 * m * delta * max(alpha, 0.0))


def lower_bound(m: int, r: int, v: int, delta: float, alpha: float = 0.05) -> float:
    """The largest epsilon that is refuted at level 1 - alpha; 0 where none is."""
    low, high = 0.0, TOP
    if p_value(m, r, v, 0.0, delta) > alpha:
        return 0.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(m, r, v, middle, delta) <= alpha else (low, middle)
    return low


def guesses(scores: Floats, coins: NDArray[np.bool_], share: float) -> tuple[int, int]:
    """How many coins are guessed, and how many right: heads for the highest scores, tails for the lowest.

    `share` of the coins is guessed; it is to be chosen before the scores are seen.
    """
    k = max(1, int(len(scores) * share / 2))
    order = np.argsort(scores, kind="stable")
    return 2 * k, int((~coins[order[:k]]).sum() + coins[order[-k:]].sum())
