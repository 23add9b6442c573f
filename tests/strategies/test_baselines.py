"""The baselines of every paper: each against its algorithm written out client by client, in float64; with any rule,
attack and privacy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import flat
from torch import Tensor
from transcribed import after, close, experiment, fedavg, rounds, weights

from fedsim import engines
from fedsim.attacks import IPM
from fedsim.batches import Poisson
from fedsim.check import Invalid
from fedsim.config import catalog
from fedsim.federation import Federation
from fedsim.layout import Layout
from fedsim.method import Method
from fedsim.privacy import CentralDP, ExampleDP, MessageDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import (
    NNM,
    QFFL,
    SCAFFOLD,
    Chain,
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedDyn,
    FedNova,
    FedPer,
    FedProx,
    FedYogi,
    Mean,
    Median,
    PerLayer,
    TrimmedMean,
)


# ---------------------------------------------------------------- the algorithms, line by line
def fedprox(m: FedProx, e: Experiment) -> Tensor:
    fed, played = rounds(e)
    x = fed.x0
    for clients in played:
        ys = []
        for c in clients:
            y = x.clone()
            for k in range(m.local_steps if m.least is None else c.work(m.least, m.local_steps)):
                y = y - m.lr * (c.grad(y, k) + m.mu * (y - x))
            ys.append(y)
        x = sum(p * y for p, y in zip(weights(clients), ys, strict=True))
    return x


def scaffold(m: SCAFFOLD, e: Experiment) -> Tensor:
    fed, played = rounds(e)
    x, c, own = fed.x0, 0 * fed.x0, dict.fromkeys(range(e.clients), 0 * fed.x0)
    n, k_ = e.clients, m.local_steps
    for clients in played:
        moves, changes = [], []
        for client in clients:
            y, ci = x.clone(), own[client.i]
            for k in range(k_):
                y = y - m.lr * (client.grad(y, k) - ci + c)
            new = client.grad(x, k_) if m.option == "I" else ci - c + (x - y) / (k_ * m.lr)
            moves.append(y - x)
            changes.append(new - ci)
            own[client.i] = new
        x = x + m.server_lr * sum(moves) / len(moves)
        c = c + sum(changes) / n
        torch.testing.assert_close(c, sum(own.values()) / n, rtol=1e-4, atol=1e-6)
    return x


def fednova(m: FedNova, e: Experiment) -> Tensor:
    fed, played = rounds(e)
    x = fed.x0
    for clients in played:
        directions, lengths = [], []
        for c in clients:
            y, momentum = x.clone(), 0 * x
            tau = m.local_steps if m.least is None else c.work(m.least, m.local_steps)
            a, sent = 0.0, 0.0
            for k in range(tau):
                momentum = m.momentum * momentum + c.grad(y, k)
                y = y - m.lr * momentum
                sent = m.momentum * sent + 1  # the momentum's weight of all gradients so far
                a += sent
            directions.append((y - x) / a)
            lengths.append(a)
        p = weights(clients)
        length = sum(w * a for w, a in zip(p, lengths, strict=True))
        x = x + m.server_lr * length * sum(w * d for w, d in zip(p, directions, strict=True))
    return x


def feddyn(m: FedDyn, e: Experiment) -> Tensor:
    fed, played = rounds(e)
    x, h, own = fed.x0, 0 * fed.x0, dict.fromkeys(range(e.clients), 0 * fed.x0)
    for clients in played:
        ys = []
        for c in clients:
            y = x.clone()
            for k in range(m.local_steps):
                y = y - m.lr * (c.grad(y, k) - own[c.i] + m.alpha * (y - x))
            own[c.i] = own[c.i] - m.alpha * (y - x)
            ys.append(y)
        h = h - m.alpha * sum(y - x for y in ys) / e.clients
        x = sum(ys) / len(ys) - h / m.alpha
    return x


def at_server(move: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Experiment], Tensor]:
    """FedAvg's clients, and an optimiser that is given D = sum p_i (y_i - x)."""

    def play(m: Any, e: Experiment) -> Tensor:
        fed, played = rounds(e)
        x, state = fed.x0, SimpleNamespace()
        for clients in played:
            ys = [fedavg(c, x, m.lr, m.local_steps) for c in clients]
            x = x + move((m, state), sum(p * (y - x) for p, y in zip(weights(clients), ys, strict=True)))
        return x

    return play


def momentum(at: Any, d: Tensor) -> Tensor:
    m, s = at
    s.v = m.momentum * getattr(s, "v", 0) + d
    return m.server_lr * s.v


