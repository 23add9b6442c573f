"""Local SGD in time, EDiT's penalty and replayed messages against plain lines."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import run
from fedsim.attacks import Replay
from fedsim.batches import Fixed
from fedsim.clock import Bandwidth, Clock, Constant
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.federation import Federation
from fedsim.gradients import one_client
from fedsim.models import Logistic
from fedsim.recall import recalled
from fedsim.runner import Result
from fedsim.spec import Experiment
from fedsim.strategies import (
    AsyncSGD,
    DecayingLocalSGD,
    DualLocalSGD,
    EDiT,
    FedAvg,
    FedSGD,
    Mean,
    Median,
    MinibatchSGD,
)
from fedsim.task import Task
from fedsim.types import View

N, K, LR = 4, 3, 0.1
BASE = Experiment(
    task=Task(data=Blobs(), model=Logistic()),
    split=Dirichlet(1.0),
    clients=N,
    rule=Mean(),
    method=FedAvg(lr=LR, local_steps=K),
    batches=Fixed(5),
    rounds=4,
    evaluate_every=1,
)


def model(result: Result) -> Tensor:
    return torch.cat([value.flatten() for value in result.model.values()])


def gradient(fed: Federation, i: int, t: int, j: int, x: Tensor) -> Tensor:
    return one_client(fed.model, x, list(fed.batch(t, np.array([i])).part(0).split(K))[j])


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_each_as_it_is_defined(engine: str) -> None:
    """x <- x - eta_g sum_i sum_j g(z_i^j): at x itself, along steps sqrt(n) as large, along steps that decay."""
    decayed = [LR * sqrt(K / ((j + 1) * (1 + log(K)))) for j in range(K)]
    for method, steps, eta in (
        (MinibatchSGD(lr=LR, local_steps=K), [0.0] * K, LR / N),
        (DualLocalSGD(lr=LR, local_steps=K), [LR] * K, LR / sqrt(N)),
        (DecayingLocalSGD(lr=LR, local_steps=K), decayed, LR / sqrt(N)),
    ):
        e = replace(BASE, method=method)
        fed = Federation(e)
        x = fed.x0
        for t in range(e.rounds):
            total = torch.zeros_like(x)
            for i in range(N):
                z = x
                for j in range(K):
                    g = gradient(fed, i, t, j, z)
                    z, total = z - steps[j] * g, total + g
            x = x - eta * total
        torch.testing.assert_close(model(run(e, engine=engine)), x, rtol=1e-4, atol=1e-5)
    assert sum(step**2 for step in decayed) <= K * LR**2 * (1 + 1e-12)


def test_rounds_of_k_gradients_take_tau_and_k_h_seconds() -> None:
    """The model of time of arXiv:2509.23207: R (tau + h K); Hero is one client, whom no message waits for."""
    h, tau = 2.0, 10.0
    clock = Clock(Constant(h), Bandwidth(latency=tau / 2))
    for method in (MinibatchSGD(lr=LR, local_steps=K), DecayingLocalSGD(lr=LR, local_steps=K)):
        frame = run(replace(BASE, method=method, clock=clock)).frame
        assert frame["simulated_seconds"].iloc[-1] == pytest.approx(4 * (tau + h * K))
    hero = replace(BASE, clients=1, clock=Clock(Constant(h)))
    assert run(hero).frame["simulated_seconds"].iloc[-1] == pytest.approx(4 * h * K)


def test_the_penalty_line_by_line() -> None:
    """In plain float64, with an outlier after the warm-up, round by round."""
    rule, rng = EDiT(clip=2.0, z=3.0, alpha=0.1, warmup=5), np.random.default_rng(0)
    memory = rule.start(3, torch.zeros(4))
    mean, variance, dropped, clipped = np.zeros(3), np.zeros(3), 0, 0
    for t in range(30):
        rows = rng.normal(size=(3, 4)).astype(np.float32)
        rows[0] *= 50 if t % 10 == 9 else 1
        length = np.sqrt((rows.astype(float) ** 2).sum(1))
        counts = np.ones(3, bool) if t < 5 else ~(length - mean > 3.0 * np.sqrt(variance))
        dropped += (~counts).sum()
        weights = np.exp(-length) * counts
        expected = (weights / weights.sum()) @ rows.astype(float)
        clipped += np.linalg.norm(expected) > 2.0
        expected *= min(1.0, 2.0 / np.linalg.norm(expected))
        found = recalled(rule, memory, torch.arange(3), torch.from_numpy(rows), 0, torch.zeros(4), None)
        np.testing.assert_allclose(found.answer().numpy(), expected, rtol=1e-4, atol=1e-6)
        memory = found.memory
        for i in range(3):
            if t == 0:
                mean[i] = length[i]
            elif counts[i]:
                off = length[i] - mean[i]
                mean[i], variance[i] = mean[i] + 0.1 * off, 0.9 * (variance[i] + 0.1 * off**2)
    assert dropped >= 2


def test_the_penalty_bounds_its_answer() -> None:
    rows = torch.tensor([[30.0, 0.0], [30.0, 0.0]])
    assert float(EDiT(clip=2.0)(rows).norm()) == pytest.approx(2.0)
    assert torch.equal(EDiT()(torch.zeros(3, 5)), torch.zeros(5))


def test_messages_come_again() -> None:
    attack, memory, sent = Replay(age=2), {}, []
    own = [torch.full((2, 3), float(t)) for t in range(6)]
    for t in range(6):
        view = View(n=5, f=2, round=t, x=torch.zeros(3), generator=torch.Generator(), own=own[t])
        forged, memory = attack.remember(view, memory)
        sent.append(float(forged[0, 0]))
    assert sent == [0, 0, 0, 1, 2, 3]
    fewer = View(
        n=5, f=1, round=6, x=torch.zeros(3), generator=torch.Generator(), own=torch.full((1, 3), 9.0)
    )
    assert attack.remember(fewer, memory)[0].tolist() == [[9.0] * 3]


def test_replays_in_rounds_and_among_single_messages() -> None:
    e = replace(
        BASE, clients=6, byzantine=2, attack=Replay(age=3), rule=Median(), method=FedSGD(lr=LR), rounds=8
    )
    assert torch.equal(model(run(e, engine="loop")), model(run(e, engine="grid")))
    timed = replace(e, method=AsyncSGD(lr=LR, buffer=5, distinct=True), clock=Clock(Constant(1.0)))
    assert torch.isfinite(model(run(timed))).all()


def test_rows_of_any_size_are_clipped() -> None:
    """Also where float32 has no number for the weight that a row would need, and where all are above their means."""
    far = torch.full((3, 1000), 3e38)
    assert float(EDiT(clip=10.0)(far).double().norm()) <= 10.0 * 1.01
    rule = EDiT(clip=2.0, warmup=1)
    memory = recalled(
        rule, rule.start(3, torch.zeros(4)), torch.arange(3), torch.ones(3, 4), 0, torch.zeros(4), None
    ).memory
    again = recalled(rule, memory, torch.arange(3), torch.full((3, 4), 1e6), 0, torch.zeros(4), None)
    assert float(again.answer().norm()) == pytest.approx(2.0, rel=1e-4)
