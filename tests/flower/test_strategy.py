"""Methods of fedsim as a Flower Strategy, and attacks around any app's Grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from test_messages import small
from test_robust_strategy import FAULTS, app, good, initial, play

from fedsim.attacks import ALIE, IPM, LabelFlip
from fedsim.attacks.flower import Adversary
from fedsim.check import Invalid
from fedsim.federation import Federation
from fedsim.flower.client import Simulated, client_app
from fedsim.flower.grid import FIRST_NODE, InProcessGrid
from fedsim.flower.order import Order
from fedsim.flower.strategy import MethodStrategy
from fedsim.layout import flatten
from fedsim.messages import All
from fedsim.privacy import ExampleDP
from fedsim.runner import run
from fedsim.strategies import EF21, NNA, SCAFFOLD, JaguarSignSGD, Median, MoNNA
from fedsim.strategies.flower import RobustStrategy
from fedsim.strategies.methods.estimators import HM
from fedsim.types import View


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": SCAFFOLD(lr=0.2), "privacy": None},  # tells two things, messages of another width
        {"method": JaguarSignSGD(lr=0.1), "privacy": None},  # losses, and numbers that all draw alike
        {"method": EF21(HM(), All()), "privacy": None},  # Hessian products
    ],
    ids=["gradients", "tells", "losses", "products"],
)
def test_a_method_as_a_strategy_is_the_run(changes: dict[str, Any]) -> None:
    e = small(clients=6, byzantine=1, attack=IPM(2.0), cohort=5, **changes)
    strategy = MethodStrategy(e)
    grid = InProcessGrid(client_app(Simulated(lambda order: strategy.fed)), e.clients)
    result = strategy.start(grid, strategy.initial_arrays, num_rounds=e.rounds)
    truth = run(e, engine="loop", device="cpu")
    model = torch.cat([value.reshape(-1) for value in truth.model.values()])
    assert result.arrays is not None
    assert torch.equal(torch.tensor(result.arrays["x"].numpy()), model)
    assert [m["answered"] for m in result.train_metrics_clientapp.values()] == [
        int((strategy.fed.cohort(t) < 5).sum()) for t in range(e.rounds)
    ]
    assert flatten(strategy.fed.model).numel() == len(model)


def counted(asked: list[int], strategy: MethodStrategy) -> Callable[[Order], Federation]:
    def federation(order: Order) -> Federation:
        asked.append(order.round)
        return strategy.fed

    return federation


@pytest.mark.parametrize("started", [1, 3], ids=["at once", "in parts"])
def test_a_strategy_ends_where_the_run_does(started: int) -> None:
    """By its privacy budget, which a ledger keeps as in a run, or with its rounds, however many are asked for."""
    private = ExampleDP(clip=1.0, noise=2.0, stop_at_epsilon=0.1, delta=1e-3)
    for e in (small(privacy=private, rounds=50), small(rounds=3)):
        strategy = MethodStrategy(e)
        asked: list[int] = []
        grid = InProcessGrid(client_app(Simulated(counted(asked, strategy))), e.clients)
        for _ in range(started):
            result = strategy.start(grid, strategy.initial_arrays, num_rounds=60 // started)
        truth = run(e, engine="loop", device="cpu")
        model = torch.cat([value.reshape(-1) for value in truth.model.values()])
        assert torch.equal(torch.tensor(result.arrays["x"].numpy()), model)
        assert max(asked) + 1 == truth.summary["rounds"] < 50
        assert strategy.notes == truth.notes
        if e.privacy is private:
            assert "stop_at_epsilon" in strategy.notes[1]


def test_the_metrics_of_a_strategy_hold_what_was_spent() -> None:
    e = small(privacy=ExampleDP(clip=1.0, noise=2.0, delta=1e-3), rounds=2, evaluate_every=1)
    strategy = MethodStrategy(e)
    grid = InProcessGrid(client_app(Simulated(lambda order: strategy.fed)), e.clients)
    metrics = strategy.start(grid, strategy.initial_arrays, num_rounds=2).train_metrics_clientapp
    assert [m["epsilon"] for m in metrics.values()] == list(run(e, device="cpu").frame["epsilon"])


def test_a_strategy_among_peers_ends_with_the_first_node_s_model() -> None:
    e = small(method=MoNNA(lr=0.5), rule=NNA(), privacy=None)
    strategy = MethodStrategy(e)
    grid = InProcessGrid(client_app(Simulated(lambda order: strategy.fed)), e.clients)
    result = strategy.start(grid, strategy.initial_arrays, num_rounds=e.rounds)
    assert result.arrays is not None
    model = torch.cat([v.reshape(-1) for v in run(e, engine="loop", device="cpu").model.values()])
    assert torch.equal(torch.tensor(result.arrays["x"].numpy()), model)


def forged(attack: object, nodes: object, strategy: object, rounds: int = 1) -> np.ndarray:
    grid = Adversary(InProcessGrid(app(None, faulty=()), 7), attack, nodes)  # type: ignore[arg-type]
    result = strategy.start(grid, initial(), num_rounds=rounds)  # type: ignore[attr-defined]
    return np.asarray(result.arrays["w"].numpy())


def test_an_adversary_forges_what_its_attack_says() -> None:
    honest = torch.stack([torch.full((3,), 1 + 0.01 * i) for i in range(5)])
    own = torch.stack([torch.full((3,), 1 + 0.01 * i) for i in (5, 6)])
    for attack in (ALIE(), IPM(10.0)):
        view = View(7, 2, 0, torch.zeros(3), torch.Generator(), own, honest)
        truth = torch.cat([honest, attack.forge(view)])
        mean = forged(attack, 2, FedAvg(fraction_evaluate=0.0))
        np.testing.assert_allclose(mean, truth.mean(0), rtol=1e-5)
        median = forged(attack, [FIRST_NODE + 5, FIRST_NODE + 6], RobustStrategy(Median(), 2))
        np.testing.assert_allclose(median, truth.median(0).values, rtol=1e-5)


def test_an_adversary_that_speaks_for_nobody_changes_nothing() -> None:
    for nodes in (0, 7):
        w = forged(IPM(10.0), nodes, RobustStrategy(Median(), 1), rounds=2)
        np.testing.assert_array_equal(w, play(RobustStrategy(Median(), 1), app(None, faulty=())))


def test_an_adversary_leaves_broken_replies_to_themselves() -> None:
    for fault in ("raises", "another name", "no record", "two records", "lying header"):
        strategy = RobustStrategy(Median(), 2)
        grid = Adversary(InProcessGrid(app(FAULTS[fault]), 7), IPM(10.0), 1)
        result = strategy.start(grid, initial(), num_rounds=1)
        assert result.arrays is not None
        assert [each.node for each in strategy.set_aside if each.round == 1][:1] == [FIRST_NODE]


def test_an_adversary_leaves_out_a_reply_unlike_the_others() -> None:
    """One client's counter is a float, as the server's is; the others send whole numbers."""

    def odd(w: np.ndarray) -> RecordDict:
        arrays = ArrayRecord({"w": Array(w + 1), "steps": Array(np.array(3.0))})
        return RecordDict({"arrays": arrays, "metrics": good(w)["metrics"]})

    arrays = ArrayRecord({"w": Array(np.zeros(3, np.float32)), "steps": Array(np.array(0.0))})
    grid = Adversary(InProcessGrid(app(odd, faulty=(2,)), 7), ALIE(), 2)
    result = FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=1)
    assert result.arrays is not None
    assert np.isfinite(result.arrays["w"].numpy()).all()


def test_attacks_that_a_grid_cannot_carry_out() -> None:
    with pytest.raises(Invalid, match="poisons data"):
        Adversary(InProcessGrid(app(None), 3), LabelFlip(), 1)
