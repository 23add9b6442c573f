"""Rules that remember clients: their papers' steps in plain NumPy, and a memory that survives whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rule_oracles import fools_gold_weights as fools_gold
from torch import Tensor

from fedsim.attacks import ALIE, IPM, Adaptive, SignFlip
from fedsim.batches import Batches, Fixed, Full
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs, Digits
from fedsim.datasets.split import IID, Dirichlet
from fedsim.engines import get
from fedsim.engines.grid import InProcessGrid
from fedsim.federation import Federation
from fedsim.flower.client import Simulated, client_app
from fedsim.flower.strategy import MethodStrategy
from fedsim.models import MLP, Logistic
from fedsim.recall import MemoryRule, recalled
from fedsim.round import Messages, Server, finish
from fedsim.runner import Result, run
from fedsim.spec import Experiment
from fedsim.strategies import (
    ByzClip21SGD2M,
    FedAvg,
    FedSGD,
    FLDetector,
    FoolsGold,
    Mean,
    Median,
    MoNNA,
    TrimmedMean,
)
from fedsim.strategies.flower import RobustStrategy
from fedsim.strategies.kernels.clusters import groups, two, within
from fedsim.strategies.rules.recalling import hessian_products
from fedsim.task import Task
from fedsim.types import Attack, State

Floats = NDArray[np.float64]


# ---------------------------------------------------------------- FoolsGold
@pytest.mark.parametrize(
    ("cosine", "weight"), [(0.3775, 1), (0.5, 0.5), (0.6, 0.0945349), (0.6225, 0), (0.2, 1), (0.9, 0)]
)
def test_two_that_pull_alike_beside_one_that_does_not(cosine: float, weight: float) -> None:
    rows = torch.tensor([[1.0, 0, 0], [cosine, (1 - cosine**2) ** 0.5, 0], [0, 0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        FoolsGold().weights(rows), torch.tensor([weight, weight, 1.0]).double(), atol=2e-4, rtol=0
    )


def test_sybils_count_nothing() -> None:
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    assert FoolsGold().weights(rows).tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(FoolsGold("mean")(rows), torch.tensor([0.5, 0.5, 0]))
    torch.testing.assert_close(FoolsGold()(rows), torch.tensor([1.0, 1, 0]))


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 2.0]))
def test_weights_are_those_of_the_paper(k: int, d: int, seed: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(k, d)) + rng.choice([0, 2]) * rng.normal(size=d)
    h[rng.random(k) < 0.1] = 0
    got = FoolsGold(confidence=confidence).weights(torch.from_numpy(h)).numpy()
    want = fools_gold(h, confidence)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_all_alike_fall_back_to_their_mean() -> None:
    rows = torch.tensor([[1.0, 2, 0]]).repeat(4, 1) * torch.tensor([[1.0], [2], [3], [2]])
    torch.testing.assert_close(FoolsGold("mean")(rows), torch.tensor([2.0, 4, 0]))
    torch.testing.assert_close(FoolsGold()(rows), torch.tensor([8.0, 16, 0]))


def test_histories_count_and_are_each_client_s_own() -> None:
    """Under sampling: a sybil is known by what it sent in rounds in which others were there."""
    rule, x = FoolsGold("mean"), torch.zeros(3)
    memory, truth, rng = rule.start(6, x), np.zeros((6, 3)), np.random.default_rng(0)
    for _ in range(8):
        ids = np.sort(rng.choice(6, 4, replace=False))
        rows = torch.from_numpy(rng.normal(size=(4, 3))).float()
        rows[torch.from_numpy(ids >= 4)] = torch.tensor([1.0, 2.0, 3.0])
        before = memory["own"]["history"].clone()
        step = recalled(rule, memory, torch.from_numpy(ids), rows, 1, x, None)
        truth[ids] += rows.numpy()
        memory = step.memory
        np.testing.assert_allclose(memory["own"]["history"].numpy(), truth, rtol=1e-5, atol=1e-5)
        absent = np.setdiff1d(np.arange(6), ids)
        assert torch.equal(memory["own"]["history"][absent], before[absent])
        w = fools_gold(truth[ids])
        np.testing.assert_allclose(step.answer().numpy(), w @ rows.numpy() / w.sum(), rtol=1e-4, atol=1e-5)


def test_a_broken_row_is_nobody_s() -> None:
    rule, x = FoolsGold("mean"), torch.zeros(3)
    memory, rows = rule.start(4, x), torch.eye(3)[[0, 1, 2, 0]] * torch.tensor([[1.0], [2], [3], [torch.nan]])
    step = recalled(rule, memory, torch.arange(4), rows, 1, x, None)
    assert torch.equal(step.memory["own"]["history"][3], x)
    torch.testing.assert_close(step.answer(), torch.tensor([1.0, 2, 3]) / 3)
    assert step.f == 0
    nothing = recalled(rule, memory, torch.arange(4), rows * torch.nan, 1, x, None)
    assert torch.equal(nothing.answer(), x)
    assert torch.equal(nothing.memory["own"]["history"], memory["own"]["history"])


# ---------------------------------------------------------------- groups on a line
@settings(max_examples=60)
@given(st.integers(2, 8), st.integers(0, 2**31))
def test_means_on_a_line_are_the_best_of_all(n: int, seed: int) -> None:
    """Against every division into intervals."""
    values = np.sort(np.random.default_rng(seed).random(n).round(1 + seed % 3))

    def spread(part: Floats) -> float:
        return float(((part - part.mean()) ** 2).sum())

    best = [
        min(
            sum(spread(part) for part in np.split(values, cut))
            for cut in combinations(range(1, n), groups_ - 1)
        )
        for groups_ in range(1, n + 1)
    ]
    np.testing.assert_allclose(within(values, n), best, atol=1e-12)
    cut = two(values)
    assert spread(values[:cut]) + spread(values[cut:]) == pytest.approx(best[1], abs=1e-12)


def test_the_gap_statistic_tells_one_group_from_two() -> None:
    rng = np.random.default_rng(0)
    references = rng.random((10, 30))
    one = np.sort(rng.random(30))
    apart = np.sort(np.concatenate([rng.normal(0.05, 0.02, 22), rng.normal(0.95, 0.02, 8)]))
    assert groups(one, references) == 1
    assert groups(apart, references) == 2


def test_the_gap_statistic_line_by_line() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        values, references = np.sort(rng.random(12) ** rng.integers(1, 6)), rng.random((10, 12))
        tiny = 12e-12
        w = [within(values, 7)[k] + tiny for k in range(7)]
        drawn = [[within(np.sort(r), 7)[k] + tiny for r in references] for k in range(7)]
        gap = [np.log(np.mean(drawn[k])) - np.log(w[k]) for k in range(7)]
        s = [np.std(np.log(drawn[k])) * np.sqrt(11 / 10) for k in range(7)]
        want = next((k for k in range(1, 7) if gap[k - 1] >= gap[k] - s[k]), 7)
        assert groups(values, references) == want


# ---------------------------------------------------------------- FLDetector
def test_the_product_with_the_hessian_is_that_of_bfgs() -> None:
    """The updates of B one after the other, from sigma I; and exact along steps of a quadratic."""
    torch.manual_seed(0)
    a = torch.randn(5, 5).double()
    a = a @ a.T + torch.eye(5)
    steps = torch.randn(3, 5).double()
    turns = steps @ a
    b = float(turns[-1] @ steps[-1] / (steps[-1] @ steps[-1])) * torch.eye(5).double()
    for s, y in zip(steps, turns, strict=True):
        b = b - torch.outer(b @ s, b @ s) / (s @ b @ s) + torch.outer(y, y) / (y @ s)
    v = torch.randn(4, 5).double()
    torch.testing.assert_close(hessian_products(steps, turns, v), v @ b)
    torch.testing.assert_close(hessian_products(steps, turns, steps[-1:]), turns[-1:])
    assert not hessian_products(steps[:0], turns[:0], v).any()
    flat = hessian_products(0 * steps, 0 * turns, v)  # a model that does not move
    assert torch.equal(flat, 0 * v)
    doubled = hessian_products(steps[[0, 0, 0]], turns[[0, 0, 0]], v)  # pairs that are all one
    assert doubled.isfinite().all()


def quadratics(liars: int, noise: float = 1e-3) -> tuple[State, list[int]]:
    """Ten clients with one Hessian and minima of their own, full gradients; the last `liars` send noise."""
    rule, rng = FLDetector(window=5), torch.Generator().manual_seed(0)
    a = torch.diag(torch.linspace(0.5, 1.5, 4)).double()
    minima = torch.randn(10, 4, generator=rng, dtype=torch.float64)
    x, previous = torch.full((4,), 3.0).double(), None
    memory, caught = rule.start(10, x), list[int]()
    for _ in range(25):
        rows = (x - minima) @ a + noise * torch.randn(10, 4, generator=rng, dtype=torch.float64)
        rows[10 - liars :] = torch.randn(liars, 4, generator=rng, dtype=torch.float64) * 3
        step = recalled(rule, memory, torch.arange(10), rows, 3, x, previous)
        memory, previous = step.memory, step.answer()
        x = x - 0.2 * previous
        caught.append(int(memory["own"]["out"].sum()))
    return memory["own"], caught


def test_who_sends_noise_is_left_out() -> None:
    own, caught = quadratics(3)
    assert own["out"].tolist() == [0] * 7 + [1] * 3
    assert caught[4] == 0  # not before a window is full
    assert caught[6] == 3


@pytest.mark.parametrize(
    ("attack", "batches", "out"),
    [(IPM(10.0), Full(), "liars"), (SignFlip(), Full(), "liars"), (ALIE(), Fixed(16), "honest")],
    ids=repr,
)
def test_whom_it_finds_on_digits(attack: Attack, batches: Batches, out: str) -> None:
    """Five liars of 25 by their first full window; and its weakness: liars who agree are better foretold."""
    e = Experiment(
        task=Task(data=Digits(), model=MLP(hidden=30)),
        split=IID(),
        clients=25,
        byzantine=5,
        attack=attack,
        rule=FLDetector(),
        method=FedSGD(lr=0.3),
        batches=batches,
        rounds=12,
    )
    fed = Federation(e)
    server, ids = Server.start(fed), np.arange(fed.computing)
    for t in range(e.rounds):
        _, messages = get("vector")(fed, {}, server.told(e.method), t, ids)
        server, _ = finish(fed, server, messages, np.arange(25), t)
    found = server.recall["own"]["out"].nonzero()[:, 0].tolist()
    assert found == list(range(20, 25) if out == "liars" else range(20))


def test_forecasts_of_quadratics_come_true() -> None:
    """Steps of gradient descent with changing rates span the space: the next gradient is foretold, whoever sends it."""
    torch.manual_seed(0)
    a = torch.diag(torch.linspace(0.5, 1.5, 3)).double()
    x, xs = torch.randn(3).double(), list[Tensor]()
    for t in range(30):
        xs.append(x)
        x = x - (0.3 + 0.9 * (t % 3 == 2)) * (x @ a)
    steps = torch.stack([b - c for b, c in zip(xs[1:], xs, strict=False)])[-11:]
    v = steps[-1]
    told = hessian_products(steps[:-1], steps[:-1] @ a, v[None])[0]
    assert float((told - v @ a).norm()) < 0.02 * float((v @ a).norm())


def test_who_is_out_does_not_count() -> None:
    rule, x = FLDetector(rule=TrimmedMean(), window=2), torch.zeros(2)
    memory = rule.start(5, x)
    memory["own"]["out"][4] = 1
    rows = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0], [100, 0]])
    step = recalled(rule, memory, torch.arange(5), rows, 2, x, None)
    assert step.f == 1
    assert float(step.answer()[0]) == 2.5
    memory["own"]["out"][:] = 1  # nobody is left: all count, as many Byzantine among them as before
    step = recalled(rule, memory, torch.arange(5), rows, 2, x, None)
    assert (step.f, float(step.answer()[0])) == (2, 3.0)


def test_fldetector_line_by_line() -> None:
    """Scores of some rounds with absent clients: the elapsed change of the model, from the round one was last seen."""
    torch.manual_seed(0)
    rule, n, d = FLDetector(rule=Mean(), window=30), 5, 4
    memory = rule.start(n, torch.zeros(d).double())
    xs, answers = [torch.randn(d).double()], []
    last, scores = {}, {i: list[float]() for i in range(n)}
    rng = np.random.default_rng(0)
    for t in range(9):
        ids = np.sort(rng.choice(n, 4, replace=False)).tolist()
        rows, x = torch.randn(4, d).double(), xs[-1]
        pairs = range(1, t)  # of steps x_j - x_{j-1} and turns answer_j - answer_{j-1}
        s = [xs[j] - xs[j - 1] for j in pairs]
        y = [answers[j] - answers[j - 1] for j in pairs]
        distance = {}
        for i, row in zip(ids, rows, strict=True):
            if i in last:
                old, at = last[i]
                turn = hessian_products(torch.stack(s), torch.stack(y), (x - at)[None])[0] if s else 0 * x
                distance[i] = float((old + turn - row).norm())
            last[i] = (row, x)
        for i, value in distance.items():
            scores[i].append(value / np.mean(list(distance.values())))
        step = recalled(rule, memory, torch.tensor(ids), rows, 1, x, answers[-1] if answers else None)
        memory = step.memory
        answers.append(step.answer())
        xs.append(x - 0.1 * answers[-1])
        for i in range(n):
            kept = memory["own"]["scores"][i]
            assert kept[kept.isfinite()].tolist() == pytest.approx(scores[i], rel=1e-9)


# ---------------------------------------------------------------- on every engine, and wherever a run stops
def experiment(rule: MemoryRule, **changes: Any) -> Experiment:
    base = Experiment(
        task=Task(data=Blobs(features=5, classes=3), model=Logistic()),
        split=Dirichlet(1.0),
        clients=8,
        byzantine=2,
        attack=SignFlip(),
        rule=rule,
        method=FedSGD(lr=0.2),
        batches=Full(),
        cohort=6,
        rounds=8,
        evaluate_every=1,
    )
    return replace(base, **changes)


def same(a: Result, b: Result, tolerance: float = 0.0) -> bool:
    return all(float((a.model[name] - v).abs().max()) <= tolerance for name, v in b.model.items())


RULES = [FoolsGold("mean"), FLDetector(window=2)]
every = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


@every
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cohort": None, "method": ByzClip21SGD2M(lr=0.2, tau=1.0)},
        {"method": FedAvg(lr=0.1, local_steps=2)},
    ],
    ids=["FedSGD", "server memory", "FedAvg"],
)
def test_every_engine_remembers_alike(rule: MemoryRule, changes: dict[str, Any]) -> None:
    e = experiment(rule, **changes)
    loop, vector, grid = (run(e, engine=engine) for engine in ("loop", "vector", "grid"))
    assert same(loop, grid)
    assert same(loop, vector, 1e-5)
    assert not same(loop, run(replace(e, rule=rule.inner)))
    assert loop.frame["byzantine_weight"].between(0, 1).all()


@every
def test_a_run_with_memory_goes_on_to_the_bit(rule: MemoryRule, tmp_path: Path) -> None:
    def interrupt(round: int, _: object) -> None:
        if round == 5:
            raise KeyboardInterrupt

    e = experiment(rule)
    with pytest.raises(KeyboardInterrupt):
        run(e, out=tmp_path, progress=interrupt)
    assert same(run(e), run(e, out=tmp_path, resume=True))


@every
def test_a_strategy_of_flower_remembers_alike(rule: MemoryRule) -> None:
    e = experiment(rule)
    strategy, fed = MethodStrategy(e), Federation(e)
    grid = InProcessGrid(client_app(Simulated(lambda order: fed)), e.clients)
    strategy.start(grid, strategy.initial_arrays, e.rounds)
    model = run(e, engine="loop").model
    whole = torch.cat([value.flatten() for value in model.values()])
    assert torch.equal(torch.from_numpy(strategy._arrays["x"].numpy()), whole)


@every
def test_an_adaptive_attack_asks_the_rule_with_its_memory(rule: MemoryRule) -> None:
    e = experiment(rule, attack=Adaptive(ALIE()), knowledge=("own", "honest", "rule"))
    loop, vector = (run(e, engine=engine) for engine in ("loop", "vector"))
    assert same(loop, vector, 1e-4)


def test_what_the_adversary_tries_is_not_remembered() -> None:
    rule = FoolsGold()
    e = experiment(rule, attack=Adaptive(IPM()), knowledge=("own", "honest", "rule"), cohort=None)
    fed = Federation(e)
    server, ids = Server.start(fed), np.arange(8)
    _, messages = get("loop")(fed, {}, server.told(e.method), 0, ids)
    after, seen = finish(fed, server, Messages(messages.rows.clone()), ids, 0)
    torch.testing.assert_close(after.recall["own"]["history"], seen.rows)
    assert not server.recall["own"]["history"].any()


def test_a_robust_strategy_keeps_what_it_knows_of_each_node() -> None:
    """Against the rule on the histories of the nodes that answered, round by round; two of seven are one."""
    sent: dict[int, list[np.ndarray]] = {i: [] for i in range(7)}
    client, rng = ClientApp(), np.random.default_rng(0)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        moved = np.float32([1, -1, 1, -1]) if i > 4 else rng.normal(size=4).astype(np.float32)
        sent[i].append(moved)
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + moved)})
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    strategy = RobustStrategy(FoolsGold("mean"), 2, fraction_train=0.6)
    grid, w = InProcessGrid(client, 7), np.zeros(4, np.float32)
    truth: dict[int, np.ndarray] = {}
    for t in range(1, 6):
        for rows in sent.values():
            rows.clear()
        asked = strategy.configure_train(t, ArrayRecord({"w": Array(w)}), ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(t, grid.send_and_receive(asked))
        ids = [i for i in sent if sent[i]]
        for i in ids:
            truth[i] = truth.get(i, 0) + sent[i][0]
        weights = fools_gold(np.array([truth[i] for i in ids], np.float64))
        move = weights @ np.array([sent[i][0] for i in ids]) / weights.sum()
        assert arrays is not None
        np.testing.assert_allclose(arrays["w"].numpy() - w, move, rtol=1e-3, atol=1e-5)
        w = arrays["w"].numpy()
    assert len(truth) > len(ids)
    strategy.configure_train(1, ArrayRecord({"w": Array(w)}), ConfigRecord(), grid)
    assert not strategy._recall
    with pytest.raises(Invalid, match="FoolsGold remembers whole updates"):
        RobustStrategy(FoolsGold(), per_array=True)


def test_among_peers_nobody_remembers() -> None:
    with pytest.raises(Invalid, match="FoolsGold: remembers clients at a server; among peers"):
        experiment(FoolsGold(), method=MoNNA(lr=0.1), cohort=None)


def test_a_rule_of_one_s_own_may_remember() -> None:
    @dataclass(frozen=True)
    class Tired(MemoryRule):
        """Counts a client half as much each time that it comes."""

        @property
        def inner(self) -> Median:
            return Median()

        def own(self, row: Tensor) -> State:
            return {"times": row.new_zeros(())}

        def remember(self, own, shared, rows, *, x, previous):
            return {"times": own["times"] + 1}, shared, 0.5 ** own["times"]

    e = experiment(Tired(), split=IID(), batches=Fixed(5), task=Task(data=Blobs(), model=MLP(hidden=3)))
    assert same(run(e, engine="loop"), run(e, engine="vector"), 1e-5)
