"""Oracles against what they are defined by: the dual norm is reached in the ball, and passed nowhere in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.check import Invalid
from fedsim.config import catalog
from fedsim.layout import Block, Layout
from fedsim.models import GPT, MLP
from fedsim.strategies.oracles import (
    RMS,
    Columns,
    ExactPolar,
    Frobenius,
    KyFan,
    Mix,
    NewtonSchulz,
    Norms,
    Oracle,
    Polar,
    PolarExpress,
    Rows,
    Sign,
    Spectral,
)
from fedsim.strategies.oracles.polar import express, minimax

EXACT = ExactPolar()
Primal = Callable[[np.ndarray], float]


def singular(z: np.ndarray) -> np.ndarray:
    return np.linalg.svd(z, compute_uv=False)


# An oracle, and the norm of which it claims to be, in NumPy; None where that norm has no closed form.
CASES: dict[str, tuple[Oracle, Primal | None]] = {
    "spectral": (Spectral(polar=EXACT), lambda z: singular(z)[0]),
    "rms": (Spectral(scale="rms", polar=EXACT), lambda z: singular(z)[0] * sqrt(z.shape[1] / z.shape[0])),
    "muon": (
        Spectral(scale="muon", polar=EXACT),
        lambda z: singular(z)[0] / max(1, sqrt(z.shape[0] / z.shape[1])),
    ),
    "radius": (Spectral(polar=EXACT, radius=2.5), lambda z: singular(z)[0] / 2.5),
    "sign": (Sign(), lambda z: np.abs(z).max()),
    "sign/q": (Sign("per_input", radius=3.0), lambda z: np.abs(z).max() * z.shape[1] / 3),
    "columns": (Columns(scale="one"), lambda z: np.sqrt((z**2).sum(0)).max()),
    "columns rms": (Columns(), lambda z: np.sqrt((z**2).mean(0)).max()),
    "columns rms/q": (Columns(scale="rms/q"), lambda z: np.sqrt((z**2).mean(0)).max() * z.shape[1]),
    "rows": (Rows(), lambda z: np.sqrt((z**2).sum(1)).max()),
    "rows/sqrt(q)": (Rows(scale="1/sqrt(q)"), lambda z: np.sqrt((z**2).sum(1) * z.shape[1]).max()),
    "frobenius": (Frobenius(), lambda z: np.sqrt((z**2).sum())),
    "root mean square": (RMS(), lambda z: np.sqrt((z**2).mean())),
    "nuclear": (KyFan(1), lambda z: singular(z).sum()),
    "Ky Fan 2": (KyFan(2), lambda z: max(singular(z)[0], singular(z).sum() / 2)),
    "F-Muon": (Mix(first=Spectral(polar=EXACT), second=Frobenius(), share=0.7), None),
    "S-Muon": (Mix(first=Spectral(polar=EXACT), second=Sign(radius=0.4), share=0.5), None),
}


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1))


@pytest.mark.parametrize("case", CASES)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 6),
    q=st.integers(1, 6),
    size=st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_the_dual_norm_is_reached_in_the_ball_and_passed_nowhere(
    case: str, seed: int, m: int, q: int, size: float
) -> None:
    oracle, norm = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    block = Block("w", (m, q), "hidden")
    g, z = torch.randn(2, m, q, dtype=torch.float64, generator=generator)
    g = g * size
    way, dual = oracle.lmo(g, block), oracle.dual(g, block)
    assert float(inner(g, way)) == pytest.approx(-float(dual), rel=1e-9)
    torch.testing.assert_close(oracle.sharp(g, block), -dual * way, rtol=1e-9, atol=0)
    if norm is not None:
        assert norm(way.numpy()) == pytest.approx(1, rel=1e-9)
        inside = z / norm(z.numpy())
        assert float(inner(g, inside)) >= -float(dual) * (1 + 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_of_nothing_the_direction_is_nothing(case: str) -> None:
    oracle, block = CASES[case][0], Block("w", (3, 4), "hidden")
    assert not oracle.direction(torch.zeros(2, 3, 4), block).any()
    assert not oracle.dual(torch.zeros(2, 3, 4), block).any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("polar", ["as it is", "express", "schulz"])
def test_many_at_once_are_as_one_alone(case: str, polar: str) -> None:
    oracle = CASES[case][0]
    if isinstance(oracle, Spectral) and polar != "as it is":
        oracle = replace(oracle, polar=PolarExpress() if polar == "express" else NewtonSchulz())
    block = Block("w", (5, 3), "hidden")
    g = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    together = oracle.direction(g, block)
    alone = torch.stack([torch.stack([oracle.direction(w, block) for w in row]) for row in g])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    duals = torch.stack([torch.stack([oracle.dual(w, block) for w in row]) for row in g])
    torch.testing.assert_close(oracle.dual(g, block), duals, rtol=1e-5, atol=1e-5)


def test_every_oracle_is_a_case() -> None:
    assert {type(oracle).__name__ for oracle, _ in CASES.values()} == set(catalog.names("oracles"))


# ---------------------------------------------------------------- shapes
def test_a_kernel_is_a_matrix_of_its_output_channels() -> None:
    """Scion's step of a convolution: the flat kernel made orthogonal, times sqrt(c_out / c_in) / k^2."""
    g = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(g.double().reshape(8, 36), full_matrices=False)
    expected = (u @ vh).reshape(8, 4, 3, 3).float() * sqrt(8 / 4) / 9
    found = Spectral(scale="rms", polar=EXACT).direction(g, Block("c", (8, 4, 3, 3), "conv"))
    torch.testing.assert_close(found, expected)


