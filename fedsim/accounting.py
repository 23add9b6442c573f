"""The mathematics of privacy accounting: closed forms, and accountants with the sampling they are valid for.

Everything is in terms of the noise multiplier z, the standard deviation of the noise over the L2 sensitivity
of the release. `Release` describes noisy releases of one kind; a history is a list of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, inf, log, log1p, pi, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.check import Invalid

Floats = NDArray[np.float64]
Sampling = Literal["none", "fixed", "poisson"]


@dataclass(frozen=True)
class Release:
    """`times` noisy releases of noise multiplier z, each of which sees an example with chance `rate`.

    The chance amplifies privacy under "poisson" sampling (each example independently) and under "fixed"
    sampling (a batch of given size without replacement); under "none" the example counts as always seen.
    """

    z: float
    times: int
    sampling: Sampling = "none"
    rate: float = 1.0


def grouped(z: Floats, sampling: Sampling = "none", rate: float = 1.0) -> tuple[Release, ...]:
    """Releases of noise multipliers z (s,), equal ones together."""
    values, times = np.unique(z, return_counts=True)
    return tuple(Release(float(v), int(t), sampling, rate) for v, t in zip(values, times, strict=True))


Histories = Callable[[float], Collection[Sequence[Release]]]  # of several clients, by noise multiplier


# ---------------------------------------------------------------- closed form of Gaussian composition
def gaussian_delta(epsilon: float, mu: float) -> float:
    """The exact delta at epsilon of a Gaussian mechanism with sensitivity / sigma = mu.

    delta = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu) (Balle and Wang, arXiv:1805.06530).
    """
    return exp(_log_delta(epsilon, mu))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The exact epsilon at delta of a Gaussian mechanism: the inverse of `gaussian_delta`."""
    if mu == inf:
        return inf
    if mu == 0 or _log_delta(0, mu) <= log(delta):
        return 0.0
    above = zcdp_epsilon(mu**2 / 2, delta)
    return _root(lambda epsilon: _log_delta(epsilon, mu) - log(delta), 0, above * (1 + 1e-12))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose mechanism is (epsilon, delta)-private."""
    low = high = 1.0
    while _log_delta(epsilon, high) < log(delta):
        high *= 2
    while _log_delta(epsilon, low) > log(delta):
        low /= 2
    return _root(lambda mu: _log_delta(epsilon, mu) - log(delta), low, high)


def composed_mu(history: Sequence[Release]) -> float:
    """mu of the one Gaussian mechanism that unamplified releases compose to: mu^2 = sum of times / z^2.

    Dong, Roth and Su, arXiv:1905.02383, corollary 3.3.
    """
    return sqrt(sum(r.times / r.z**2 for r in history))


def zcdp_epsilon(rho: float, delta: float) -> float:
    """rho + 2 sqrt(rho ln(1/delta)), rho = mu^2 / 2: Bun and Steinke, arXiv:1605.02065, proposition 1.3."""
    return rho + 2 * sqrt(rho * log(1 / delta))


def _log_delta(epsilon: float, mu: float) -> float:
    """ln delta, to full precision where delta or mu is tiny.

    It is phi(u) (M(u) - M(v)) with u, v = epsilon/mu -+ mu/2, M the Mills ratio: phi(u) = e^epsilon phi(v).
    """
    from scipy.special import erfcx, log_ndtr

    def mills(x: Floats | float) -> Floats:
        return np.asarray(sqrt(pi / 2) * erfcx(np.asarray(x) / sqrt(2)))

    u, v = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    log_phi = -(u**2) / 2 - log(2 * pi) / 2
    if mu < 0.5:  # the two ratios agree in their leading digits: integrate -M'(x) = 1 - x M(x) from u to v
        nodes, weights = _legendre()
        x = (u + v) / 2 + nodes * mu / 2
        return float(log_phi + log(mu / 2 * float(weights @ (1 - x * mills(x)))))
    if u > 0:
        return float(log_phi + log(float(mills(u) - mills(v))))
    inside = float(log_ndtr(-u))
    return inside + log1p(-exp(log_phi + log(float(mills(v))) - inside))


@cache
def _legendre() -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(16)


def _root(f: Callable[[float], float], low: float, high: float, tolerance: float = 1e-300) -> float:
    from scipy.optimize import brentq

    return float(brentq(f, low, high, xtol=tolerance, rtol=4 * np.finfo(float).eps, maxiter=500))


# ---------------------------------------------------------------- accountants
# Opacus' orders, and some below and above them for large and for small epsilon.
ORDERS = np.array(
    [1.01, 1.02, 1.05, *(1 + x / 10 for x in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256, 512, 1024]
)


def exact(history: Sequence[Release], delta: float) -> float:
    """Epsilon of Gaussian releases without amplification, exactly; a bound where sampling amplifies."""
    return gaussian_epsilon(composed_mu(history), delta)


def rdp(history: Sequence[Release], delta: float) -> float:
    """Epsilon by Renyi divergences: an upper bound, amplified by Poisson or by fixed-size sampling.

    Converted by theorem 21 of Balle et al., arXiv:1905.09982.
    """
    total = sum((r.times * renyi(r.z, r.sampling, r.rate) for r in history), np.zeros(len(ORDERS)))
    if not total.any():
        return 0.0
    epsilons = total - (log(delta) + np.log(ORDERS)) / (ORDERS - 1) + np.log1p(-1 / ORDERS)
    return max(0.0, float(epsilons.min()))


def prv(history: Sequence[Release], delta: float) -> float:
    """Epsilon by numerical composition: Opacus' upper bound, within 1 % (Gopi et al., arXiv:2106.02848)."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(r.z, r.rate, r.times) for r in history if r.times]
    if not accountant.history:
        return 0.0
    with (
        warnings.catch_warnings(),
        np.errstate(divide="ignore"),
    ):  # logarithms of masked values, orders at an end
        warnings.simplefilter("ignore")
        error = min(0.01, max(1e-4, 0.005 * rdp(history, delta)))
        try:
            return max(0.0, float(accountant.get_epsilon(delta, eps_error=error)))
        except (ValueError, RuntimeError, MemoryError, OverflowError) as why:
            raise Invalid(
                f"accountant = 'prv': no numerical composition at delta = {delta:g} of these releases ({why}); allowed "
                "are the others, as 'rdp'"
            ) from None


