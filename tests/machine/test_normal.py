"""Normal numbers with the tails of the normal law: torch's own on a CPU end at 5.77 deviations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Generator, Tensor

from fedsim.deploy import entropy
from fedsim.machine import normal as module
from fedsim.machine.normal import CANDIDATE, FAR, GROUP, STEPS, normal_, whole


def drawn(d: int, seed: int = 0) -> Tensor:
    return normal_(torch.empty(1, whole(d)), [Generator().manual_seed(seed)])[0, :d]


def at_the_edge(monkeypatch: pytest.MonkeyPatch, steps: int) -> Callable[[int, int], Tensor]:
    """`drawn` on top of torch numbers whose every pair has the radius of so many steps."""
    radius = float(np.sqrt(-2 * np.log(steps / STEPS)))

    def edge(self: Tensor, generator: Generator) -> Tensor:
        angle = 2 * np.pi * torch.rand(len(self) // GROUP, GROUP // 2, generator=generator)
        return self.copy_(torch.stack([radius * angle.cos(), radius * angle.sin()], 1).reshape(-1))

    def numbers(d: int, seed: int) -> Tensor:
        with monkeypatch.context() as patched:
            patched.setattr(Tensor, "normal_", edge)
            return drawn(d, seed)

    return numbers


@pytest.mark.parametrize("d", [1, 8, 15, 16, 17, 100, 4096, 79_510])
def test_a_function_of_the_seed(d: int) -> None:
    assert torch.equal(drawn(d, 3), drawn(d, 3))
    assert not torch.equal(drawn(d, 3), drawn(d, 4))


def test_rows_are_those_of_their_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all are drawn anew, and where a block ends within a row."""
    monkeypatch.setattr(module, "LOOKED", 64)
    monkeypatch.setattr(module, "FAR", 3.6)
    monkeypatch.setattr(module, "CANDIDATE", np.float32(2.5))
    seeds = range(40)
    together = normal_(torch.empty(len(seeds), 112), [Generator().manual_seed(s) for s in seeds])
    assert torch.equal(together, torch.stack([drawn(112, s) for s in seeds]))
    plain = torch.stack([torch.empty(112).normal_(generator=Generator().manual_seed(s)) for s in seeds])
    assert not torch.equal(together, plain)


def test_almost_all_numbers_are_torchs() -> None:
    plain = torch.empty(160_000).normal_(generator=Generator().manual_seed(1))
    assert int((drawn(160_000, 1) != plain).sum()) <= 8


def test_the_bulk_is_normal() -> None:
    numbers = drawn(1_000_003, 5).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(numbers.var() - 1) < 5 * np.sqrt(2 / len(numbers))


