"""The accountants against high precision, numeric integration, Opacus and dp-accounting."""

import itertools
import time
import warnings
from functools import cache
from math import erf, exp, inf, log, pi, sqrt
from typing import Literal

import mpmath as mp
import numpy as np
import pytest
from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SampledWithoutReplacementDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.integrate import quad
from scipy.special import logsumexp

from fedsim.accounting import (
    ACCOUNTANTS,
    ORDERS,
    Release,
    calibrate,
    exact,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    gdp,
    nominal_multiplier,
    prv,
    rdp,
    renyi,
    shuffle_bound,
    shuffle_separation,
    zcdp_epsilon,
)
from fedsim.check import Invalid

REPLACE, ADD = NeighboringRelation.REPLACE_ONE, NeighboringRelation.ADD_OR_REMOVE_ONE


def precise_delta(epsilon, mu):
    """Balle and Wang's closed form in 80 digits."""
    with mp.workdps(80):
        epsilon, mu = mp.mpf(epsilon), mp.mpf(mu)
        return mp.ncdf(mu / 2 - epsilon / mu) - mp.exp(epsilon) * mp.ncdf(-mu / 2 - epsilon / mu)


# ---------------------------------------------------------------- the closed form
@given(st.floats(1e-4, 300), st.floats(0, 3))
def test_delta_is_the_closed_form_in_high_precision(mu, share):
    epsilon = share * (mu + mu**2 / 2)
    truth = precise_delta(epsilon, mu)
    assume(truth > 1e-290)
    assert gaussian_delta(epsilon, mu) == pytest.approx(float(truth), rel=1e-11)


@pytest.mark.parametrize(("epsilon", "mu"), [(0.0, 1.0), (1.0, 1.0), (3.0, 0.7), (10.0, 4.0), (0.1, 0.05)])
def test_delta_is_the_hockey_stick_divergence_of_two_gaussians(epsilon, mu):
    def density(x, mean):
        return exp(-((x - mean) ** 2) / 2) / sqrt(2 * pi)

    start = epsilon / mu + mu / 2  # where the densities of N(mu, 1) and e^epsilon N(0, 1) cross
    excess, _ = quad(lambda x: density(x, mu) - exp(epsilon) * density(x, 0), start, start + 40, epsabs=0)
    assert gaussian_delta(epsilon, mu) == pytest.approx(excess, rel=1e-7)


@given(st.floats(1e-5, 300), st.floats(-600, -0.5))
def test_epsilon_inverts_delta_to_double_precision(mu, log_delta):
    delta = exp(log_delta)
    epsilon = gaussian_epsilon(mu, delta)
    if epsilon == 0:
        assert precise_delta(0, mu) <= delta * (1 + 1e-12)
        return
    with mp.workdps(
        80
    ):  # the true delta crosses the asked one within a few units in the last place of epsilon
        below, above = (precise_delta(mp.mpf(epsilon) * (1 + s * mp.mpf(2) ** -48), mu) for s in (-1, 1))
        assert above < delta < below
    assert gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-12)


def test_epsilon_at_the_ends():
    assert gaussian_epsilon(0, 1e-5) == 0
    assert gaussian_epsilon(inf, 1e-5) == inf
    assert gaussian_epsilon(1, 0.5) == 0  # delta(0) = 2 Phi(1/2) - 1 = 0.38
    assert gaussian_delta(0, 1) == pytest.approx(erf(0.5 / sqrt(2)), rel=1e-14)


@given(st.floats(1e-3, 50), st.floats(1e-12, 0.1))
def test_zcdp_bounds_the_exact_epsilon(mu, delta):
    assert zcdp_epsilon(mu**2 / 2, delta) >= gaussian_epsilon(mu, delta)


# ---------------------------------------------------------------- accountants beside their peers
PLAIN = [(1.0, 1), (5.0, 100), (30.0, 1000), (2.0, 3), (0.7, 20)]


@pytest.mark.parametrize(("z", "times"), PLAIN)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_plain_gaussian_composition(z, times, delta):
    history = [Release(z, times)]
    truth = exact(history, delta)
    peer = PLDAccountant(ADD, value_discretization_interval=1e-3)
    peer.compose(SelfComposedDpEvent(GaussianDpEvent(z), times))
    assert truth == pytest.approx(peer.get_epsilon(delta), rel=0.01)
    assert truth <= rdp(history, delta) <= zcdp_epsilon(times / z**2 / 2, delta)
    assert truth <= gdp(history, delta)


