"""The baselines of every paper: each against its algorithm written out client by client, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import engines
from fedsim.attacks import IPM
from fedsim.batches import Fixed, Full, Poisson
from fedsim.check import Invalid
from fedsim.config import catalog
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.env import Draws
from fedsim.federation import Federation
from fedsim.gradients import ClientGradients, one_client, one_loss
from fedsim.layout import Layout
from fedsim.method import Method
from fedsim.models import MLP, Frozen, Logistic
from fedsim.privacy import CentralDP, ExampleDP, MessageDP
from fedsim.runner import Result, run
from fedsim.schedule import Cosine
from fedsim.spec import Experiment
from fedsim.standing import Standing
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
    FedSGD,
    FedYogi,
    Mean,
    Median,
    PerLayer,
    TrimmedMean,
)
from fedsim.task import Task
from fedsim.types import Batch, Examples, Model, State


@dataclass(frozen=True)
class Normed(Model):
    """A group norm between two layers."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, classes))


def experiment(method: Method, **changes: Any) -> Experiment:
    base = Experiment(
        task=Task(data=Blobs(features=5, classes=3), model=Normed()),
        split=Dirichlet(1.0),
        clients=6,
        cohort=4,
        rule=Mean(),
        method=method,
        batches=Fixed(5),
        rounds=4,
        evaluate_every=1,
    )
    return replace(base, **changes)


def flat(result: Result) -> Tensor:
    return torch.cat([value.flatten() for value in result.model.values()])


class Double(Federation):
    """A federation in float64, in which rounding hides nothing."""

    def __init__(self, e: Experiment) -> None:
        super().__init__(e)
        self.model.double()
        self.x0, self.gradients = self.x0.double(), ClientGradients(self.model, loss=self.loss)
        assert isinstance(self.train.x, Tensor)
        self.train = Examples(self.train.x.double(), self.train.y)

    def _fetched(self, place: Tensor, weight: Tensor) -> Batch:
        return super()._fetched(place, weight.double())


def after(e: Experiment, engine: str) -> tuple[Tensor, Tensor]:
    """The server's model (d,) after a run in float64, and those that clients use (n, d)."""
    fed = Double(e)
    asks = engines.Everyone(engines.get(engine))
    now = Standing.start(fed, asks.first(fed))
    while now.goes_on(fed):
        asked = now.asked(fed)
        now, _ = now.after(fed, *asks(fed, now.states.of(asked), now.told(fed), now.round, asked))
    x = now.x(fed)
    return x, e.method.personal(now.states.of(np.arange(e.clients)), x, fed.layout.trained).expand(
        e.clients, -1
    )


def close(ours: Tensor, truth: Tensor) -> None:
    assert ours.dtype == truth.dtype == torch.float64
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-11)


class Client:
    """What a plain transcription needs of a client in a round: its batches, and gradients on them."""

    def __init__(self, fed: Federation, t: int, i: int) -> None:
        self.fed, self.t, self.i = fed, t, i
        batch = fed.batch(t, np.array([i])).part(0)
        self.batches = list(batch.split(fed.experiment.method.steps))

    def grad(self, y: Tensor, k: int) -> Tensor:
        return one_client(self.fed.model, y, self.batches[k])

    def loss(self, y: Tensor, k: int) -> float:
        return float(one_loss(self.fed.model, y, self.batches[k], self.fed.loss))

    def work(self, least: int, most: int) -> int:
        u = float(Draws(self.fed, "client", self.t, np.array([self.i])).own(1)[0, 0])
        return least + int(u * (most - least + 1))


def rounds(e: Experiment) -> tuple[Federation, Iterator[list[Client]]]:
    fed = Double(e)
    return fed, ([Client(fed, t, i) for i in fed.cohort(t).tolist()] for t in range(e.rounds))


def weights(clients: list[Client]) -> list[float]:
    """FedAvg's: each client by its examples."""
    sizes = [int(c.fed.sizes[c.i]) for c in clients]
    return [size / sum(sizes) for size in sizes]


def fedavg(c: Client, x: Tensor, lr: float, steps: int) -> Tensor:
    y = x.clone()
    for k in range(steps):
        y = y - lr * c.grad(y, k)
    return y


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


# ---------------------------------------------------------------- closed forms
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


# ---------------------------------------------------------------- models of clients' own
@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_ditto_keeps_a_model_of_each_client(engine: str) -> None:
    """v_i <- v_i - lr (grad f_i(v_i) + pull (v_i - x)), with the x that was broadcast."""
    m = Ditto(lr=0.2, local_steps=2, personal_steps=3, pull=0.7)
    e = experiment(m)
    fed, played = rounds(e)
    x, own = fed.x0, dict.fromkeys(range(e.clients), fed.x0)
    for clients in played:
        ys = []
        for c in clients:
            ys.append(fedavg(c, x, m.lr, 2))
            for k in range(2, 5):
                own[c.i] = own[c.i] - m.lr * (c.grad(own[c.i], k) + m.pull * (own[c.i] - x))
        x = sum(p * y for p, y in zip(weights(clients), ys, strict=True))
    server, personal = after(e, engine)
    close(server, x)
    close(personal, torch.stack([own[i] for i in range(e.clients)]))


