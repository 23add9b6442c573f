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
from fedsim.check import Invalid
from fedsim.clock import Bandwidth, Clock, Constant, Exponential, Wave
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.federation import Federation
from fedsim.gradients import one_client
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.recall import recalled
from fedsim.runner import Result
from fedsim.spec import Experiment
from fedsim.strategies import (
    AsyncSGD,
    DecayingLocalSGD,
    DualLocalSGD,
    EDiT,
    FedAvg,
    FedProx,
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


# ---------------------------------------------------------------- local steps set by time
TIMED = Clock(Exponential(1.0, spread=0.7), Bandwidth(latency=0.5), work=2.0)


def done_in(fed: Federation, clock: Clock, i: int, t: int) -> tuple[int, float]:
    """Client i's local steps within 2 seconds, one at least and K at most; and when it sends."""
    took = [clock.gradient.gradient_seconds(fed.keys, i, t * K + j, 0.0) for j in range(K)]
    done = max(1, sum(sum(took[: j + 1]) <= 2.0 for j in range(K)))
    return done, max(2.0, took[0]) if done < K else sum(took)


@pytest.mark.parametrize("engine", ["loop", "vector", "grid"])
@pytest.mark.parametrize("rule", [Mean(), EDiT(warmup=1, z=0.5)], ids=["mean", "A-EDiT"])
def test_as_many_local_steps_as_the_time_allows(engine: str, rule: Mean | EDiT) -> None:
    """Each client's steps counted by hand, and only these made; with EDiT's penalty this is A-EDiT."""
    decayed = [LR * sqrt(K / ((j + 1) * (1 + log(K)))) for j in range(K)]
    for method, steps, eta in (
        (FedAvg(lr=LR, local_steps=K, weights="equal"), [LR] * K, LR),
        (MinibatchSGD(lr=LR, local_steps=K), [0.0] * K, LR),
        (DualLocalSGD(lr=LR, local_steps=K), [LR] * K, LR * sqrt(N)),
        (DecayingLocalSGD(lr=LR, local_steps=K), decayed, LR * sqrt(N)),
    ):
        e = replace(BASE, method=method, rule=rule, clock=TIMED)
        fed, seconds, counts = Federation(e), 0.0, list[int]()
        x, previous = fed.x0, None
        memory = rule.start(N, fed.x0) if isinstance(rule, EDiT) else None
        for t in range(e.rounds):
            rows = []
            for i in range(N):
                z, total = x, torch.zeros_like(x)
                for j in range(done_in(fed, TIMED, i, t)[0]):
                    g = gradient(fed, i, t, j, z)
                    z, total = z - steps[j] * g, total + g
                rows.append(total)
            counts += [done_in(fed, TIMED, i, t)[0] for i in range(N)]
            aggregate = torch.stack(rows).mean(0)
            if memory is not None and isinstance(rule, EDiT):
                scaled = torch.stack(rows) * LR
                now = recalled(rule, memory, torch.arange(N), scaled, 0, x, previous)
                previous, memory = now.answer(), now.memory
                aggregate = previous / LR
            x = x - eta * aggregate
            seconds += 1.0 + max(done_in(fed, TIMED, i, t)[1] for i in range(N))
        assert set(counts) == {1, 2, 3}
        result = run(e, engine=engine)
        torch.testing.assert_close(model(result), x, rtol=1e-4, atol=1e-5)
        assert result.frame["simulated_seconds"].iloc[-1] == pytest.approx(seconds)


def test_hero_alone_does_what_the_time_allows() -> None:
    """One client, no messages: SGD, a step a second."""
    e = replace(
        BASE, clients=1, method=FedAvg(lr=LR, local_steps=100), clock=Clock(Constant(1.0), work=7.0), rounds=2
    )
    fed = Federation(e)
    x = fed.x0
    for t in range(2):
        for j in range(7):
            x = x - LR * one_client(fed.model, x, list(fed.batch(t, np.array([0])).part(0).split(100))[j])
    result = run(e)
    torch.testing.assert_close(model(result), x, rtol=1e-4, atol=1e-5)
    assert result.frame["simulated_seconds"].tolist() == [7.0, 14.0]


def test_who_cannot_stop_early_says_so() -> None:
    for changes, words in (
        ({"method": FedProx(lr=0.1)}, "clock.work = 2 with method = FedProx: its clients do all local steps"),
        ({"task": replace(BASE.task, l2=0.1)}, "with task.l2 = 0.1: every local step shrinks"),
        (
            {"privacy": ExampleDP(clip=1.0, noise=1.0)},
            "with privacy = ExampleDP: every local step adds noise",
        ),
    ):
        with pytest.raises(Invalid, match=words):
            replace(BASE, clock=TIMED, **changes)
    with pytest.raises(Invalid, match=r"Clock.work = 1 with a pace that changes with time \(Wave\)"):
        Clock(Wave(Constant(1.0)), work=1.0)
