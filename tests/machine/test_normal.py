"""Normal numbers with the tails of the normal law: torch's own on a CPU end at 5.77 deviations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.deploy.entropy import normal
from fedsim.machine import normal as module
from fedsim.machine.normal import FAR, STEPS, normal_


def drawn(d: int, seed: int = 0) -> torch.Tensor:
    return normal_(torch.empty(d), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d", [1, 8, 15, 16, 17, 100, 4096, 79_510])
def test_a_function_of_the_seed(d: int) -> None:
    assert torch.equal(drawn(d, 3), drawn(d, 3))
    assert not torch.equal(drawn(d, 3), drawn(d, 4))
    assert torch.equal(drawn(d, 3)[: d - d % 16], drawn(d + 16, 3)[: d - d % 16]) or d > 4096


def test_almost_all_numbers_are_torchs() -> None:
    plain = torch.empty(160_000).normal_(generator=torch.Generator().manual_seed(1))
    assert int((drawn(160_000, 1) != plain).sum()) <= 8


def test_the_bulk_is_normal() -> None:
    numbers = drawn(1_000_003, 5).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(numbers.var() - 1) < 5 * np.sqrt(2 / len(numbers))


def test_far_radii_have_the_law_of_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs put at the edge: given u in ((k - 1) / STEPS, k / STEPS], u is uniform there, so radii have the law."""
    n = 40_000
    torch_normal = torch.Tensor.normal_

    def edge(self: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        angle = 2 * np.pi * torch.rand(len(self) // 16, 8, generator=generator)
        radius = float(np.sqrt(-2 * np.log(1 / STEPS)))
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        return self.copy_(pairs.reshape(-1))

    monkeypatch.setattr(torch.Tensor, "normal_", edge)
    numbers = drawn(16 * n, 7)
    monkeypatch.setattr(torch.Tensor, "normal_", torch_normal)
    pairs = numbers.view(-1, 2, 8).double()
    survival = torch.exp(-pairs.square().sum(1) / 2).flatten() * STEPS  # uniform on (0, 1]
    assert stats.kstest(survival.numpy(), "uniform").pvalue > 1e-3
    assert float(numbers.abs().max()) > 7.4


def test_tails_go_to_eight_deviations() -> None:
    """The smallest u that can come: V next to 1."""
    u = (1 - (1 - 2.0**-53)) / STEPS
    assert np.sqrt(-2 * np.log(u)) > 10
    # of the pairs that torch can make, those beyond the candidates' limit are all looked at
    assert np.sqrt(-2 * np.log(FAR / STEPS)) / np.sqrt(2) > module.CANDIDATE


def test_no_vector_unit_decides_what_is_drawn_anew() -> None:
    """u is recovered exactly from a radius in float32: rounding moves it by far less than half a step."""
    k = np.arange(1, 2 * FAR)
    radius = np.sqrt(-2 * np.log(k / STEPS)).astype(np.float32)
    for angle in np.linspace(0.01, 6.2, 50):
        a, b = (radius * np.float32(f(angle)) for f in (np.cos, np.sin))
        for off in (1 - 3e-7, 1 + 3e-7):
            square = (a.astype(np.float64) * off) ** 2 + (b.astype(np.float64) * off) ** 2
            assert np.array_equal(np.round(np.exp(-square / 2) * STEPS), k)


def test_a_device_s_own_numbers_have_such_tails() -> None:
    """Sums of four of them over two, each of uniform numbers of 52 bits: to 17 deviations."""
    numbers = normal(400_000).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