def adaptive(at: Any, d: Tensor) -> Tensor:
    m, s = at
    s.m = m.b1 * getattr(s, "m", 0 * d) + (1 - m.b1) * d
    v = getattr(s, "v", torch.full_like(d, m.epsilon**2))
    if isinstance(m, FedAdagrad):
        s.v = v + d**2
    elif isinstance(m, FedAdam):
        s.v = m.b2 * v + (1 - m.b2) * d**2
    else:
        s.v = v - (1 - m.b2) * d**2 * torch.sign(v - d**2)
    return m.server_lr * s.m / (s.v.sqrt() + m.epsilon)


def ditto(m: Ditto, e: Experiment) -> Tensor:
    """The server's model is FedAvg's; the clients' own are looked at below."""
    return at_server(lambda at, d: d)(m, e)


def part(m: FedPer, e: Experiment) -> Tensor:
    fed, played = rounds(e)
    names = [b.name for b in Layout.of(fed.model).blocks]
    kept = {"1.weight", "1.bias"} if isinstance(m, FedBN) else {"3.weight", "3.bias"}
    layout = Layout.of(fed.model)
    stays = torch.cat(
        [torch.full((b.size,), name in kept) for b, name in zip(layout.blocks, names, strict=True)]
    )
    x, own = fed.x0, dict.fromkeys(range(e.clients), fed.x0)
    for clients in played:
        ys = []
        for c in clients:
            own[c.i] = fedavg(c, torch.where(stays, own[c.i], x), m.lr, m.local_steps)
            ys.append(own[c.i])
        mean = sum(p * y for p, y in zip(weights(clients), ys, strict=True))
        x = torch.where(stays, x, mean)
    return x


def qffl(m: QFFL, e: Experiment) -> Tensor:
    fed, played = rounds(e)
    x, big_l = fed.x0, 1 / m.lr
    for clients in played:
        d, h = 0 * x, 0.0
        for c in clients:
            f = c.loss(x, 0) + 1e-10
            delta = big_l * (x - fedavg(c, x, m.lr, m.local_steps))
            d = d + f**m.q * delta
            h += m.q * f ** (m.q - 1) * float(delta @ delta) + big_l * f**m.q
        x = x - d / h
    return x


ALGORITHMS: dict[str, tuple[Method, Callable[[Any, Experiment], Tensor]]] = {
    "FedProx": (FedProx(lr=0.2, mu=0.5), fedprox),
    "FedProx, partial work": (FedProx(lr=0.2, mu=0.5, least=1), fedprox),
    "SCAFFOLD I": (SCAFFOLD(lr=0.2, local_steps=3, option="I", server_lr=0.7), scaffold),
    "SCAFFOLD II": (SCAFFOLD(lr=0.2, local_steps=3), scaffold),
    "FedNova": (FedNova(lr=0.2), fednova),
    "FedNova, partial work": (FedNova(lr=0.2, least=1, server_lr=0.8), fednova),
    "FedNova, momentum": (FedNova(lr=0.1, least=2, momentum=0.9), fednova),
    "FedDyn": (FedDyn(lr=0.2, alpha=0.3), feddyn),
    "FedAvgM": (FedAvgM(lr=0.2, local_steps=2), at_server(momentum)),
    "FedAdagrad": (FedAdagrad(lr=0.2, local_steps=2), at_server(adaptive)),
    "FedAdam": (FedAdam(lr=0.2, local_steps=2), at_server(adaptive)),
    "FedYogi": (FedYogi(lr=0.2, local_steps=2), at_server(adaptive)),
    "Ditto": (Ditto(lr=0.2, local_steps=2, personal_steps=2), ditto),
    "FedPer": (FedPer(lr=0.2, local_steps=2), part),
    "FedBN": (FedBN(lr=0.2, local_steps=2), part),
    "QFFL": (QFFL(lr=0.2, local_steps=3), qffl),
    "QFFL, q = 0.3": (QFFL(lr=0.2, local_steps=2, q=0.3), qffl),
}
every = pytest.mark.parametrize("name", ALGORITHMS)


@every
@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_a_baseline_is_its_algorithm(name: str, engine: str) -> None:
    method, algorithm = ALGORITHMS[name]
    e = experiment(method)
    close(after(e, engine)[0], algorithm(method, e))


# ---------------------------------------------------------------- rules, attacks, privacy, restarts
METHODS = {type(method).__name__: method for method, _ in ALGORITHMS.values()}
each = pytest.mark.parametrize("name", METHODS)