@pytest.mark.parametrize("steps", [1, 2, 80])
def test_far_radii_have_the_law_of_the_tail(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Given that u lies within a step, it is uniform there: so survival exp(-r^2 / 2) is uniform in the step."""
    numbers = at_the_edge(monkeypatch, steps)(16 * 10_000, 7)
    squares = numbers.view(-1, 2, GROUP // 2).double().square().sum(1)
    survival = torch.exp(-squares / 2).flatten().numpy() * STEPS
    assert stats.kstest(survival - (steps - 1), "uniform").pvalue > 1e-3
    assert steps > 1 or float(numbers.abs().max()) > 7.2


def test_nearer_radii_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    radii = at_the_edge(monkeypatch, 81)(16 * 1000, 7).view(-1, 2, 8).norm(dim=1)
    torch.testing.assert_close(radii, torch.full_like(radii, np.sqrt(-2 * np.log(81 / STEPS))))


def test_every_far_radius_is_seen_and_known() -> None:
    """Rounding of a vector unit, some units of the last place, moves u by far less than half a step."""
    assert np.sqrt(-2 * np.log(81 / STEPS)) < FAR < np.sqrt(-2 * np.log(80 / STEPS))
    assert FAR / np.sqrt(2) > CANDIDATE  # the larger number of a pair
    assert np.sqrt(-2 * np.log(2.0**-53 / STEPS)) > 10  # the smallest u that can come
    k = np.arange(1, 200)
    radius = np.sqrt(-2 * np.log(k / STEPS)).astype(np.float32)
    for angle in np.linspace(0.01, 6.2, 50):
        a, b = (radius * np.float32(f(angle)) for f in (np.cos, np.sin))
        for off in (1 - 1e-6, 1 + 1e-6):
            square = (a.astype(np.float64) * off) ** 2 + (b.astype(np.float64) * off) ** 2
            assert np.array_equal(np.round(np.exp(-square / 2) * STEPS), k)
            assert np.array_equal(np.hypot(a, b) * np.float32(off) > FAR, k <= 80)


def cells(start: float, stop: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middles and widths of 8,000 cells."""
    edges = np.geomspace(start, stop, 8001)
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


def binned_delta(epsilon: float, shift: float, exact: bool) -> float:
    """delta(epsilon) of a release of one number x = r cos(angle), shifted or not, seen in bins of 0.01 deviations.

    P(x > t | r) = arccos(t / r) / pi, and r^2 = -2 log(k / STEPS) with whole numbers k, up to 80 drawn anew where
    `exact`; from 20,000 on by cells, since steps no longer show.
    """
    far = cells(1e-16, 80) if exact else (np.arange(1.0, 81), np.ones(80))
    near, many = np.arange(81.0, 20_000), cells(19_999.5, STEPS * np.exp(-0.5))
    k, width = (np.concatenate(parts) for parts in zip(far, (near, np.ones(len(near))), many, strict=True))
    radii, mass = np.sqrt(-2 * np.log(k / STEPS)), width / STEPS
    t = np.arange(3.0, 10.5, 0.01)
    moved, still = (
        np.array([(mass * np.arccos(np.minimum(1, at / radii))).sum() / np.pi for at in t - by])
        for by in (shift, 0.0)
    )
    return float(np.maximum(0, -np.diff(moved) + np.exp(epsilon) * np.diff(still)).sum())


@pytest.mark.parametrize("epsilon", [6.0, 9.5, 14.5])
def test_a_privacy_claim_holds_to_a_delta_of_5e_11(epsilon: float) -> None:
    """z = 0.5, one coordinate moves: the epsilon of the normal law, where torch's numbers have none."""
    shift = 2.0
    t = epsilon / shift + shift / 2
    exact = float(stats.norm.sf(t - shift) - np.exp(epsilon) * stats.norm.sf(t))
    assert binned_delta(epsilon, shift, exact=True) == pytest.approx(exact, rel=0.02)
    torchs = binned_delta(epsilon, shift, exact=False)
    assert torchs > 8e-5
    assert epsilon < 9 or torchs > 2 * exact


@pytest.mark.parametrize("other", ["default", "avx2"])
def test_another_vector_unit_draws_the_same_to_rounding(other: str, tmp_path: Path) -> None:
    """Torch's logarithm and cosine differ in their last places there, and nothing else: no draw is another."""
    program = (
        "import sys, torch; from fedsim.machine.normal import normal_;"
        "torch.save(normal_(torch.empty(2, 160_000), [torch.Generator().manual_seed(i) for i in (1, 8)]), sys.argv[1])"
    )
    there = tmp_path / "there.pt"
    subprocess.run(
        [sys.executable, "-c", program, str(there)],
        env=os.environ | {"ATEN_CPU_CAPABILITY": other},
        check=True,
    )
    here = torch.stack([drawn(160_000, seed) for seed in (1, 8)])
    torch.testing.assert_close(torch.load(there), here, rtol=1e-6, atol=4e-6)


def test_a_device_s_own_numbers_have_such_tails() -> None:
    """Sums of four of them over two: each goes to 8.5, so their tail is the law's to far beyond 8."""
    numbers = entropy.normal(400_000).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert np.sqrt(-2 * np.log(0.5 * 2.0**-52)) > 8.4


def test_numbers_do_not_depend_on_how_many_are_looked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def three() -> Tensor:
        return normal_(torch.empty(3, 2**17), [Generator().manual_seed(i) for i in range(3)])

    once = three()
    assert once.abs().max() > 4.5  # far radii are among them
    monkeypatch.setattr(module, "LOOKED", 2**13)
    assert torch.equal(three(), once)
