"""What a membership test proves about epsilon: intervals from its right and wrong guesses.

An (epsilon, delta)-private mechanism forces every test's error rates, a (false negatives) and b (false positives),
into a region around the diagonal a + b = 1; how far outside they lie bounds epsilon from below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, ndtri

Floats = NDArray[np.float64]
Interval = tuple[float, float]
GRID = (np.arange(2048) + 0.5) / 2048


@dataclass(frozen=True)
class Counts:
    """Guesses of a membership test: members found and missed, non-members taken for members and told apart."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int

    @classmethod
    def of(cls, scores: Floats, members: NDArray[np.bool_], threshold: float) -> Counts:
        """The guesses "member" where the score is above the threshold."""
        guess = scores > threshold
        pairs = ((guess, members), (~guess, members), (guess, ~members), (~guess, ~members))
        return cls(*(int((said & truth).sum()) for said, truth in pairs))

    @cached_property
    def misses(self) -> tuple[int, int]:
        return self.false_negative, self.true_positive

    @cached_property
    def alarms(self) -> tuple[int, int]:
        return self.false_positive, self.true_negative


def implied(a: float, b: float, delta: float) -> float:
    """The smallest epsilon whose region holds the error rates: ln((1 - delta - max(a, b)) / min(a, b)), at least 0.

    Rates above the diagonal are those of the test with its answers exchanged.
    """
    if a + b > 1:
        a, b = 1 - a, 1 - b
    room = 1 - delta - max(a, b)
    if room <= 0:
        return 0.0
    return max(0.0, log(room / min(a, b))) if min(a, b) > 0 else inf


def clopper_pearson(counts: Counts, delta: float, alpha: float) -> Interval:
    """The frequentist interval for epsilon at level 1 - alpha: both rates' exact intervals at 1 - alpha / 2."""
    (a_low, a_high), (b_low, b_high) = (
        _exact_interval(*of, alpha / 2) for of in (counts.misses, counts.alarms)
    )
    corners = [implied(a_low, b_low, delta), implied(a_high, b_high, delta)]
    straddles = a_low + b_low <= 1 <= a_high + b_high
    return (0.0 if straddles else min(corners)), max(corners)


def gaussian_lower(counts: Counts, alpha: float) -> float:
    """The mu that is proved of a Gaussian mechanism at level 1 - alpha: Nasr et al., arXiv:2302.07956.

    mu = Phi^-1(1 - a+) - Phi^-1(b+), a+ and b+ exact upper bounds of the error rates at 1 - alpha / 2 each; at least 0.
    """
    a, b = (_exact_interval(*of, alpha)[1] for of in (counts.alarms, counts.misses))
    return max(0.0, float(-ndtri(a) - ndtri(b))) if a < 1 and b < 1 else 0.0


def _exact_interval(errors: int, rest: int, alpha: float) -> Interval:
    """Clopper and Pearson's interval of a rate with `errors` of errors + rest."""
    low = 0.0 if errors == 0 else float(betaincinv(errors, rest + 1, alpha / 2))
    high = 1.0 if rest == 0 else float(betaincinv(errors + 1, rest, 1 - alpha / 2))
    return low, high


def posterior(counts: Counts, delta: float, alpha: float) -> Interval:
    """The credible interval for epsilon at level 1 - alpha: Zanella-Beguelin et al., arXiv:2206.05199.

    Independent Jeffreys priors on both rates; P(epsilon' <= epsilon) is their mass inside the region of epsilon.
    """
    below = posterior_cdf(counts, delta)
    ends = []
    for mass in (alpha / 2, 1 - alpha / 2):
        if below(0.0) >= mass:
            ends.append(0.0)
        else:
            top = 1.0
            while below(top) < mass:
                top *= 2
            ends.append(float(brentq(lambda epsilon, p=mass: below(epsilon) - p, 0.0, top)))
    return ends[0], ends[1]


def posterior_cdf(counts: Counts, delta: float) -> Callable[[float], float]:
    """P(epsilon' <= epsilon), a function of epsilon: over quantiles of a, the mass of b between the edges."""
    a = betaincinv(counts.misses[0] + 0.5, counts.misses[1] + 0.5, GRID)
    shape = counts.alarms[0] + 0.5, counts.alarms[1] + 0.5

    def below(epsilon: float) -> float:
        grow, shrink = np.exp(epsilon), np.exp(-epsilon)
        low = np.maximum(0, np.maximum(1 - delta - grow * a, shrink * (1 - delta - a)))
        high = np.minimum(1, np.minimum(1 + shrink * (delta - a), delta + grow * (1 - a)))
        return float(np.mean(betainc(*shape, high) - betainc(*shape, low)))

    return below
