"""Rates of normalized error feedback on a noisy quadratic: T^-1/4, T^-2/7 and T^-1/3 (arXiv:2511.14501), untuned.

f_i(x) = ||x - b_i||^2 / 2, two clients, gradients with noise, the largest half of each message. With noise and steps of
like size the gradient norm falls as its bound does: that of the estimator's error, sqrt(eta_t).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.layout import Block, Layout
from fedsim.messages import TopK
from fedsim.schedule import Power
from fedsim.strategies import EF21
from fedsim.strategies.methods.ef21 import Normalized
from fedsim.strategies.methods.estimators import HM, IGT, MVR, Decay, Estimator, Polyak

D, NOISE = 400, 0.06
LAYOUT = Layout((Block("x", (D,), "vector"),))


class Clients:
    """The `Env` of two clients at once, and the server's."""

    layout, whole = LAYOUT, False

    def __init__(self, method: EF21) -> None:
        self.method, self.generator, self.round = method, torch.Generator().manual_seed(0), 0
        self.b = 0.3 * torch.randn(2, D, generator=self.generator)
        self.b -= self.b.mean(0)  # so that the gradient of the mean is x itself

    def start(self, x: Tensor, round: int) -> None:
        self.x, self.round = x, round
        self.noise = NOISE * torch.randn(2, D, generator=self.generator)

    def grad(self, x: Tensor, batch: object) -> Tensor:
        return x - self.b + self.noise

    def first_gradient(self) -> Tensor:
        return self.grad(self.x, None)

    def hvp(self, x: Tensor, v: Tensor, batch: object) -> Tensor:
        return v

    def noisy(self, message: Tensor) -> Tensor:
        return message

    def compress(self, message: Tensor) -> Tensor:
        return message if self.method.whole(self.round, 0.0) else self.method.up(message, LAYOUT, torch.rand)

    def buffer(self, name: str) -> None:
        return None


def norms(estimator: Estimator, power: float, rounds: int) -> np.ndarray:
    """||grad f(x_t)|| of each round."""
    method = EF21(estimator, TopK(0.5), Normalized(Power(1.0, power)), start="whole")
    env, x = Clients(method), torch.ones(D) / D**0.5
    server = method.server_init(x, 2)
    states = {name: value.expand(2, -1) for name, value in method.client_init(x).items()}
    found = []
    for t in range(rounds):
        env.start(server["x"], t)
        states, sent = method.client_step(states, env.x, None, env)  # type: ignore[arg-type]
        server, g = method.receive(server, sent, torch.arange(2))
        server = method.step(server, g.mean(0), env)  # type: ignore[arg-type]
        found.append(float(server["x"].norm()))
    return np.array(found)


@pytest.mark.parametrize(
    ("estimator", "power", "rate"),
    [(Polyak(Decay(1 / 2)), 3 / 4, 1 / 4), (IGT(), 5 / 7, 2 / 7), (MVR(), 2 / 3, 1 / 3)],
    ids=["HB", "IGT", "MVR"],
)
def test_the_gradient_norm_falls_at_the_rate_of_the_theory(
    estimator: Estimator, power: float, rate: float
) -> None:
    t = np.arange(1, 801)
    slope, _ = np.polyfit(np.log(t[100:]), np.log(norms(estimator, power, 800)[100:]), 1)
    assert slope == pytest.approx(-rate, abs=0.015)


def test_a_hessian_known_exactly_corrects_as_a_second_gradient_does() -> None:
    assert norms(HM(), 2 / 3, 60) == pytest.approx(norms(MVR(), 2 / 3, 60), rel=1e-4)