def test_a_column_of_embeddings_is_a_token() -> None:
    g = torch.randn(11, 4, generator=torch.Generator().manual_seed(2))  # 11 tokens of width 4
    found = Columns(scale="rms").direction(g, Block("e", (11, 4), "embedding"))
    torch.testing.assert_close(found, g / g.square().mean(1, keepdim=True).sqrt())


def test_a_vector_is_one_column() -> None:
    g, block = torch.randn(3, 7, generator=torch.Generator().manual_seed(3)), Block("b", (7,), "vector")
    expected = g / g.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(RMS().direction(g, block), expected)
    torch.testing.assert_close(Spectral(scale="rms", polar=EXACT).direction(g, block), expected)
    assert Frobenius().direction(torch.tensor([-3.0]), Block("s", (), "vector")).tolist() == [-1.0]


# ---------------------------------------------------------------- polar factors
def spectrum(values: list[float], tall: bool) -> Tensor:
    """A matrix with these singular values."""
    rng = np.random.default_rng(0)
    k = len(values)
    u, v = (np.linalg.qr(rng.normal(size=(side, k)))[0] for side in (k + 3, k))
    g = torch.from_numpy(u * np.array(values) @ v.T)
    return g if tall else g.mT


@pytest.mark.parametrize("tall", [True, False])
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_newton_schulz_is_muons_lines(steps: int, tall: bool) -> None:
    """K. Jordan's iteration in float64 with its coefficients, but for the 1e-7 beside the norm."""
    g = spectrum([3.0, 1.0, 0.3, 0.01], tall)
    x = g.numpy() / np.linalg.norm(g.numpy())
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    np.testing.assert_allclose(NewtonSchulz(steps)(g).numpy(), x.T if tall else x, atol=1e-12)


def test_newton_schulz_settles_in_a_band_and_the_classical_one_at_one() -> None:
    g = spectrum([1.0, 0.6, 0.3, 0.1, 0.05], False)
    values = torch.linalg.svdvals(NewtonSchulz(5)(g))
    assert 0.65 < float(values.min()) < float(values.max()) < 1.25
    for classical in ((1.5, -0.5, 0.0), (1.875, -1.25, 0.375)):
        torch.testing.assert_close(NewtonSchulz(25, classical)(g), EXACT(g), rtol=0, atol=1e-9)


def test_the_quintics_are_the_best_there_are() -> None:
    """The error of a minimax polynomial is of one size, with signs in turn, at four points: Chebyshev's theorem."""
    for low in (0.001, 0.1, 0.7):
        a, b, c = minimax(low, 1.0)
        s = np.linspace(low, 1, 200_001)
        error = 1 - (a * s + b * s**3 + c * s**5)
        most = np.abs(error).max()
        far = error[np.abs(error) > (1 - 1e-6) * most]
        assert (np.diff(np.sign(far)) != 0).sum() == 3
    assert minimax(1 - 1e-6, 1.0) == pytest.approx((1.875, -1.25, 0.375), rel=1e-5)


