"""The baselines of every paper where closed forms are known: two clients, quadratics, settings in which two are one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import flat
from torch import Tensor
from transcribed import experiment

from fedsim.batches import Full
from fedsim.check import Invalid
from fedsim.method import Method
from fedsim.runner import run
from fedsim.schedule import Cosine
from fedsim.strategies import (
    QFFL,
    SCAFFOLD,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedDyn,
    FedNova,
    FedProx,
    FedSGD,
    FedYogi,
)
from fedsim.types import State

ENV: Any = SimpleNamespace(round=0)


@pytest.mark.parametrize(
    ("method", "v", "x"),
    [
        (FedAdam(lr=1.0), (0.01000099, 0.0124009801), (0.0990050, 0.2236049)),
        (FedYogi(lr=1.0), (0.010001, 0.012501), (0.0990050, 0.2231098)),
        (FedAdagrad(lr=1.0, b1=0.9), (1.000001, 1.250001), (0.0099900, 0.0225008)),
    ],
    ids=repr,
)
def test_two_steps_of_the_adaptive_servers(method: Any, v: Any, x: Any) -> None:
    """D = 1, then 1/2, on one number."""
    state = method.server_init(torch.zeros(1, dtype=torch.float64), 1)
    for d, v_, x_ in zip((1.0, 0.5), v, x, strict=True):
        state = method.step(state, torch.tensor([-d], dtype=torch.float64), ENV)
        assert float(state["v"]) == pytest.approx(v_, rel=1e-7)
        assert float(state["x"]) == pytest.approx(x_, abs=1e-7)


def test_fednova_of_two_clients() -> None:
    """Changes 1 and 2 after 1 and 4 steps come to 1.875, where FedAvg has 1.5."""
    rows = torch.tensor([[-1.0, 1], [-2.0 / 4, 4]])
    state = FedNova(lr=0.1).step({"x": torch.zeros(1)}, rows.mean(0), ENV)
    assert float(state["x"]) == pytest.approx(1.875)


def test_fednova_of_equal_work_is_fedavg() -> None:
    ours, theirs = (run(experiment(m)) for m in (FedNova(lr=0.2), FedAvg(lr=0.2)))
    torch.testing.assert_close(flat(ours), flat(theirs))


def test_fedprox_without_mu_is_fedavg() -> None:
    ours, theirs = (run(experiment(m)) for m in (FedProx(lr=0.2, mu=0.0), FedAvg(lr=0.2)))
    torch.testing.assert_close(flat(ours), flat(theirs))


def test_qffl_of_two_clients_and_without_q() -> None:
    f, big_l, moved = torch.tensor([[1.0], [2.0]]), 10.0, torch.eye(2)
    d = big_l * moved
    rows = torch.cat([f * d, d.square().sum(1, keepdim=True) + big_l * f], 1)
    state = QFFL(lr=0.1).step({"x": torch.zeros(2)}, rows.mean(0), ENV)
    torch.testing.assert_close(state["x"], -torch.tensor([0.043478, 0.086957]), atol=1e-6, rtol=0)
    ours, theirs = (run(experiment(m)) for m in (QFFL(lr=0.2, q=0.0), FedAvg(lr=0.2, weights="equal")))
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-4, atol=1e-6)


def test_scaffold_of_one_step_is_gradient_descent() -> None:
    """K = 1, all take part, option II: the mean of all moves is that of all gradients."""
    ours, theirs = (
        run(experiment(m, cohort=None, batches=Full()))
        for m in (SCAFFOLD(lr=0.2, local_steps=1), FedSGD(lr=0.2))
    )
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-4, atol=1e-6)


HESSIANS = torch.tensor([[[2.0, 0.5], [0.5, 0.3]], [[0.2, 0.0], [0.0, 3.0]]], dtype=torch.float64)
MINIMA = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
BEST = torch.linalg.solve(HESSIANS.sum(0), (HESSIANS @ MINIMA[..., None]).sum(0)[:, 0])


class Quadratics:
    """The `Env` of two clients with f_i(y) = (y - m_i)' H_i (y - m_i) / 2, and exact gradients."""

    def __init__(self, told: State) -> None:
        self.round, self.told = 0, told

    def grad(self, y: Tensor, batch: object) -> Tensor:
        return (HESSIANS @ (y - MINIMA)[..., None])[..., 0]

    def descend(self, y: Tensor, batch: object, lr: float, out: Tensor | None = None) -> Tensor:
        return y - lr * self.grad(y, batch)

    def noisy(self, message: Tensor) -> Tensor:
        return message

    def buffer(self, name: str) -> None:
        return None


