"""Message attacks against their formulas, written out in NumPy float64."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.attacks import ALIE, IPM, SignFlip
from fedsim.attacks.vector import hiding_z
from fedsim.check import Invalid
from fedsim.types import View


def view_of(n: int, f: int, d: int = 7, seed: int = 0) -> View:
    """A round with everything granted but the rule."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator) * 3 + 1
    return View(n, f, 0, torch.zeros(d), generator, own=rows[n - f :], honest=rows[: n - f])


def expect(view: View, got: torch.Tensor, row: np.ndarray) -> None:
    want = np.broadcast_to(row, (view.f, len(view.x)))
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-5, atol=2e-5)


ROUNDS = st.builds(view_of, st.integers(5, 20), st.integers(1, 2), st.integers(1, 9), st.integers(0, 99))


@settings(max_examples=25, deadline=None)
@given(ROUNDS, st.floats(0, 50))
def test_sign_flip_and_ipm_are_multiples(view: View, factor: float) -> None:
    expect(view, SignFlip(factor).forge(view), -factor * view.own.double().numpy())
    expect(view, IPM(factor).forge(view), -factor * view.honest.double().numpy().mean(0))


def test_the_defaults_are_those_of_the_papers() -> None:
    view = view_of(9, 2)
    expect(view, IPM().forge(view), -10 * view.honest.double().numpy().mean(0))
    expect(view, SignFlip().forge(view), -view.own.double().numpy())
    honest = view.honest.double().numpy()
    z = NormalDist().inv_cdf((9 - 2 - 3) / (9 - 2))  # floor(9/2 + 1) - 2 = 3 supporters
    expect(view, ALIE().forge(view), honest.mean(0) - z * honest.std(0))


@settings(max_examples=25, deadline=None)
@given(
    ROUNDS, st.floats(0, 5), st.sampled_from(["population", "sample"]), st.sampled_from("+-"), st.booleans()
)
def test_alie_follows_every_convention(view: View, z: float, std: str, side: str, own: bool) -> None:
    attack = ALIE(z, std, side, "own" if own else "honest")
    rows = (view.own if own else view.honest).double().numpy()
    spread = rows.std(0, ddof=std == "sample" and len(rows) > 1)
    expect(view, attack.forge(view), rows.mean(0) + (z if side == "+" else -z) * spread)
    assert attack.needs == {"own" if own else "honest"}


@pytest.mark.parametrize(
    ("n", "f", "z"),
    # 25 and 5 is from arXiv:2012.10333; the others are what the peers' code computes
    [(25, 5, 0.253), (13, 3, 0.253), (25, 6, 0.336), (50, 10, 0.253), (50, 24, 1.426)],
)
def test_z_of_the_paper(n: int, f: int, z: float) -> None:
    assert hiding_z(n, f) == pytest.approx(z, abs=1e-3)


@given(st.integers(1, 300), st.integers(1, 300))
def test_z_is_finite_also_in_a_cohort_that_byzantine_clients_lead(n: int, f: int) -> None:
    assert abs(hiding_z(n, f)) < 5
    assert hiding_z(n, max(f, n // 2)) == hiding_z(n, (n - 1) // 2)


@pytest.mark.parametrize("wrong", [lambda: IPM(-1.0), lambda: ALIE(std="n"), lambda: SignFlip(float("nan"))])
def test_wrong_fields_are_refused(wrong) -> None:
    with pytest.raises(Invalid):
        wrong()
