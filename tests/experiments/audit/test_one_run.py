"""The audits within one run: the published formulas' values, brute force, and a run that is audited."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest
from scipy.stats import norm

from fedsim.accounting import gaussian_epsilon
from fedsim.check import Invalid
from fedsim.datasets.load import Digits
from fedsim.datasets.split import IID
from fedsim.experiments.audit.bounds import Counts, gaussian_lower
from fedsim.experiments.audit.one_run import guesses, lower_bound, p_value
from fedsim.experiments.audit.one_shot import between_normals, one_shot
from fedsim.models import MLP
from fedsim.privacy import CentralDP, ExampleDP
from fedsim.spec import Experiment
from fedsim.strategies import ByzClipSGD, Mean
from fedsim.task import Task

# arXiv:2305.08846: m, r, v, epsilon, delta -> p
P_VALUES = {
    (100, 100, 60, 0, 0): 0.0284440,
    (100, 100, 75, 0.5, 0): 0.00480474,
    (1000, 100, 95, 2, 1e-5): 0.0178246,
    (1000, 100, 95, 2, 1e-6): 0.0162741,
    (1000, 200, 180, 1, 1e-5): 4.36225e-4,
    (5000, 1500, 1429, 2.675, 1e-5): 0.00535870,
}
# m, r, v, delta -> epsilon at 95 %
BOUNDS = {
    (1000, 1000, 1000, 0): 5.80907,
    (1000, 100, 100, 1e-5): 3.46538,
    (1000, 100, 95, 1e-5): 2.16518,
    (1000, 1000, 700, 1e-5): 0.731740,
    (100, 100, 100, 0): 3.49297,
    (100, 50, 50, 0): 2.78473,
}


@pytest.mark.parametrize(("at", "p"), P_VALUES.items())
def test_p_values_of_one_run(at, p):
    assert p_value(*at) == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize(("at", "epsilon"), BOUNDS.items())
def test_bounds_of_one_run(at, epsilon):
    assert lower_bound(*at) == pytest.approx(epsilon, rel=1e-5)


def test_all_right_has_a_closed_form_and_chance_proves_nothing():
    q = 0.05 ** (1 / 80)
    assert lower_bound(100, 80, 80, 0.0) == pytest.approx(np.log(q / (1 - q)), abs=1e-6)
    assert lower_bound(100, 80, 42, 0.0) == 0.0


def test_guesses_are_the_clearest_scores():
    scores, coins = np.array([3.0, -2.0, 0.1, -0.1, 2.0, -3.0]), np.array([1, 0, 1, 0, 0, 1], bool)
    assert guesses(scores, coins, 0.67) == (4, 2)


def test_the_p_value_holds_for_randomised_response():
    epsilon, rng = 1.0, np.random.default_rng(0)
    right = rng.binomial(200, exp(epsilon) / (1 + exp(epsilon)), size=2000)
    small = np.mean([p_value(200, 200, int(v), epsilon, 0.0) <= 0.05 for v in right])
    assert small <= 0.05 + 3 * 0.005


# arXiv:2302.03098: mean, deviation -> epsilon at 1e-5
@pytest.mark.parametrize(("mean", "deviation", "epsilon"), [(1, 1, 4.3772), (2, 1, 9.9973), (1, 1.1, 6.4776)])
def test_epsilon_between_two_normals(mean, deviation, epsilon):
    assert between_normals(mean, deviation, 1e-5) == pytest.approx(epsilon, rel=1e-4)


def test_epsilon_between_two_normals_is_that_of_an_integral():
    epsilon, x = between_normals(0.7, 0.8, 1e-3), np.linspace(-12, 12, 400_001)
    p, q = norm.pdf(x), norm.pdf(x, 0.7, 0.8)
    deltas = [np.clip(a - np.exp(epsilon) * b, 0, None).sum() * (x[1] - x[0]) for a, b in ((p, q), (q, p))]
    assert max(deltas) == pytest.approx(1e-3, rel=1e-4)
    assert between_normals(0.0, 1.0, 1e-5) == 0.0


# arXiv:2302.07956: errors of 1000 on each side -> mu, epsilon at 1e-5
@pytest.mark.parametrize(
    ("errors", "mu", "epsilon"), [(200, 1.50311, 7.06891), (159, 1.80676, 8.82716), (0, 5.35982, None)]
)
def test_bounds_of_a_gaussian_mechanism(errors, mu, epsilon):
    counts = Counts(1000 - errors, errors, errors, 1000 - errors)
    found = gaussian_lower(counts, 0.05)
    assert found == pytest.approx(mu, rel=1e-5)
    if epsilon:
        assert gaussian_epsilon(found, 1e-5) == pytest.approx(epsilon, rel=1e-5)


def central(**changes) -> Experiment:
    base = Experiment(
        task=Task(data=Digits(scaling="standard"), model=MLP(hidden=(64,))),
        split=IID(),
        clients=20,
        rule=Mean(),
        method=ByzClipSGD(lr=0.5, tau=1.0),
        privacy=CentralDP(noise=3.0, delta=1e-5),
        rounds=20,
    )
    return replace(base, **changes)


@pytest.mark.parametrize("seed", range(3))
def test_one_run_estimates_what_the_ledger_books(seed):
    found = one_shot(central(seed=seed), canaries=300)
    assert found.passed
    assert found.estimate == pytest.approx(found.epsilon, rel=0.25)
    assert 0 < found.proved < found.epsilon


def test_less_noise_is_seen_in_one_run():
    found = one_shot(central(), canaries=300, noise_factor=0.6)
    assert not found.passed
    assert found.estimate > 1.3 * found.epsilon


def test_one_run_says_what_it_would_have_seen():
    short = central(rounds=4)
    found = one_shot(short, canaries=50)
    assert 0.9 < found.noise_caught < 1
    assert not one_shot(short, canaries=50, noise_factor=found.noise_caught).passed
    for word in ("assumes", "cannot see", "would see", f"times {found.noise_caught:.4f} by its size"):
        assert word in str(found)


def test_one_run_is_for_a_server_that_adds_noise_to_all():
    with pytest.raises(Invalid, match="one run tells of noise that a server adds"):
        one_shot(central(privacy=ExampleDP(clip=1.0, noise=1.0)))
    with pytest.raises(Invalid, match="canaries take part in every round"):
        one_shot(central(cohort=10))