class AnyBatch:
    def split(self, parts: int) -> Iterator[None]:
        return iter([None] * parts)


def distance(method: Method, rounds: int = 200) -> float:
    """How far the server's model is from the minimum of both."""
    server = method.server_init(torch.zeros(2, dtype=torch.float64), 2)
    clients = {name: value.expand(2, 2) for name, value in method.client_init(server["x"]).items()}
    for _ in range(rounds):
        env, batch = Quadratics(server), AnyBatch()
        clients, rows = method.client_step(clients, server["x"], batch, env)  # type: ignore[arg-type]
        server, rows = method.receive(server, rows, torch.arange(2))
        server = method.step(server, rows.mean(0), ENV)
    return float((server["x"] - BEST).norm())


def test_who_corrects_the_drift_arrives_at_the_minimum_of_all() -> None:
    """Many local steps on losses that disagree: FedAvg and FedProx stop elsewhere."""
    assert distance(FedAvg(lr=0.1, local_steps=20)) > 0.1
    assert distance(FedProx(lr=0.1, local_steps=20, mu=0.1)) > 0.1
    assert distance(SCAFFOLD(lr=0.1, local_steps=20)) < 1e-9
    assert distance(SCAFFOLD(lr=0.01, local_steps=20, option="I")) < 1e-9
    assert distance(FedDyn(lr=0.2, local_steps=100, alpha=0.5), rounds=80) < 1e-9


@pytest.mark.parametrize("lr", [0.01, 0.1, 0.5])
def test_scaffold_s_option_one_converges_where_its_recursion_does(lr: float) -> None:
    """Of exact gradients: e'' = e' - mean_i P_i (H_i (e' - e) + H e), e = x - x*, P_i = (I - (I - lr H_i)^K) / H_i.

    Control variates are a round old, so that many local steps on unlike losses push it over: spectral radius > 1.
    """
    h, steps, one = HESSIANS.numpy(), 20, np.eye(2)
    p = [np.linalg.solve(a, one - np.linalg.matrix_power(one - lr * a, steps)) for a in h]
    now = one - np.mean([pi @ hi for pi, hi in zip(p, h, strict=True)], 0)
    before = np.mean([pi @ (hi - h.mean(0)) for pi, hi in zip(p, h, strict=True)], 0)
    first = -BEST.numpy()  # c = c_i = 0 in the first round: plain FedAvg
    m = MINIMA.numpy()
    e = [first, first + np.mean([pi @ hi @ mi for pi, hi, mi in zip(p, h, m, strict=True)], 0)]
    for _ in range(29):
        e.append(now @ e[-1] + before @ e[-2])
    far = distance(SCAFFOLD(lr=lr, local_steps=steps, option="I"), 30)
    assert far == pytest.approx(np.linalg.norm(e[30]), rel=1e-6)
    radius = np.abs(np.linalg.eigvals(np.block([[now, before], [one, 0 * one]]))).max()
    assert (radius < 1) == (lr < 0.5) == (far < np.linalg.norm(first))


def test_a_round_of_step_size_zero_moves_nothing() -> None:
    e = experiment(SCAFFOLD(lr=Cosine(0.2, rounds=2), local_steps=2), cohort=None)
    torch.testing.assert_close(flat(run(e)), flat(run(replace(e, rounds=2))))


def test_less_work_than_least_is_refused() -> None:
    with pytest.raises(Invalid, match=r"FedProx.least = 6: at most local_steps = 5"):
        FedProx(lr=0.1, least=6)
    with pytest.raises(Invalid, match=r"FedNova.tau = 1.0: messages are not clipped"):
        FedNova(lr=0.1, tau=1.0)
