"""Who draws which examples: the same alone and together, uniform, whole epochs, Poisson quantiles."""

from itertools import combinations
from math import ceil, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from fedsim.accounting import Release
from fedsim.batches import Batches, Epochs, Fixed, Full, Poisson, binomial, shuffled
from fedsim.check import Invalid
from fedsim.keys import Keys

SAMPLERS = [Full(), Fixed(1), Fixed(7), Epochs(5), Poisson(rate=0.3), Poisson(size=4), Poisson(rate=1.0)]


def real(
    batches: Batches, keys: Keys, round: int, clients: dict[int, int], steps: int
) -> list[list[list[int]]]:
    """The examples of every batch without padding, [client][step]; `clients` maps ids to sizes."""
    ids, sizes = list(clients), list(clients.values())
    index, weight = batches.draw(keys, round, np.array(ids), np.array(sizes), steps)
    assert index.dtype == np.int64
    assert weight.dtype == np.float32
    assert index.shape == weight.shape == (len(ids), index.shape[1])
    assert (index[weight == 0] == 0).all()
    cut = [
        zip(i.reshape(steps, -1), w.reshape(steps, -1), strict=True)
        for i, w in zip(index, weight, strict=True)
    ]
    return [[i[w > 0].tolist() for i, w in client] for client in cut]


@pytest.mark.parametrize("batches", SAMPLERS, ids=repr)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    round=st.integers(0, 50),
    steps=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_a_client_alone_draws_what_it_draws_among_others(batches, sizes, round, steps, seed):
    keys, clients = Keys(seed, 9), dict(enumerate(sizes))
    together = real(batches, keys, round, clients, steps)
    for i, m in clients.items():
        assert real(batches, keys, round, {i: m}, steps)[0] == together[i]
        for batch in together[i]:
            assert len(set(batch)) == len(batch), "an example twice in a batch"
            assert all(0 <= j < m for j in batch)
    assert real(batches, keys, round, dict(reversed(clients.items())), steps) == together[::-1]


@pytest.mark.parametrize("batches", SAMPLERS, ids=repr)
def test_weights_are_one_over_the_expected_size(batches):
    sizes = np.array([3, 20, 64])
    _, weight = batches.draw(Keys(1, 3), 0, np.arange(3), sizes, 2)
    for row, expected in zip(weight, batches.expected(sizes), strict=True):
        assert set(row[row > 0]) <= {np.float32(1 / expected)}
    if not isinstance(batches, Poisson):
        np.testing.assert_allclose(weight.sum(axis=1), 2, rtol=1e-6)  # two batches, each of weight 1


@pytest.mark.parametrize("batches", SAMPLERS, ids=repr)
@given(st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_share_is_how_far_one_example_moves_the_batch_gradient(batches, m):
    # Gradients of norm 1. Replaced: the worst are opposite. Added or removed: one term comes or goes.
    _, weight = batches.draw(Keys(4, 1), 0, np.array([0]), np.array([m]), 1)
    moved = {"replace-one": 2.0, "add-or-remove": 1.0}[batches.adjacency] * weight.max()
    assert moved == 0 or moved == pytest.approx(batches.share(np.array([m]))[0], rel=1e-6)


def test_full_takes_everything_in_order():
    assert real(Full(), Keys(0, 2), 3, {0: 4, 1: 2}, 2) == [[[0, 1, 2, 3]] * 2, [[0, 1]] * 2]


def test_fixed_draws_afresh_for_every_step_round_and_client():
    keys = Keys(0, 50)
    seen = [
        tuple(b)
        for r in range(5)
        for c in real(Fixed(8), keys, r, dict.fromkeys(range(50), 1000), 3)
        for b in c
    ]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("m", "b"), [(3, 1), (4, 2), (6, 3), (9, 2), (12, 2), (40, 1), (65, 1)])
def test_fixed_draws_every_subset_equally_often(m, b):
    n = 60_000
    index, _ = Fixed(b).draw(Keys(m, n), 0, np.arange(n), np.full(n, m), 1)
    code = (1 << np.sort(index, axis=1)).sum(axis=1) if m < 60 else index[:, 0]
    subsets = [sum(1 << j for j in s) for s in combinations(range(m), b)] if m < 60 else list(range(m))
    counted = dict(zip(*np.unique(code, return_counts=True), strict=True))
    assert chisquare([counted.get(s, 0) for s in subsets]).pvalue > 1e-4


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_an_epoch_uses_every_example_at_most_once(m, b, steps, seed):
    keys, batches, rounds = Keys(seed, 3), Epochs(b), 30
    drawn = [batch for r in range(rounds) for batch in real(batches, keys, r, {2: m}, steps)[0]]
    per_epoch = m // min(m, b)
    for start in range(0, len(drawn), per_epoch):
        epoch = [j for batch in drawn[start : start + per_epoch] for j in batch]
        assert len(set(epoch)) == len(epoch)
    used = np.bincount([j for batch in drawn for j in batch], minlength=m)
    (paid,) = batches.releases(np.arange(rounds * steps), np.ones(rounds * steps), m)
    assert used.max() <= paid.times
    whole = rounds * steps // per_epoch
    if b <= m and m % b == 0:
        assert used.min() >= whole, "a whole epoch left an example out"