def plain(component: type[Any]) -> Any:
    """One with 1/2 where it has no default."""
    needed = [f.name for f in fields(component) if f.default is MISSING and f.default_factory is MISSING]
    return component(**dict.fromkeys(needed, 0.5))


@pytest.mark.parametrize("method", [SCAFFOLD(lr=0.1), FedPer(lr=0.1)], ids=repr)
@pytest.mark.parametrize("name", catalog.names("attacks"))
def test_every_attack_forges_messages_of_any_width(name: str, method: Method) -> None:
    e = experiment(
        method,
        rule=Chain(NNM(), TrimmedMean()),
        attack=plain(catalog.names("attacks")[name]),
        byzantine=1,
        cohort=None,
        rounds=2,
        knowledge=("own", "honest", "rule"),
    )
    assert flat(run(e)).isfinite().all()


@pytest.mark.parametrize("method", [SCAFFOLD(lr=0.1), FedPer(lr=0.1)], ids=repr)
@pytest.mark.parametrize("name", [n for n in catalog.names("rules") if n != "Chain"])
def test_every_rule_takes_messages_of_any_width(name: str, method: Method) -> None:
    rule = PerLayer(Median()) if name == "PerLayer" else plain(catalog.names("rules")[name])
    e = experiment(method, rule=rule, byzantine=1, attack=IPM(2.0), clients=7, cohort=None)
    if name == "FLDetector":
        with pytest.raises(
            Invalid, match="FLDetector: compares messages with moves of the model, of 69 numbers"
        ):
            run(e)
        return
    assert flat(run(replace(e, rounds=2))).isfinite().all()


@each
def test_a_baseline_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    def interrupt(round: int, _: object) -> None:
        if round == 2:
            raise KeyboardInterrupt

    e = experiment(METHODS[name])
    with pytest.raises(KeyboardInterrupt):
        run(e, out=tmp_path, progress=interrupt)
    again, whole = run(e, out=tmp_path, resume=True), run(e)
    assert torch.equal(flat(again), flat(whole))
    told = [column for column in whole.frame if column.startswith("personal")]
    assert again.frame[told].equals(whole.frame[told])


@each
def test_a_baseline_with_noise_on_gradients(name: str) -> None:
    """Every gradient is counted, the personal ones and option I's too; where losses are told, it is refused."""
    method = METHODS[name]
    e = experiment(method, privacy=ExampleDP(clip=1.0, noise=2.0), batches=Poisson(rate=0.2), rounds=2)
    if name == "QFFL":
        with pytest.raises(Invalid, match=r"QFFL: env\.loss tells of examples"):
            run(e)
        return
    same = replace(e, method=FedAvg(lr=0.1, local_steps=method.steps))
    assert run(e).summary["epsilon"] == pytest.approx(run(same).summary["epsilon"], rel=1e-9)


@each
@pytest.mark.parametrize("level", [MessageDP, CentralDP])
def test_a_baseline_with_noise_on_messages(name: str, level: Any) -> None:
    """One release of a bounded message a round, whatever else clients keep: FedAvg's epsilon."""
    method: Any = METHODS[name]
    noise = {
        "privacy": level(noise=0.1, delta=1e-3),
        "rule": Mean() if level is CentralDP else Median(),
        "rounds": 2,
    }
    if name in ("FedNova", "QFFL"):
        with pytest.raises(Invalid, match=f"{name} sends messages without a bound"):
            experiment(method, **noise)
        return
    alike = {"weights": "equal"} if hasattr(method, "weights") else {}
    e = experiment(replace(method, tau=0.5, **alike), **noise)
    same = replace(e, method=FedAvg(lr=0.1, tau=0.5, weights="equal"))
    assert run(e).summary["epsilon"] == run(same).summary["epsilon"] > 0
    close(after(e, "vector")[0], after(e, "loop")[0])


@pytest.mark.parametrize("option", ["I", "II"])
def test_both_parts_of_scaffold_s_message_are_moves_within_its_clip(option: Any) -> None:
    """K lr (c_i+ - c_i) is of the size of x - y: neither part drowns in the noise that the other one needs."""
    fed = Federation(experiment(SCAFFOLD(lr=0.02, local_steps=4, option=option), cohort=None))
    told = {"x": fed.x0, "c": 0 * fed.x0}
    _, sent = engines.get("loop")(fed, {"c": torch.zeros(6, 69)}, told, 0, np.arange(6))
    moved, change = sent.rows.chunk(2, 1)
    assert ((moved.norm(dim=1) / change.norm(dim=1)).log().abs() < 1).all()