@pytest.mark.parametrize(("z", "times"), PLAIN[1:4])
def test_prv_bounds_plain_gaussian_composition(z, times):
    history = [Release(z, times)]
    assert exact(history, 1e-5) <= prv(history, 1e-5) <= exact(history, 1e-5) * 1.01


@given(st.lists(st.tuples(st.floats(0.5, 50), st.integers(1, 200)), min_size=2, max_size=4))
def test_releases_of_different_noise_compose_by_their_squares(parts):
    mu = sqrt(sum(times / z**2 for z, times in parts))
    history = [Release(z, times) for z, times in parts]
    assert exact(history, 1e-5) == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-12)
    assert rdp(history, 1e-5) == pytest.approx(rdp([Release(1 / mu, 1)], 1e-5), rel=1e-9)


POISSON = [
    (1.0, 0.05, 1000),
    (4.0, 0.01, 100),
    (0.7, 0.02, 500),
    (2.0, 0.3, 200),
    (0.6, 0.5, 20),
    (10.0, 0.5, 99),
]


def opacus(accountant, z, q, times, delta):
    accountant.history = [(z, q, times)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where the best order is the first or the last
        return accountant.get_epsilon(delta)


def tight(z, q, times, delta):
    """Epsilon of Poisson sampling by dp-accounting's privacy loss distributions, a bound within its grid."""
    accountant = PLDAccountant(ADD, value_discretization_interval=2e-4)
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(z)), times))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("z", "q", "times"), POISSON)
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_rdp_of_poisson_sampling_is_opacus_on_more_orders(z, q, times, delta):
    ours = rdp([Release(z, times, "poisson", q)], delta)
    assert tight(z, q, times, delta) <= ours <= opacus(RDPAccountant(), z, q, times, delta) * (1 + 1e-9)


@pytest.mark.parametrize(("z", "q", "times"), POISSON)
def test_rdp_of_poisson_sampling_is_dp_accountings_at_every_whole_order(z, q, times):
    # Only whole orders: at others dp-accounting drops the signs of a series and its value is larger.
    delta, curve = 1e-5, times * renyi(z, "poisson", q)
    for a, r in zip(ORDERS, curve, strict=True):
        if a == int(a) and a < 200:
            google = RdpAccountant([int(a)], ADD)
            google.compose(SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(z)), times))
            assert google.get_epsilon(delta) == pytest.approx(r + log(1 - 1 / a) - log(delta * a) / (a - 1))


