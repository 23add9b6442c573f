"""Randomized response on many bits: its epsilon and delta exactly, by two binomial distributions.

k bits, each flipped by itself with chance p < 1/2. Two inputs that differ in all of them are the worst pair; fewer
differences are post-processing of it. With b flips the likelihood ratio is e^((k - 2 b) e0), e0 = ln((1 - p) / p).
"""

from __future__ import annotations

from functools import cache
from math import ceil, exp, inf, log

from fedsim.check import Invalid


def response_delta(epsilon: float, k: int, p: float) -> float:
    """The least delta at epsilon: P[B <= m] - e^epsilon P[B' <= m], B ~ Bin(k, p), B' ~ Bin(k, 1 - p).

    m is the largest number of flips whose ratio is above e^epsilon (Kairouz et al., arXiv:1311.0776, theorem 3.3).
    """
    from scipy.stats import binom

    m = ceil((k - epsilon / unit(p)) / 2) - 1
    if m < 0:
        return 0.0
    lost = float(binom.logcdf(m, k, 1 - p))
    return max(0.0, float(binom.cdf(m, k, p)) - exp(epsilon + lost))


@cache
def response_epsilon(k: int, p: float, delta: float) -> float:
    """The least epsilon at delta, from above, to nine digits."""
    from scipy.optimize import brentq

    if not 0 < p < 0.5:
        return 0.0 if p == 0.5 else inf
    most = k * unit(p)
    if k == 0 or response_delta(0.0, k, p) <= delta:
        return 0.0
    if response_delta(most * (1 - 1e-12), k, p) > delta:
        return most
    return min(
        most, (1 + 1e-9) * float(brentq(lambda e: response_delta(e, k, p) - delta, 0, most, rtol=1e-12))
    )


def response_chance(k: int, epsilon: float, delta: float) -> float:
    """The least chance p with which k bits keep (epsilon, delta), to nine digits; raises `Invalid`."""
    from scipy.optimize import brentq

    def over(e0: float) -> float:
        return response_epsilon(k, chance(e0), delta) - epsilon

    low, high = epsilon / k, max(1.0, epsilon)  # one bit alone is (e0, 0)-private, and all of them k e0
    while over(low) > 0:
        low /= 2
    while over(high) < 0 and high < 40:
        high *= 2
    if over(high) < 0:
        raise Invalid(
            f"epsilon = {epsilon:g} for {k} bits at delta = {delta:g}: no flips are needed for so little"
        )
    e0 = float(brentq(over, low, high, rtol=1e-10))
    while over(e0) > 0:
        e0 *= 1 - 1e-9
    return chance(e0)


def unit(p: float) -> float:
    """e0 = ln((1 - p) / p), the epsilon of one bit."""
    return log((1 - p) / p)


def chance(e0: float) -> float:
    """p = 1 / (1 + e^e0)."""
    return 1 / (1 + exp(e0))
