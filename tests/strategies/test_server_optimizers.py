"""Optimizers of the server against their papers' lines in NumPy float64, and where theory says what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_layer_methods import N, Plain, experiment, final, mean
from torch import Tensor

from fedsim.env import AtServer
from fedsim.federation import Federation
from fedsim.gradients import one_hvp, one_loss
from fedsim.layout import Block, Layout
from fedsim.messages import All, Float32
from fedsim.strategies import EF21, FRUGAL, NGNM, SWAN, Adam, DiffGrad, FedSGD, SGDSaI, SignSGD
from fedsim.strategies.methods.ef21 import Plain as Step
from fedsim.strategies.methods.estimators import ClippedHM
from fedsim.strategies.methods.optimizer import ServerOptimizer
from fedsim.strategies.oracles import ExactPolar

Array = NDArray[np.float64]
LAYOUT = Layout((Block("w", (4, 6), "hidden"), Block("b", (4,), "vector")))
ROUNDS = 5


class Here:
    """What a turn of an optimizer sees."""

    layout = LAYOUT
    round = 0


def gradients() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=28) * np.repeat([1.0, 5.0], [24, 4]) for _ in range(ROUNDS)]


def turns(optimizer: ServerOptimizer) -> Iterator[Array]:
    """u of each of these gradients."""
    state = optimizer.start(torch.zeros(28, dtype=torch.float64))
    for g in gradients():
        state, u = optimizer.turn(state, torch.from_numpy(g), Here())
        yield u.numpy()


def swan() -> Iterator[Array]:
    """arXiv:2412.13148: GradNorm, then GradWhitening, rescaled."""
    for g in gradients():
        w = g[:24].reshape(4, 6)
        w = (w - w.mean(1, keepdims=True)) / w.std(1, keepdims=True)
        values, vectors = np.linalg.eigh(w @ w.T)
        white = vectors @ np.diag(values**-0.5) @ vectors.T @ w
        white *= np.linalg.norm(w) / np.linalg.norm(white)
        yield np.concatenate([white.ravel(), g[24:] / np.sqrt((g[24:] ** 2).mean())])


def adam(g: Array, m: Array, v: Array, t: int) -> tuple[Array, Array, Array]:
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def diff_grad() -> Iterator[Array]:
    """arXiv:1909.11015, algorithm 1: the friction coefficient is a sigmoid of the change of the gradient."""
    m = v = before = np.zeros(28)
    for t, g in enumerate(gradients(), 1):
        u, m, v = adam(g, m, v, t)
        yield u / (1 + np.exp(-np.abs(before - g)))
        before = g


def sai() -> Iterator[Array]:
    """arXiv:2412.11768: the signal-to-noise ratio of the first gradient of each block, then momentum."""
    first, m = gradients()[0], np.zeros(28)
    snr = np.repeat([np.linalg.norm(w) / (w.std() + 1e-8) for w in (first[:24], first[24:])], [24, 4])
    for g in gradients():
        m = 0.9 * m + g
        yield snr * m


CASES: dict[str, tuple[ServerOptimizer, Callable[[], Iterator[Array]]]] = {
    "SWAN": (SWAN(polar=ExactPolar()), swan),
    "DiffGrad": (DiffGrad(), diff_grad),
    "SGDSaI": (SGDSaI(), sai),
}


@pytest.mark.parametrize("case", CASES)
def test_line_by_line(case: str) -> None:
    optimizer, lines = CASES[case]
    for ours, theirs in zip(turns(optimizer), lines(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_swan_is_near_to_itself_by_products_alone() -> None:
    for ours, theirs in zip(turns(SWAN()), swan(), strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


def test_the_scale_of_the_first_gradient_does_not_enter_the_ratio() -> None:
    """snr(c g) = snr(g)."""
    g = torch.from_numpy(gradients()[0])
    optimizer = SGDSaI(epsilon=0.0)
    ratios = [optimizer.turn(optimizer.start(g), c * g, Here())[0]["snr"] for c in (1, 1e4)]
    torch.testing.assert_close(ratios[0], ratios[1])


def test_a_gradient_that_stays_is_adam_with_half_the_step() -> None:
    optimizer, g = DiffGrad(), torch.from_numpy(gradients()[0])
    state = {**optimizer.start(g), "before": g}
    _, u = optimizer.turn(state, g, Here())
    torch.testing.assert_close(u, g.sign() / 2, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- whole runs
def test_frugal_line_by_line() -> None:
    """arXiv:2411.07837: Adam on coordinates that are drawn anew every two rounds, signSGD on the rest."""
    e = experiment(FRUGAL(0.01, density=0.4, every=2))
    plain = Plain(e)
    x, d = plain.fed.x0, len(plain.fed.x0)
    kept = m = v = np.zeros(d)
    for t in range(e.rounds):
        if t % 2 == 0:
            kept = (AtServer(plain.fed, t).uniform(d) < 0.4).double().numpy()
            m, v = np.zeros(d), np.zeros(d)
        g = np.concatenate([w.flatten() for w in mean([plain.grad(i, plain.cut(x), t) for i in range(N)])])
        u, m, v = adam(g * kept, m, v, t % 2 + 1)
        x = x - 0.01 * torch.from_numpy(np.where(kept > 0, u, np.sign(g))).float()
    torch.testing.assert_close(final(e), x, rtol=1e-4, atol=1e-5)


def test_frugal_lies_between_sign_sgd_and_adam() -> None:
    whole = experiment(FRUGAL(0.01, density=1.0), clients=1)
    torch.testing.assert_close(final(whole), final(replace(whole, method=Adam(0.01))), rtol=1e-4, atol=1e-6)
    none = experiment(FRUGAL(0.01, density=1e-9), clients=1)
    assert torch.equal(final(none), final(replace(none, method=SignSGD(0.01))))


def test_ngn_m_line_by_line() -> None:
    """arXiv:2508.15071: the step size from the loss and the gradient, both means over the clients."""
    e = experiment(NGNM(2.0, 0.6))
    plain = Plain(e)
    x = before = plain.fed.x0
    for t in range(e.rounds):
        g = torch.cat([w.flatten() for w in mean([plain.grad(i, plain.cut(x), t) for i in range(N)])])
        losses = [_loss(plain.fed, x, t, i) for i in range(N)]
        f = sum(losses) / N
        gamma = 2.0 / (1 + 2.0 * float(g @ g) / (2 * f))
        before, x = x, x - 0.4 * gamma * g + 0.6 * (x - before)
    torch.testing.assert_close(final(e), x, rtol=1e-4, atol=1e-5)
    assert plain.fed.bits(1)["uplink_bits"] == 32 * (len(x) + 1)


def test_a_tiny_c_is_plain_momentum_and_a_huge_one_still_moves_little() -> None:
    """gamma <= c, and gamma ||g||^2 <= 2 f whatever c is."""
    small = experiment(NGNM(1e-4, 0.0), clients=1)
    torch.testing.assert_close(final(small), final(replace(small, method=FedSGD(1e-4))), rtol=1e-5, atol=1e-6)
    huge, plain = experiment(NGNM(1e9, 0.0), clients=1, rounds=1), Plain(small)
    g = torch.cat([w.flatten() for w in plain.grad(0, plain.start, 0)])
    moved = plain.fed.x0 - final(huge)
    assert float(moved @ g) == pytest.approx(2 * _loss(plain.fed, plain.fed.x0, 0, 0), rel=1e-3)


def _loss(fed: Federation, x: Tensor, round: int, i: int) -> float:
    return float(one_loss(fed.model, x, fed.batch(round, np.array([i])).part(0), fed.loss))


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_clipped_hessian_products_line_by_line(engine: str) -> None:
    """arXiv:2510.10690: the product and the gradient are clipped each; both clips bind here."""
    e = experiment(EF21(ClippedHM(0.4, False, 1.0, 0.05), All(Float32()), Step(0.3)))
    plain = Plain(e)
    x = before = plain.fed.x0
    v, bound = [torch.zeros_like(x)] * N, [0, 0]

    def clipped(u: Tensor, tau: float, which: int) -> Tensor:
        bound[which] += bool(u.norm() > tau)
        return u * min(1.0, tau / max(float(u.norm()), 1e-30))

    for t in range(e.rounds):
        eta = 0.4 if t else 1.0
        for i in range(N):
            batch = plain.fed.batch(t, np.array([i])).part(0)
            g = torch.cat([w.flatten() for w in plain.grad(i, plain.cut(x), t)])
            product = one_hvp(plain.fed.model, x, x - before, batch, plain.fed.loss)
            v[i] = (1 - eta) * (v[i] + clipped(product, 0.05, 0)) + eta * clipped(g, 1.0, 1)
        before, x = x, x - 0.3 * torch.stack(v).mean(0)
    torch.testing.assert_close(final(e, engine), x, rtol=1e-4, atol=1e-5)
    assert all(0 < count < N * e.rounds for count in bound), bound