@pytest.mark.parametrize(
    "method", [FedPer(lr=0.2), FedBN(lr=0.2), FedPer(lr=0.2, kept=("0.*", "1.bias"))], ids=repr
)
@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_what_is_kept_is_trained_and_never_sent(method: FedPer, engine: str) -> None:
    """A client uses the server's shared part and its own kept one, which the plain algorithm has as well."""
    e = experiment(method)
    fed, played = rounds(e)
    layout = fed.layout.trained
    kept = layout.chosen(method.kept)
    names = {"head": {"3.weight", "3.bias"}, "norm": {"1.weight", "1.bias"}}
    wanted = names.get(method.kept[0], {"0.weight", "0.bias", "1.bias"})
    assert {b.name for b, k in zip(layout.blocks, kept.split(layout.sizes), strict=True) if k.all()} == wanted
    assert fed.width == int((~kept).sum()) == len(kept) - int(kept.sum())
    x, own = fed.x0, dict.fromkeys(range(e.clients), fed.x0)
    for clients in played:
        for c in clients:
            own[c.i] = fedavg(c, torch.where(kept, own[c.i], x), method.lr, method.local_steps)
        mean = sum(p * own[c.i] for p, c in zip(weights(clients), clients, strict=True))
        x = torch.where(kept, x, mean)
    server, personal = after(e, engine)
    close(server, x)
    assert torch.equal(server[kept], fed.x0[kept])
    close(personal, torch.stack([torch.where(kept, own[i], x) for i in range(e.clients)]))
    asked = {c.i for t in range(e.rounds) for c in [*(Client(fed, t, i) for i in fed.cohort(t).tolist())]}
    moved = {i for i in range(e.clients) if not torch.equal(personal[i][kept], fed.x0[kept])}
    assert moved == asked


def test_a_frozen_part_is_neither_sent_nor_kept() -> None:
    """What is trained and what is shared are two things: here the first layer is neither, the head is trained alone."""
    e = experiment(
        FedPer(lr=0.2), task=Task(data=Blobs(features=5, classes=3), model=Frozen(Normed(), ("0.*",)))
    )
    fed = Federation(e)
    names = [b.name for b in fed.layout.trained.blocks]
    assert names == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert (fed.layout.trained.width, fed.width) == (33, 12)
    result = run(e)
    for name, value in fed.model.named_parameters():
        assert torch.equal(result.model[name], value) == (not name.startswith("1."))


def test_a_model_of_which_nothing_or_all_is_kept_is_refused() -> None:
    for kept, said in ((("nothing",), "keeps 0 of"), (("*",), "keeps 69 of 69 numbers")):
        with pytest.raises(Invalid, match=said):
            Federation(experiment(FedPer(lr=0.1, kept=kept)))
    with pytest.raises(Invalid, match=r"FedBN\.kept = \['norm'\]: keeps 0 of"):
        Federation(experiment(FedBN(lr=0.1), task=Task(data=Blobs(), model=Logistic())))


def test_own_models_are_worth_more_on_one_s_own_classes() -> None:
    """Clients of one class or two: a head of one's own beats FedAvg's model, which records none of this."""
    e = experiment(
        FedPer(lr=0.3, local_steps=5),
        task=Task(data=Blobs(features=4, classes=5), model=MLP(hidden=6)),
        split=Dirichlet(0.1),
        rounds=10,
        evaluate_every=10,
        cohort=None,
    )
    last = run(e).frame.iloc[-1]
    average = run(replace(e, method=FedAvg(lr=0.3, local_steps=5))).frame
    assert last["personal_accuracy"] > float(average["accuracy"].iloc[-1])
    assert last["personal_accuracy_worst"] <= last["personal_accuracy"] <= 1
    assert not [name for name in average if name.startswith("personal")]


def test_a_personal_metric_is_the_accuracy_on_the_client_s_own_mix() -> None:
    e = experiment(Ditto(lr=0.2, local_steps=1, personal_steps=2), cohort=None)
    fed, models = Federation(e), after(e, "loop")[1].float()
    found = []
    assert isinstance(fed.test.x, Tensor)
    for i, model in enumerate(models):
        views = dict(zip([b.name for b in fed.layout.blocks], fed.layout.views(model), strict=True))
        right = torch.func.functional_call(fed.model, views, (fed.test.x,)).argmax(1) == fed.test.y
        own = fed.train.y[fed.starts[i] : fed.starts[i] + fed.sizes[i]]
        share = [float((own == c).double().mean()) for c in range(3)]
        by_class = [float(right[fed.test.y == c].double().mean()) for c in range(3)]
        found.append(sum(s * a for s, a in zip(share, by_class, strict=True)))
    last = run(e, engine="loop").frame.iloc[-1]
    assert last["personal_accuracy"] == pytest.approx(np.mean(found), abs=1e-6)
    assert last["personal_accuracy_worst"] == pytest.approx(min(found), abs=1e-6)


def test_less_work_than_least_is_refused() -> None:
    with pytest.raises(Invalid, match=r"FedProx.least = 6: at most local_steps = 5"):
        FedProx(lr=0.1, least=6)
    with pytest.raises(Invalid, match=r"FedNova.tau = 1.0: messages are not clipped"):
        FedNova(lr=0.1, tau=1.0)