@pytest.mark.parametrize(("z", "q"), [(0.5, 0.01), (1.0, 0.05), (4.0, 0.001), (20.0, 0.5)])
def test_poisson_renyi_is_the_integral(z, q):
    x = np.arange(-40 * z, ORDERS[-1] + 40 * z, z / 64)  # trapezoids over the density of N(0, z^2)
    ratio = np.logaddexp(log(1 - q), log(q) + (2 * x - 1) / (2 * z**2))
    total = [logsumexp(a * ratio - x**2 / (2 * z**2)) - log(64 * sqrt(2 * pi)) for a in ORDERS]
    np.testing.assert_allclose(renyi(z, "poisson", q), total / (ORDERS - 1), rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize(("z", "q", "times"), POISSON)
def test_prv_is_within_one_percent_of_the_tight_value(z, q, times):
    history, truth = [Release(z, times, "poisson", q)], tight(z, q, times, 1e-5)
    ours = prv(history, 1e-5)
    assert truth * (1 - 1e-3) <= ours <= truth * 1.01
    assert ours <= opacus(PRVAccountant(), z, q, times, 1e-5) * (1 + 1e-4)  # less exact at small epsilon
    assert ours < rdp(history, 1e-5)


FIXED = [
    (1.0, 0.05, 1000),
    (4.0, 0.01, 100),
    (0.7, 0.02, 500),
    (2.0, 0.3, 200),
    (0.6, 0.5, 20),
    (1.0, 1.0, 10),
]


@pytest.mark.parametrize(("z", "q", "times"), FIXED)
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_fixed_size_sampling_beside_dp_accounting(z, q, times, delta):
    m = 1000
    ours = rdp([Release(z, times, "fixed", q)], delta)
    google = RdpAccountant(
        [float(a) for a in ORDERS if a <= 50], REPLACE
    )  # above, its differences lose their digits
    google.compose(
        SelfComposedDpEvent(SampledWithoutReplacementDpEvent(m, round(q * m), GaussianDpEvent(z)), times)
    )
    plain = rdp([Release(z, times)], delta)
    assert ours <= min(plain, google.get_epsilon(delta)) * (1 + 1e-9)
    assert ours >= 0.9 * min(plain, google.get_epsilon(delta))


@pytest.mark.parametrize(("z", "q"), [(0.05, 1e-9), (0.8, 0.05), (3.0, 0.2), (20.0, 0.5), (60.0, 0.01)])
@pytest.mark.parametrize("a", [2, 3, 30, 64])
def test_fixed_size_renyi_is_the_theorem_in_high_precision(z, q, a):
    with mp.workdps(250):
        z_, q_ = mp.mpf(z), mp.mpf(q)

        @cache
        def moment(j):  # E (L - 1)^j by the binomial theorem, E L^i = e^(i (i - 1) / (2 z^2))
            return mp.fsum(
                (-1) ** (j - i) * mp.binomial(j, i) * mp.exp(i * (i - 1) / (2 * z_**2)) for i in range(j + 1)
            )

        def term(j):
            around = 4 * mp.sqrt(moment(j - j % 2) * moment(j + j % 2))
            return q_**j * mp.binomial(a, j) * min(around, 2 * mp.exp(j * (j - 1) / (2 * z_**2)))

        theorem = mp.log(1 + mp.fsum(term(j) for j in range(2, a + 1))) / (a - 1)
        truth = float(min(theorem, a / (2 * z_**2)))
    ours = renyi(z, "fixed", q)[np.flatnonzero(a == ORDERS)[0]]
    assert ours == pytest.approx(truth, rel=1e-9)


def test_little_noise_takes_no_more_time() -> None:
    """A device accounts for what a server asks for before it refuses it: the least noise cost 25 s once."""
    renyi(1.0, "fixed", 0.37)  # what is imported late, and the table of all

    def seconds(z: float) -> float:
        began = time.perf_counter()
        renyi(z, "fixed", 0.37)
        return time.perf_counter() - began

    usual, little = (min(seconds(z + i * 1e-9) for i in range(1, 6)) for z in (1.0, 1e-3))
    assert little < 5 * usual


# ---------------------------------------------------------------- shape
KINDS = st.sampled_from([("none", 1.0), ("poisson", 0.1), ("fixed", 0.1)])


@given(KINDS, st.floats(0.6, 40), st.integers(1, 500), st.floats(1.05, 3), st.integers(1, 300))
@settings(max_examples=25)
def test_epsilon_falls_with_noise_and_grows_with_releases(kind, z, times, factor, more):
    base = rdp([Release(z, times, *kind)], 1e-5)
    assert rdp([Release(z * factor, times, *kind)], 1e-5) <= base
    assert rdp([Release(z, times + more, *kind)], 1e-5) >= base
    if kind[0] == "none":
        assert exact([Release(z * factor, times)], 1e-5) < exact([Release(z, times)], 1e-5)
        assert exact([Release(z, times + more)], 1e-5) > exact([Release(z, times)], 1e-5)


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
@given(st.floats(0.7, 10), st.floats(0.01, 0.4))
@settings(max_examples=8)
def test_a_smaller_sampling_rate_is_more_private(sampling, z, q):
    bounds = [rdp([Release(z, 50, sampling, r)], 1e-5) for r in (q / 2, q, 1.0)]
    assert bounds[0] <= bounds[1] <= bounds[2] == rdp([Release(z, 50)], 1e-5)


def test_nothing_released_costs_nothing():
    for accountant in ACCOUNTANTS.values():
        assert accountant.epsilon([], 1e-5) == accountant.epsilon([Release(1.0, 0)], 1e-5) == 0


# ---------------------------------------------------------------- from a budget to noise
@given(st.floats(0.01, 100), st.floats(1e-9, 1e-2), st.integers(1, 10_000))
def test_the_exact_multiplier_spends_the_budget_to_the_last_digits(epsilon, delta, steps):
    z = calibrate(ACCOUNTANTS["exact"], lambda z: [[Release(z, steps)]], epsilon, delta)
    assert exact([Release(z, steps)], delta) == pytest.approx(epsilon, rel=1e-12)


@given(KINDS, st.floats(0.2, 30), st.integers(1, 2000))
@settings(max_examples=8)
def test_the_rdp_multiplier_keeps_the_budget_and_wastes_none(kind, epsilon, steps):
    z = calibrate(ACCOUNTANTS["rdp"], lambda z: [[Release(z, steps, *kind)]], epsilon, 1e-5)
    assert epsilon * (1 - 1e-4) <= rdp([Release(z, steps, *kind)], 1e-5) <= epsilon


def test_a_budget_below_what_an_accountant_can_show_is_refused():
    with pytest.raises(Invalid, match=r"epsilon = 0\.0001 is below what RDP can show"):
        calibrate(ACCOUNTANTS["rdp"], lambda z: [[Release(z, 10)]], 1e-4, 1e-5)


# ---------------------------------------------------------------- formulas of papers
@pytest.mark.parametrize(("nominal", "zcdp"), [(3, 10.8), (8, 39.0), (23, 200)])
def test_nominal_epsilons_are_not_accounted_ones(nominal, zcdp):
    delta, steps = 4e-4, 300
    z = nominal_multiplier(nominal, delta, steps)
    assert z == pytest.approx(sqrt(steps * log(1 / delta)) / nominal / 2)
    assert zcdp_epsilon(steps / z**2 / 2, delta) == pytest.approx(
        zcdp, rel=5e-3
    )  # 2 sqrt(2) e + 2 e^2 / ln(1/delta)
    assert nominal < exact([Release(z, steps)], delta) < zcdp


def test_shuffle_bound_is_the_table_of_the_paper():
    updates = [48, 97, 195, 234, 390, 937, 10**4, 10**5, 10**6]
    sigma = [0.359, 0.331, 0.308, 0.303, 0.290, 0.270, 0.233, 0.208, 0.190]
    kappa = [0.303, 0.307, 0.310, 0.311, 0.313, 0.315, 0.321, 0.324, 0.327]
    np.testing.assert_allclose([shuffle_bound(m) for m in updates], sigma, atol=6e-4)
    np.testing.assert_allclose([shuffle_separation(m) for m in updates], kappa, atol=6e-4)


def test_prv_is_never_negative_and_refuses_in_words() -> None:
    """-0.0099 for much noise, and Opacus' own error for so many releases with so little of it."""
    assert prv([Release(100.0, 1, "poisson", 1e-4)], 1e-2) == 0.0
    for z, rate, times, delta in [(50.0, 1e-3, 10, 1e-2), (10.0, 1e-4, 100, 1e-3)]:
        assert prv([Release(z, times, "poisson", rate)], delta) >= 0.0
    with pytest.raises(Invalid, match="no numerical composition"):
        prv([Release(0.3, 100_000, "poisson", 1e-4)], 1e-12)


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_no_corner_is_negative_infinite_or_below_what_is_exact(sampling: Literal["poisson", "fixed"]) -> None:
    """z from 0.2 to 100, rates from 1e-5 to 1, up to a million releases, delta from 1e-12 to 1e-2.

    Nothing amplified exceeds what never amplifies, and at rate 1 nothing is below the closed form.
    """
    grid = itertools.product([0.2, 1, 100], [1e-5, 0.03, 0.5, 1.0], [1, 10**4, 10**6], [1e-12, 1e-5, 1e-2])
    for z, rate, times, delta in grid:
        history = [Release(z, times, sampling, rate)]
        plain, amplified = gaussian_epsilon(sqrt(times) / z, delta), rdp(history, delta)
        assert 0 <= amplified < inf
        assert amplified <= rdp([Release(z, times)], delta) * (1 + 1e-9)
        if rate == 1:
            assert amplified >= plain * (1 - 1e-9)
