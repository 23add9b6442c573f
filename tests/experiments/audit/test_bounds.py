"""What membership tests prove: the paper's test vectors, the region itself, and how often the intervals are right."""

from math import exp, inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from fedsim.accounting import gaussian_epsilon
from fedsim.experiments.audit.bounds import Counts, clopper_pearson, implied, posterior, posterior_cdf

# true positives, false negatives, false positives, true negatives -> interval at alpha = 0.1, delta = 1e-5
VECTORS = {
    (487, 0, 512, 1): (0.144, 6.416),
    (70, 30, 30, 70): (0.626, 1.178),
    (700, 300, 300, 700): (0.779, 0.948),
    (500, 500, 500, 500): (0.003, 0.089),
}


@pytest.mark.parametrize(("counts", "interval"), VECTORS.items())
def test_posterior_intervals_are_those_of_the_paper(counts, interval):
    np.testing.assert_allclose(posterior(Counts(*counts), 1e-5, 0.1), interval, atol=6e-4)


def test_clopper_pearson_says_nothing_where_the_paper_says_so():
    assert clopper_pearson(Counts(487, 0, 512, 1), 1e-5, 0.1) == (0, inf)


def inside(a, b, epsilon, delta):
    """The constraints of (epsilon, delta)-privacy on the error rates of a test and of its opposite."""
    grow = exp(epsilon)
    rates = [(a, b), (b, a), (1 - a, 1 - b), (1 - b, 1 - a)]
    return all(p + grow * q >= 1 - delta - 1e-12 for p, q in rates)


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.sampled_from([0.0, 1e-5, 0.05]))
def test_the_implied_epsilon_is_the_smallest_whose_region_holds_the_rates(a, b, delta):
    epsilon = implied(a, b, delta)
    assert inside(a, b, epsilon, delta)
    if epsilon > 1e-6:
        assert not inside(a, b, epsilon * (1 - 1e-6) - 1e-9, delta)


def test_the_posterior_is_the_mass_of_two_beta_distributions_inside_the_region():
    counts, delta, epsilon, rng = Counts(25, 5, 8, 22), 1e-3, 1.5, np.random.default_rng(0)
    a, b = rng.beta(5.5, 25.5, 1_000_000), rng.beta(8.5, 22.5, 1_000_000)
    grow = exp(epsilon)
    rates = [(a, b), (b, a), (1 - a, 1 - b), (1 - b, 1 - a)]
    mass = np.logical_and.reduce([p + grow * q >= 1 - delta for p, q in rates]).mean()
    assert posterior_cdf(counts, delta)(epsilon) == pytest.approx(mass, abs=2e-3)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 60), st.integers(1, 60))
@settings(max_examples=15)
def test_intervals_are_ordered_and_narrow_with_their_level(tp, fn, fp, tn):
    counts = Counts(tp, fn, fp, tn)
    for interval in (clopper_pearson, posterior):
        wide, narrow = interval(counts, 1e-5, 0.05), interval(counts, 1e-5, 0.4)
        assert 0 <= wide[0] <= narrow[0] <= narrow[1] <= wide[1]


@given(st.integers(1, 60), st.integers(1, 60))
def test_clopper_pearson_uses_the_exact_interval_of_each_rate(fn, fp):
    n, alpha = 61, 0.1
    ends = [binomtest(k, n).proportion_ci(1 - alpha / 2, method="exact") for k in (fn, fp)]
    (a, b) = ends
    low, high = clopper_pearson(Counts(n - fn, fn, fp, n - fp), 1e-5, alpha)
    corners = [implied(a.low, b.low, 1e-5), implied(a.high, b.high, 1e-5)]
    straddles = a.low + b.low <= 1 <= a.high + b.high
    assert low == pytest.approx(0 if straddles else min(corners))
    assert high == pytest.approx(max(corners))


def test_guesses_are_counted():
    scores, members = np.array([0.1, 0.9, 0.8, 0.2, 0.5]), np.array([True, True, False, False, True])
    assert Counts.of(scores, members, 0.4) == Counts(2, 1, 1, 1)


@pytest.mark.parametrize(("interval", "trials"), [(clopper_pearson, 200), (posterior, 60)])
def test_the_lower_end_seldom_exceeds_the_truth(interval, trials):
    # A Gaussian mechanism with mu = 1, tested at the threshold where its error rates prove most at delta.
    rng, n, delta, alpha = np.random.default_rng(0), 400, 1e-2, 0.1
    truth = gaussian_epsilon(1.0, delta)
    wrong = 0
    for _ in range(trials):
        members = rng.random(n) < 0.5
        counts = Counts.of(rng.normal(size=n) + members, members, truth + 0.5)
        wrong += interval(counts, delta, alpha)[0] > truth
    assert wrong / trials <= alpha
