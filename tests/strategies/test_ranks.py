"""Columns in order, by networks and by sorting, against NumPy's own sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from fedsim.strategies.kernels.columns import NETWORK, copied, ordered
from fedsim.strategies.kernels.networks import Wanted, exchange, steps


def columns_of(m: int) -> Tensor:
    """Columns (m, 500) with and without ties, and of zeros and ones, by which a network is judged."""
    z = torch.randn(m, 500, generator=Generator().manual_seed(m))
    z[:, :100] = z[:, :100].round()
    z[:, 100:400] = (z[:, 100:400] > torch.linspace(-2, 2, 300)).float()
    return z


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("m", [*range(1, NETWORK + 1), 33, 50, 100])
def test_every_wanted_rank_is_in_its_place(m: int, short: bool) -> None:
    z = columns_of(m)
    want = np.sort(z.numpy(), axis=0)
    f, low, high = m // 5, (m - 1) // 2, m // 2 + 1
    ends = [(i, i + 1) for i in (*range(f), *range(m - f, m))]
    for wanted in (
        [],
        [(low, high)],
        [(f, m - f)],
        [*ends, (f, low), (low, high), (high, m - f)],
        [(m - 1, m)],
    ):
        got = ordered(copied(z, short), *wanted).numpy()
        for start, stop in wanted or [(i, i + 1) for i in range(m)]:
            assert np.array_equal(np.sort(got[start:stop], axis=0), want[start:stop])


@pytest.mark.parametrize("m", range(2, 15))
def test_all_zeros_and_ones_come_out_in_order(m: int) -> None:
    """By the 0-1 principle this proves a network (Knuth, TAOCP 3, 5.3.4, theorem Z)."""
    z = (np.arange(2**m) >> np.arange(m)[:, None] & 1).astype(np.float32)
    want, f = np.sort(z, axis=0), m // 5
    for wanted in (
        ((m // 2, m // 2 + 1),),
        (((m - 1) // 2, m // 2 + 1),),
        ((f, m - f),),
        ((0, 1), (m - 1, m)),
    ):
        got = z.copy()
        exchange(got, wanted)
        for start, stop in wanted:
            assert np.array_equal(np.sort(got[start:stop], axis=0), want[start:stop])


@pytest.mark.parametrize(
    ("m", "wanted", "most"), [(9, ((4, 5),), 30), (25, ((12, 13),), 174), (25, ((5, 20),), 172)]
)
def test_the_networks_are_as_small_as_the_best_that_are_known(m: int, wanted: Wanted, most: int) -> None:
    """Of 19 comparators for the median of 9 and 99 for that of 25, as published, many need one result only."""
    assert len(steps(m, wanted)) <= most + 1  # one row may have to move in the end
