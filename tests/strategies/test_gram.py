"""Exact whatever a BLAS makes of a product: symmetric matrices, equal points at distance 0, ties, least diameters.

Most run once with this machine's products and once with products that are off by a rounding error, another one at each
place, as kernels of other processors have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from fedsim.strategies import MDA, NNM, Bucketing, Chain, GeometricMedian, Krum, Median
from fedsim.strategies.kernels import gram as kernel
from fedsim.strategies.kernels.columns import Rows
from fedsim.strategies.kernels.gram import Gram, Points, given

CASES = 1440


@pytest.fixture(params=["this machine", "another"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner products as they come, or each number a rounding error further."""
    symmetric = kernel.symmetric

    def rounded(inner: Tensor) -> Tensor:
        signs = torch.randint(-1, 2, inner.shape, generator=Generator().manual_seed(len(inner)))
        return symmetric(inner + signs * torch.finfo(torch.float32).eps * inner.detach().abs())

    if request.param == "another":
        monkeypatch.setattr(kernel, "symmetric", rounded)


def cases(most: int, least: int = 5) -> Iterator[tuple[Tensor, int]]:
    """Rows (n, d) float32 of many shapes, with and without a common part or far rows, and f."""
    for seed in range(CASES):
        generator = Generator().manual_seed(seed)
        n = least + seed % (most - least + 1)
        d = (3, 17, 100, 1000)[seed // 7 % 4]
        x = torch.randn(n, d, generator=generator)
        f = (n - 1) // 4
        if seed % 3 == 1:
            x += 10 * torch.randn(d, generator=generator)
        if seed % 3 == 2:
            x[n - f :] = 30 * torch.randn(d, generator=generator) + 0.1 * x[n - f :]
        yield x, f


def exact(rows: Tensor) -> Tensor:
    z = rows.double()
    return (z[:, None] - z[None]).square().sum(-1)


def measured(rows: Tensor) -> Gram:
    points = Points(Rows(rows, finite=True), [])
    return Gram(len(rows), (), points.measure)


@pytest.mark.usefixtures("products")
def test_inner_products_and_distances_are_symmetric() -> None:
    """Measured, behind a mixer, and of inner products that a caller gives."""
    for x, f in cases(most=40):
        base = measured(x)
        behind = base.mixed(NNM().weights(base, f))
        inner, squared = given(x.double() @ x.double().T + torch.eye(len(x)).flip(0).triu() * 1e-13)
        for matrix in (base.inner, base.squared, behind.inner, behind.squared, inner, squared):
            assert torch.equal(matrix, matrix.T)


@pytest.mark.usefixtures("products")
def test_the_least_diameter_is_found() -> None:
    """Beside all subsets and exact distances: larger by no more than distances are right to, 1e-4 of squares."""
    for x, f in cases(most=9):
        squared = exact(x).numpy()
        subsets = [list(s) for s in combinations(range(len(x)), len(x) - f)]
        least = min(squared[np.ix_(s, s)].max() for s in subsets)
        kept = (MDA().influence(x, f) > 0).nonzero()[:, 0].numpy()
        assert len(kept) == len(x) - f
        assert squared[np.ix_(kept, kept)].max() <= least * (1 + 1e-4)


@pytest.mark.usefixtures("products")
def test_ties_of_krum_go_to_the_lowest_row() -> None:
    """With one neighbour the two nearest rows tie exactly, each the other's nearest: the lower one is the answer."""
    for seed in range(CASES):
        generator = Generator().manual_seed(seed)
        x = torch.randn(3, (2, 30, 500)[seed % 3], generator=generator) + 5 * (seed % 2)
        one, two, _ = np.argsort([float(exact(x)[i, j]) for i, j in PAIRS])[:3]
        nearest, next_ = (float(exact(x)[PAIRS[k]]) for k in (one, two))
        if next_ > nearest * (1 + 1e-4):  # nearer than that distances are not told apart
            assert torch.equal(Krum()(x, 0), x[min(PAIRS[one])])
            assert torch.equal(Krum("n-f-1")(x, 1), x[min(PAIRS[one])])


PAIRS = [(0, 1), (0, 2), (1, 2)]


@pytest.mark.usefixtures("products")
def test_equal_rows_are_one_point() -> None:
    """Their distance is 0, and all others are equally far from each: with gradients and without."""
    for x, _ in islice(cases(most=20), 300):
        rows = torch.cat([x, x[:2], x[:1]])
        n = len(x)
        for tracked in (False, True):
            found = measured(rows.clone().requires_grad_(tracked))
            for matrix in (found.inner.detach(), found.squared.detach()):
                assert torch.equal(matrix[[0, 1, 0]], matrix[n:])
            assert not found.squared.detach()[[0, 1, 0, n], [n, n + 1, n + 2, n + 2]].any()


@pytest.mark.usefixtures("products")
def test_rows_of_equal_weights_are_one_point() -> None:
    """Behind NNM, where honest rows often share all their neighbours; also where they share the copies of a row."""
    for x, f in islice(cases(most=20), 300):
        for rows in (x, torch.cat([x, x[1:]])):
            base = measured(rows)
            weights = NNM().weights(base, f)
            behind = base.mixed(weights)
            same = (weights[:, None] == weights[None]).all(-1)
            assert not behind.squared[same].any()
            places = (same.int().argmax(1), slice(None))
            assert torch.equal(behind.squared[places], behind.squared)
            points = (exact(rows)[:, :, None] == 0).int().argmax(1)[:, 0]
            shared = torch.zeros_like(weights).index_add_(1, points, weights)
            assert not behind.squared[(shared[:, None] == shared[None]).all(-1)].any()


@pytest.mark.usefixtures("products")
def test_the_geometric_median_behind_nnm_counts_equal_rows() -> None:
    """All honest rows are one point, so more than half, which is the median: with equal weights to the bit."""
    for seed in range(300):
        generator = Generator().manual_seed(seed)
        n, f = 9 + seed % 8, 2 + seed % 3
        x = torch.randn(n, 40, generator=generator)
        x[n - f :] = 1e3 * torch.randn(f, 40, generator=generator)
        gram = measured(x)
        behind = gram.mixed(NNM().weights(gram, f))
        weights = GeometricMedian().weights(behind, f)[0]
        assert not weights[n - f :].any()
        assert torch.equal(weights[: n - f], torch.full((n - f,), 1 / (n - f), dtype=torch.float64))
        assert torch.allclose(Chain(NNM(), GeometricMedian())(x, f), x[: n - f].mean(0), atol=1e-6)


def test_points_that_inner_products_cannot_tell_apart_are_one() -> None:
    x = torch.randn(7, 5, generator=Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, x[:2]])
    noise = torch.rand(9, 9, generator=Generator().manual_seed(1), dtype=torch.float64) * 2e-16
    inner, squared = given((x @ x.T) * (1 + noise))
    assert torch.equal(inner[:2], inner[7:])
    assert not squared[[0, 1], [7, 8]].any()
    assert (squared[:7, :7] > 0).sum() == 42


@pytest.mark.parametrize("mixer", [NNM(), Bucketing(2)], ids=repr)
def test_the_slope_behind_a_mixer_is_right_beside_equal_rows(mixer: NNM | Bucketing) -> None:
    """Where equal rows are one point their gradients are still their own."""
    x = torch.randn(9, 4, generator=Generator().manual_seed(3), dtype=torch.float64)
    x[7] = x[2]
    rows = x.requires_grad_()
    chain = Chain(mixer, Median())
    slope = torch.autograd.grad(chain(rows, 1, generator=Generator().manual_seed(1)).sum(), rows)[0]
    assert slope.isfinite().all()
    assert float(slope.sum()) == pytest.approx(4)
