"""Addresses: equal ones draw the same, different ones do not, and one client alone draws what it draws among others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.keys import Keys, _fill, _fill_by_blocks, _mix64, torch_seed, uniform


@given(st.integers(0, 2**31), st.integers(1, 500), st.integers(0, 5000))
def test_a_client_alone_draws_what_it_draws_among_others(seed: int, clients: int, round: int) -> None:
    keys = Keys(seed, clients)
    ids = np.arange(clients)
    together = keys.of("noise", round, ids)
    alone = [keys.of("noise", round, np.array([i]))[0] for i in ids[:: max(1, clients // 7)]]
    assert together[:: max(1, clients // 7)].tolist() == alone
    uniform = keys.uniform("batch", round, ids, 5)
    assert np.array_equal(uniform[-1:], keys.uniform("batch", round, ids[-1:], 5))
    assert ((uniform >= 0) & (uniform < 1)).all()


def test_streams_of_a_purpose_never_share_a_torch_seed() -> None:
    """torch's CPU generator takes 32 bits of a seed; a plain hash would collide within 10^5 addresses already."""
    keys, rounds, ids = Keys(7, 1000), 300, np.arange(1000)
    low = np.concatenate([keys.of("noise", t, ids) for t in range(rounds)]) & np.uint64(0xFFFFFFFF)
    assert len(np.unique(low)) == rounds * len(ids)


def test_torch_reads_the_low_bits_of_a_seed() -> None:
    """The reason for the bijection; if torch ever reads all 64 bits, this says so."""
    a, b = (torch.randn(4, generator=torch.Generator().manual_seed(5 + high)) for high in (0, 2**32))
    assert torch.equal(a, b)


def test_purpose_seed_round_and_client_all_matter() -> None:
    keys = Keys(1, 10)
    base = keys.of("noise", 3, 4)[0]
    others = [
        keys.of("batch", 3, 4)[0],
        keys.of("noise", 4, 4)[0],
        keys.of("noise", 3, 5)[0],
        Keys(2, 10).of("noise", 3, 4)[0],
    ]
    assert base not in others
    assert 0 <= torch_seed(np.uint64(2**64 - 1)) < 2**63


def splitmix(state: int) -> int:
    """Steele, Lea and Flood (2014), in Python's integers."""
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("count", [1, 2, 33, 5001])
@pytest.mark.parametrize("start", [0, 1, 6, 7])
def test_numbers_of_a_cpu_are_those_of_any_device(start: int, count: int) -> None:
    """In blocks by NumPy and at once by torch, against Python's integers; more keys than a block has words, too."""
    keys = Keys(5, 9).of("uplink", 1, np.arange(9))
    out = uniform(keys, start, count)
    plain = torch.empty(9, 2 * count + 2 * start + 2)
    _fill(plain, _mix64(keys)[:, None], 0)
    assert torch.equal(out, plain[:, start : start + count])
    for i in range(start, start + min(count, 40)):
        word = splitmix((splitmix(int(keys[4])) + (i // 2 + 1) * 0x9E3779B97F4A7C15) % 2**64)
        assert float(out[4, i - start]) == (word >> 32 * (i % 2) + 8) % 2**24 / 2**24
    words = uniform(keys, start, count, dtype=torch.int32)
    assert words.dtype == torch.int32
    assert torch.equal(words * 2.0**-24, out)
    plain = torch.empty(9, 2 * count + 2 * start + 2, dtype=torch.int32)
    _fill(plain, _mix64(keys)[:, None], 0)
    assert torch.equal(words, plain[:, start : start + count])
    many = _mix64(np.arange(20_000, dtype=np.uint64))[:, None]
    blocks, whole = torch.empty(20_000, 4), torch.empty(20_000, 4)
    _fill_by_blocks(blocks, many, start)
    _fill(whole, many, start)
    assert torch.equal(blocks, whole)


def test_uniform_numbers_are_uniform_and_uncorrelated() -> None:
    u = Keys(0, 50).uniform("batch", 1, np.arange(50), 2000)
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.002
    correlation = np.corrcoef(u) - np.eye(50)
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)