def test_the_quintics_are_the_published_ones() -> None:
    """The first three of the authors' table (arXiv:2505.16932), for singular values from 1e-3 on."""
    published = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115956949, 0.5518191394370137),
    ]
    for ours, theirs in zip(express(5, 1e-3, PolarExpress().cushion), published, strict=False):
        assert ours == pytest.approx(theirs, rel=2e-4)


def test_polar_express_is_nearer_than_newton_schulz() -> None:
    g = spectrum([1.0, 0.5, 0.1, 0.03, 0.01], True)
    errors = [
        float((polar(g) - EXACT(g)).norm()) for polar in (PolarExpress(5), PolarExpress(8), NewtonSchulz(5))
    ]
    assert errors[1] < 1e-3 < errors[0] < errors[2]


@pytest.mark.parametrize("polar", [NewtonSchulz(), PolarExpress(), EXACT], ids=repr)
def test_the_length_of_a_gradient_does_not_matter(polar: Polar) -> None:
    g = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(polar(g * 2.0**-90), polar(g), rtol=0, atol=1e-6)
    torch.testing.assert_close(polar(g * 2.0**90), polar(g), rtol=0, atol=1e-6)


def test_a_direction_of_no_length_is_left_out() -> None:
    """G of rank one or two: what lies in its kernel is no part of the step, whatever rounding makes of it."""
    factors = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(7))
    values = torch.linalg.svdvals(EXACT(factors[0] @ factors[1].T))
    torch.testing.assert_close(values, torch.tensor([1.0, 1.0] + 28 * [0.0]), rtol=0, atol=1e-5)
    g = torch.outer(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(EXACT(g), g / 15)
    torch.testing.assert_close(KyFan(2).direction(g, Block("w", (3, 2), "hidden")), g / 15)


@pytest.mark.parametrize("polar", [NewtonSchulz(), PolarExpress(), EXACT], ids=repr)
def test_nothing_hangs_on_the_number_of_threads(polar: Polar) -> None:
    block = Block("w", (96, 400), "hidden")
    g = torch.randn(3, 96, 400, generator=torch.Generator().manual_seed(5))
    oracle, found = Spectral(polar=polar), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(oracle.direction(g, block))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# ---------------------------------------------------------------- all layers
@pytest.mark.parametrize("model", [MLP((6, 6, 6)).build((5,), 3), GPT(width=8, layers=2).build((4,), 9)])
def test_all_layers_at_once_are_one_after_the_other(model: nn.Module) -> None:
    layout = Layout.of(model)
    norms = Norms(radii=(("*bias", 3.0), ("*", 0.5)))
    g = torch.randn(3, layout.width, generator=torch.Generator().manual_seed(6))
    expected = layout.join(
        (3.0 if block.name.endswith("bias") else 0.5) * norms.of(block).direction(part, block)
        for block, part in zip(layout.blocks, layout.views(g), strict=True)
    )
    torch.testing.assert_close(norms.direction(g, layout), expected, rtol=1e-5, atol=1e-5)
    sharp, dual = norms.sharp(g, layout), norms.dual(g, layout)
    assert dual.shape == (3, len(layout.blocks))
    exact = Norms.all(Frobenius())  # of which the sharp operator is the identity
    torch.testing.assert_close(exact.sharp(g, layout), g, rtol=1e-5, atol=1e-6)
    assert sharp.shape == g.shape


def test_what_is_no_oracle_is_refused() -> None:
    with pytest.raises(Invalid, match=r"Spectral.radius = 0"):
        Spectral(radius=0.0)
    with pytest.raises(Invalid, match=r"Spectral.scale = 'half'"):
        Spectral(scale="half")  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"NewtonSchulz.steps = 0"):
        NewtonSchulz(0)
    with pytest.raises(Invalid, match=r"PolarExpress.least = 1.5"):
        PolarExpress(least=1.5)