def gdp(history: Sequence[Release], delta: float) -> float:
    """Epsilon by Opacus' Gaussian limit, mu^2 = sum T (e^(1/z^2) - 1), a bound where nothing amplifies.

    Under sub-sampling the limit can lie below the truth, so it is refused there (see `ACCOUNTANTS`).
    """
    from opacus.accountants.analysis.gdp import compute_mu_poisson

    parts = (compute_mu_poisson(steps=r.times, noise_multiplier=r.z, sample_rate=1.0) for r in history)
    return gaussian_epsilon(sqrt(sum(float(mu) ** 2 for mu in parts)), delta)


@dataclass(frozen=True)
class Accountant:
    """An accountant, how reports call it, and the samplings that it is valid for."""

    epsilon: Callable[[Sequence[Release], float], float]
    title: str
    valid: frozenset[Sampling]


ACCOUNTANTS = {
    "exact": Accountant(exact, "exact Gaussian composition", frozenset({"none", "fixed"})),
    "rdp": Accountant(rdp, "RDP", frozenset({"none", "poisson", "fixed"})),
    "prv": Accountant(prv, "PRV", frozenset({"none", "poisson"})),
    "gdp": Accountant(gdp, "GDP", frozenset({"none"})),
}


def calibrate(accountant: Accountant, histories: Histories, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier z that keeps all `histories(z)` to (epsilon, delta); raises `Invalid`.

    The multipliers of a history grow in proportion to z.
    """
    if accountant.epsilon is exact:
        return max(composed_mu(history) for history in histories(1.0)) / gaussian_mu(epsilon, delta)

    def over(z: float) -> float:
        spent = max(accountant.epsilon(history, delta) for history in histories(z))
        return log(max(spent, 1e-9) / epsilon)

    low = high = 1.0
    while over(high) > 0:
        high *= 2
        if high > 1e6:
            raise Invalid(f"epsilon = {epsilon} is below what {accountant.title} can show at delta = {delta}")
    while over(low) < 0:
        low /= 2
    z = exp(_root(lambda t: over(exp(t)), log(low), log(high), 1e-6))
    while over(z) > 0:
        z *= 1 + 1e-6
    return z


# ---------------------------------------------------------------- Renyi divergences of one release
@cache
def renyi(z: float, sampling: Sampling, rate: float) -> Floats:
    """The Renyi divergence of one release at each of `ORDERS`."""
    if rate == 1 or sampling == "none":
        return ORDERS / (2 * z**2)
    if sampling == "fixed":
        return _fixed_renyi(z, rate)
    from opacus.accountants.analysis.rdp import compute_rdp

    return np.asarray(compute_rdp(q=rate, noise_multiplier=z, steps=1, orders=ORDERS.tolist()))


def _fixed_renyi(z: float, rate: float) -> Floats:
    """Batches of fixed size without replacement: Wang et al., arXiv:1808.00087, theorem 27.

    (a - 1) R(a) = ln(1 + sum_j rate^j C(a, j) min(4 sqrt(B(j-) B(j+)), 2 e^(j (j-1) / (2 z^2)))), at whole a,
    with B(j) = E|L - 1|^j of the likelihood ratio L and j-, j+ the even numbers around j. Linear between
    whole a, and never above the release without sampling.
    """
    from scipy.special import gammaln, logsumexp

    whole, j, chosen = _choices()
    top = len(j) + 1
    moment = np.full(top + 2, inf)  # the bound without moments serves beyond order 256
    moment[2:257:2] = [_log_moment(order, z) for order in range(2, 257, 2)]
    around = log(4) + (moment[j - j % 2] + moment[j + j % 2]) / 2
    terms = j * log(rate) + np.minimum(around, log(2) + j * (j - 1) / (2 * z**2)) - gammaln(j + 1)
    logs = np.logaddexp(0, logsumexp(chosen + terms, axis=1))
    amplified: Floats = np.interp(ORDERS, [1, *whole], [0, *logs]) / (ORDERS - 1)
    return np.asarray(np.minimum(amplified, ORDERS / (2 * z**2)))


@cache
def _choices() -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The whole orders a beside `ORDERS`, all j from 2 on, and ln C(a, j) + ln j! for both."""
    from scipy.special import gammaln

    whole = np.unique([np.floor(ORDERS), np.ceil(ORDERS)]).astype(np.int64)[1:]
    j = np.arange(2, whole[-1] + 1)
    a = whole[:, None]
    return whole, j, np.where(j <= a, gammaln(a + 1) - gammaln(np.maximum(a - j, 0) + 1), -inf)


def _log_moment(order: int, z: float) -> float:
    """ln E (L - 1)^order for even orders, L = e^(x/z - 1/(2 z^2)), x normal; by trapezoids.

    Where L > 1 the integrand is log-concave at least as x is, with its mode from order/z to sqrt(order) above. Where
    that is far out all else is less than e^-98 of it, so that little noise does not take more of them.
    """
    from scipy.special import logsumexp

    far = order / z > 28 + sqrt(order)
    x = np.arange(order / z - 14 if far else -14 - sqrt(order), order / z + sqrt(order) + 14, 1 / 16)
    ratio = x / z - 1 / (2 * z**2)
    with np.errstate(divide="ignore"):  # L = 1 adds nothing
        size = np.maximum(ratio, 0) + np.log(-np.expm1(-np.abs(ratio)))  # ln |L - 1|
    return float(logsumexp(order * size - x**2 / 2)) - log(16 * sqrt(2 * pi))


# ---------------------------------------------------------------- formulas of papers
def nominal_multiplier(epsilon: float, delta: float, steps: int) -> float:
    """sigma over 2 tau of arXiv:2603.23472, section 6: sigma = (tau / epsilon) sqrt(T ln(1/delta))."""
    return sqrt(steps * log(1 / delta)) / (2 * epsilon)


def shuffle_bound(updates: int) -> float:
    """1 / sqrt(2 ln M): the noise over the clip that M > 1 updates an epoch need (arXiv:2601.10237)."""
    return 1 / sqrt(2 * log(updates))


def shuffle_separation(updates: int) -> float:
    """kappa >= (1 - 1 / sqrt(4 pi ln M)) / sqrt(8), the price of noise below the bound (arXiv:2601.10237)."""
    return (1 - 1 / sqrt(4 * pi * log(updates))) / sqrt(8)
