"""What every split promises, and what each one is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.check import Invalid
from fedsim.datasets import split as split_module
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import (
    IID,
    Dirichlet,
    EqualDirichlet,
    Extreme,
    FeatureShift,
    GammaSimilarity,
    Natural,
    QuantitySkew,
    Shards,
    turn,
)
from fedsim.types import Dataset, Examples, Split


def dataset_of(labels: np.ndarray, classes: int) -> Dataset:
    y = torch.from_numpy(np.asarray(labels, np.int64))
    examples = Examples(torch.arange(len(y), dtype=torch.float32)[:, None], y)
    return Dataset(examples, examples, classes, groups=torch.arange(len(y)) % 60)


BALANCED = dataset_of(np.repeat(np.arange(10), 100), 10)
SPLITS = [
    IID(),
    Dirichlet(),
    Dirichlet(0.01),
    Dirichlet(1e6),
    EqualDirichlet(),
    EqualDirichlet(1e-6),
    EqualDirichlet(1e6),
    Shards(1),
    Shards(),
    QuantitySkew(),
    QuantitySkew(1e-6),
    GammaSimilarity(0.0),
    GammaSimilarity(),
    GammaSimilarity(1.0),
    Extreme(),
    Natural(),
    FeatureShift(Dirichlet(0.1)),
]


def test_the_table_is_complete() -> None:
    assert {type(split).__name__ for split in SPLITS} | {"Indices"} == set(split_module.__all__)


def counts(split: Split, n: int, dataset: Dataset = BALANCED, seed: int = 0) -> np.ndarray:
    """Examples of each class at each client (n, classes)."""
    labels = dataset.train.y.numpy()
    shards = split.deal(dataset, n, np.random.default_rng(seed))
    return np.stack([np.bincount(labels[shard], minlength=dataset.classes) for shard in shards])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SPLITS),
    st.integers(1, 30),
    st.lists(st.integers(0, 4), min_size=60, max_size=200),
    st.integers(0, 2**32),
)
def test_a_split_is_a_partition_without_empty_clients(
    split: Split, n: int, labels: list[int], seed: int
) -> None:
    dataset = dataset_of(np.array(labels), 5)
    shards = split.deal(dataset, n, np.random.default_rng(seed))
    assert len(shards) == n
    assert min(map(len, shards)) > 0
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    again = split.deal(dataset, n, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))


@pytest.mark.parametrize("split", SPLITS, ids=repr)
def test_more_clients_than_examples_is_refused(split: Split) -> None:
    with pytest.raises(Invalid, match=r"clients: .*(1000|60 owners)"):
        split.deal(BALANCED, 1001, np.random.default_rng(0))


def test_iid_is_even_and_unsorted() -> None:
    table = counts(IID(), 7)
    assert table.sum(1).tolist() == [143] * 6 + [142]
    assert table.min() > 3  # 14 expected


def test_dirichlet_follows_its_law() -> None:
    """Shares of a class are Dir(alpha) over n clients: mean 1/n, variance (1/n)(1 - 1/n)/(n alpha + 1)."""
    n = 5
    for alpha in (0.3, 1.0, 10.0):
        shares = np.concatenate([counts(Dirichlet(alpha), n, seed=seed) for seed in range(200)]) / 100
        assert shares.mean() == pytest.approx(1 / n)
        assert shares.var() == pytest.approx((1 / n) * (1 - 1 / n) / (n * alpha + 1), rel=0.1)


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_dirichlet_of_tiny_alpha_and_many_clients_leaves_nobody_empty(n: int) -> None:
    assert counts(Dirichlet(0.01), n).sum(1).min() >= 1
    assert counts(Dirichlet(1e-6), n).sum(1).min() >= 1


def test_dirichlet_keeps_its_least_size() -> None:
    assert counts(Dirichlet(0.05, min_size=20), 50).sum(1).tolist() == [20] * 50
    assert counts(Dirichlet(0.05, min_size=7), 50).sum(1).min() == 7
    with pytest.raises(Invalid, match="1050"):
        counts(Dirichlet(min_size=21), 50)


def test_equal_dirichlet_s_first_client_follows_its_law_and_all_are_of_one_size() -> None:
    """Of a client that draws from full classes, class shares are Dir(alpha) over C = 10 and 20 draws of it."""
    alpha, size = 0.5, 20
    tables = np.stack([counts(EqualDirichlet(alpha), 50, seed=seed) for seed in range(400)])
    assert (tables.sum(2) == size).all()
    assert (tables.sum(1) == 100).all()
    first = [np.random.default_rng(seed) for seed in range(400)]
    for rng in first:  # as `by_class` draws before the order of clients
        for _ in range(10):
            rng.permutation(100)
    shares = np.stack([t[rng.permutation(50)[0]] for t, rng in zip(tables, first, strict=True)]) / size
    law = 0.1 * 0.9 / (10 * alpha + 1)  # of the mixture; drawing adds E[p (1 - p)] / size
    assert shares.mean() == pytest.approx(0.1)
    assert shares.var() == pytest.approx(law + (0.1 * 0.9 - law) / size, rel=0.1)


def test_shards_hold_few_classes() -> None:
    table = counts(Shards(2), 10)  # 20 shards of 50: each inside one class
    assert table.sum(1).tolist() == [100] * 10
    assert (table > 0).sum(1).max() <= 2


def test_quantity_skew_follows_its_law() -> None:
    n, alpha = 5, 2.0
    sizes = np.concatenate([counts(QuantitySkew(alpha), n, seed=seed).sum(1) for seed in range(400)]) / 1000
    assert sizes.var() == pytest.approx((1 / n) * (1 - 1 / n) / (n * alpha + 1), rel=0.1)
    table = counts(QuantitySkew(alpha), n)
    expected = table.sum(1, keepdims=True) / 10  # no label skew
    assert (np.abs(table - expected) < 4 * np.sqrt(expected)).all()


@pytest.mark.parametrize(("gamma", "least", "most"), [(0.0, 0.995, 1.0), (0.5, 0.5, 0.61), (1.0, 0.09, 0.2)])
def test_gamma_is_the_share_that_is_not_sorted(gamma: float, least: float, most: float) -> None:
    table = counts(GammaSimilarity(gamma), 10)
    assert table.sum(1).tolist() == [100] * 10
    commonest = (table.max(1) / 100).mean()
    assert least <= commonest <= most


def test_extreme_clients_hold_one_class() -> None:
    labels = np.repeat(np.arange(4), [10, 20, 30, 340])
    table = counts(Extreme(), 40, dataset_of(labels, 4))
    assert (table > 0).sum(1).tolist() == [1] * 40
    assert sorted((table > 0).sum(0).tolist()) == [1, 2, 3, 34]
    few = counts(Extreme(), 3, dataset_of(labels, 5))  # class 4 has no examples
    assert (few > 0).sum(1).tolist() == [2, 1, 1]
    assert ((few > 0).sum(0) <= 1).all()


def test_natural_keeps_owners_whole() -> None:
    shards = Natural().deal(BALANCED, 7, np.random.default_rng(0))
    owners = [set((shard % 60).tolist()) for shard in shards]
    assert sorted(map(len, owners)) == [8, 8, 8, 9, 9, 9, 9]
    assert sorted(owner for mine in owners for owner in mine) == list(range(60))
    alone = Natural().deal(BALANCED, 60, np.random.default_rng(0))
    assert all(len(set((shard % 60).tolist())) == 1 for shard in alone)


def test_natural_says_what_is_missing() -> None:
    nobody = Dataset(BALANCED.train, BALANCED.test, 10)
    with pytest.raises(Invalid, match="QMNIST"):
        Natural().deal(nobody, 2, np.random.default_rng(0))


def test_natural_writers(data_folder: Path) -> None:
    if not (data_folder / "QMNIST").is_dir():
        pytest.skip("no QMNIST labels beside MNIST")
    data = MNIST().load()
    shards = Natural().deal(data, 539, np.random.default_rng(0))
    assert (min(map(len, shards)), max(map(len, shards))) == (19, 131)
    assert all(len(data.groups[shard].unique()) == 1 for shard in shards)


def test_turning_is_counter_clockwise_about_the_middle() -> None:
    x = torch.rand(2, 3, 5, 5)
    for quarter in range(-4, 5):
        torch.testing.assert_close(turn(x, 90 * quarter), torch.rot90(x, quarter, (2, 3)), atol=1e-5, rtol=0)
    wide = torch.zeros(1, 1, 5, 9)
    wide[..., 2, :] = 1  # a bar through the middle stays a bar through the middle
    upright = turn(wide, 90)
    assert upright[0, 0, :, 4].min() > 0.99
    assert upright.sum() == pytest.approx(5, abs=0.01)


def test_features_shift_with_the_client() -> None:
    split, x = FeatureShift(rotation=90.0, noise=0.5), torch.rand(400, 1, 6, 6)

    def seen(client: int, split: FeatureShift = split) -> torch.Tensor:
        return split.shift(x, client, 3, np.random.default_rng(client))

    assert torch.equal(seen(0), x)
    turned = seen(2) - torch.rot90(x, 1, (2, 3))
    assert turned.std() == pytest.approx(0.5, rel=0.02)
    half = seen(1, FeatureShift(noise=0.5)) - x
    assert half.std() == pytest.approx(0.5 / 2**0.5, rel=0.02)
    assert torch.equal(seen(2), seen(2))
    assert torch.equal(IID().shift(x, 2, 3, np.random.default_rng(0)), x)


def test_only_pictures_can_be_turned() -> None:
    with pytest.raises(Invalid, match="rotation"):
        FeatureShift(rotation=10.0).deal(BALANCED, 5, np.random.default_rng(0))