def test_epochs_are_shuffled_differently():
    keys = Keys(3, 1)
    first, second = (real(Epochs(10), keys, r, {0: 10}, 1)[0][0] for r in (0, 1))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_small_ranges_are_shuffled_by_the_walk_of_one_position_at_a_time():
    """On networks that are worked out whole, beside the definition in integers of Python."""
    size = np.arange(1, 70)[:, None]
    order = Keys(5, 100).of("walk", 0, np.arange(len(size)))[:, None]
    position = np.arange(4)[None] % size
    got = shuffled(position, size, order)
    assert got.tolist() == [
        [_walked(int(x), int(m), int(key)) for x in row]
        for row, (m,), (key,) in zip(position, size, order, strict=True)
    ]


def _walked(x: int, size: int, key: int) -> int:
    b = max(8, ceil(sqrt(size)))
    a = max(8, ceil(size / b))
    while True:
        left, right, a_now, b_now = *divmod(x, b), a, b
        for odd in range(1, 17, 2):
            bits = (right + key) * (0x9E3779B97F4A7C15 * odd) % 2**64
            bits = (bits ^ bits >> 32) * 0xBF58476D1CE4E5B9 % 2**64
            left, right = right, (left + ((bits >> 32) * a_now >> 32)) % a_now
            a_now, b_now = b_now, a_now
        x = left * b_now + right
        if x < size:
            return x


@given(st.integers(0, 2**53 - 1), st.integers(1, 5000), st.floats(1e-4, 1 - 1e-4))
@settings(max_examples=300, deadline=None)
def test_binomial_numbers_are_the_quantiles(k53, m, q):
    u = k53 / 2**53
    k = binomial(np.array([u]), np.array([m]), np.array([q]))[0]
    assert 0 <= k <= m
    assert binom.cdf(k, m, q) >= u * (1 - 1e-9)
    assert binom.cdf(k - 1, m, q) <= u * (1 + 1e-9)


def test_poisson_takes_each_example_with_its_rate():
    n, m = 40_000, 6
    index, weight = Poisson(rate=0.3).draw(Keys(5, n), 0, np.arange(n), np.full(n, m), 1)
    taken = np.zeros((n, m))
    for column in range(index.shape[1]):
        hit = weight[:, column] > 0
        taken[np.flatnonzero(hit), index[hit, column]] = 1
    np.testing.assert_allclose(taken.mean(axis=0), 0.3, atol=5 * (0.21 / n) ** 0.5)
    together = np.corrcoef(taken.T)[np.triu_indices(m, 1)]  # independent: no correlation between examples
    np.testing.assert_allclose(together, 0, atol=5 / n**0.5)


def test_poisson_allows_an_empty_batch():
    index, weight = Poisson(rate=1e-6).draw(Keys(0, 1), 0, np.array([0]), np.array([5]), 3)
    assert index.tolist() == [[0, 0, 0]]
    assert weight.tolist() == [[0, 0, 0]]


def test_the_chance_of_an_example_is_what_an_accountant_is_told():
    assert Poisson(size=32).chance(600) == pytest.approx(32 / 600)
    assert Poisson(size=32).chance(10) == 1
    assert Poisson(rate=0.25).chance(600) == 0.25
    assert Fixed(32).chance(64) == 0.5
    assert Fixed(32).chance(20) == 1
    assert Full().chance(5) == Epochs(2).chance(5) == 1
    steps, z = np.arange(4), np.array([2.0, 1.0, 2.0, 2.0])
    assert Full().releases(steps, z, 64) == (Release(1.0, 1), Release(2.0, 3))
    assert Fixed(32).releases(steps, z, 64) == (Release(1.0, 1, "fixed", 0.5), Release(2.0, 3, "fixed", 0.5))
    assert Poisson(rate=0.25).releases(steps[:1], z[:1], 9) == (Release(2.0, 1, "poisson", 0.25),)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Fixed(0),
        lambda: Epochs(-1),
        Poisson,
        lambda: Poisson(rate=0.1, size=3),
        lambda: Poisson(rate=1.5),
        lambda: Poisson(rate=0.0),
        lambda: Fixed(2.5),
    ],
)
def test_wrong_sizes_and_rates_are_refused(bad):
    with pytest.raises(Invalid):
        bad()
