"""What a single client pays: by its own number of examples, on its device as in the simulation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from fedsim.accounting import ACCOUNTANTS, Release, gaussian_epsilon
from fedsim.batches import Batches, Epochs, Fixed, Full, Poisson
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.deploy.spent import Spent
from fedsim.federation import Federation
from fedsim.flower.order import Order
from fedsim.keys import Keys
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.privacy.plan import Plan
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task
from fedsim.types import Dataset, Split

EPOCHS = Epochs(10)


@dataclass(frozen=True)
class Sizes(Split):
    """One after the other."""

    sizes: tuple[int, ...] = (30, 29)

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[np.ndarray]:
        return np.split(np.arange(sum(self.sizes)), np.cumsum(self.sizes)[:-1])


def federation(batches: Batches = EPOCHS, sizes: tuple[int, ...] = (30, 29)) -> Federation:
    e = Experiment(
        task=Task(data=Blobs(train=sum(sizes)), model=Logistic()),
        method=FedSGD(lr=0.1),
        rule=Mean(),
        split=Sizes(sizes),
        batches=batches,
        clients=len(sizes),
        privacy=ExampleDP(clip=1.0, noise=2.5, delta=1e-3),
        rounds=20,
    )
    return Federation(e)


def order(fed: Federation, client: int, round: int) -> Order:
    e = fed.experiment
    return Order(
        experiment=e.to_json(),
        fingerprint=e.fingerprint,
        run="a",
        client=client,
        round=round,
        accepted=-1,
        derived=False,
    )


def answered(fed: Federation, client: int, *rounds: int) -> Spent:
    spent = Spent()
    for round in rounds:
        spent = spent.charge(order(fed, client, round), fed)
    return spent


def met(fed: Federation, client: int, *rounds: int) -> int:
    """How often these rounds show the example of a client that they show most: by drawing the batches."""
    times = np.zeros(fed.sizes[client], int)
    for round in rounds:
        index, weight = fed.experiment.batches.draw(
            fed.choice, round, np.array([client]), fed.sizes[[client]], 1
        )
        np.add.at(times, index[weight > 0], 1)
    return int(times.max())


def test_a_device_pays_for_its_own_epochs() -> None:
    """Rounds 2 and 3 are of two epochs to the device of 30 examples, and of one to that of 29."""
    fed = federation()
    assert [met(fed, client, 2, 3) for client in (0, 1)] == [2, 1]
    epsilons = [answered(fed, client, 2, 3).epsilon(1e-3) for client in (0, 1)]
    assert epsilons == pytest.approx([gaussian_epsilon(sqrt(k) / 2.5, 1e-3) for k in (2, 1)])


@pytest.mark.parametrize("sizes", [(30, 29), (29, 30), (10, 55, 23), (9, 40)])
def test_no_device_shows_an_example_more_often_than_it_pays_for(sizes: tuple[int, ...]) -> None:
    fed, rng = federation(sizes=sizes), np.random.default_rng(0)
    for _ in range(20):
        rounds = sorted(rng.choice(20, 4, replace=False).tolist())
        for client in range(len(sizes)):
            (entry,) = answered(fed, client, *rounds).entries.values()
            assert sum(release.times for release in entry.releases) >= met(fed, client, *rounds)


@pytest.mark.parametrize("batches", [Full(), Fixed(10), Epochs(10), Poisson(size=10)], ids=repr)
def test_who_does_not_know_its_size_pays_the_most_that_any_does(batches: Batches) -> None:
    fed = federation(batches)
    assert fed.ledger is not None
    plan, privacy = fed.ledger.plan, fed.ledger.privacy
    for rounds in ((2, 3), (0, 1), (5,)):
        known = [privacy.bill(plan, rounds, size) for size in (29, 30)]
        unknown = privacy.bill(plan, rounds)
        bounds = {name: a for name, a in ACCOUNTANTS.items() if {r.sampling for r in unknown} <= a.valid}
        for accountant in bounds.values():
            costs = [accountant.epsilon(paid, 1e-3) for paid in (*known, unknown)]
            assert costs[2] >= max(costs[:2]) * (1 - 1e-12)


def test_a_device_pays_by_the_chance_of_its_own_examples() -> None:
    fed = federation(Fixed(10), (20, 1000))
    (entry,) = answered(fed, 1, 0).entries.values()
    assert entry.releases == (Release(2.5, 1, "fixed", 0.01),)


def test_what_a_run_began_with_stays() -> None:
    """With other data, or another secret, examples would meet again what the ledger counts as one epoch."""
    fed = federation()
    spent = answered(fed, 0, 0)
    larger = federation(sizes=(31, 28))
    with pytest.raises(Invalid, match="began with another number of examples on this device"):
        spent.charge(replace(order(larger, 0, 1), fingerprint=fed.experiment.fingerprint), larger)
    fed.choice = Keys(7, 2)
    with pytest.raises(Invalid, match="another secret"):
        spent.charge(order(fed, 0, 1), fed)


def test_the_secret_of_a_run_outlives_the_devices_memory(tmp_path: Path) -> None:
    fed = federation()
    fed.choice = Keys(12345, 2)
    answered(fed, 0, 0).save(tmp_path / "ledger.json")
    read = Spent.load(tmp_path / "ledger.json")
    assert read.secret(order(fed, 0, 1)) == 12345
    assert read == answered(fed, 0, 0)
    assert Spent().secret(order(fed, 0, 0)) is None


def test_plans_of_a_size_know_no_other() -> None:
    plan = Plan(frozenset({(0,)}), 1, Epochs(10), 29, 2, 1.0, 10, (30,))
    assert [each.smallest for each in plan.by_size()] == [29, 30]
    assert all(each.others == () for each in plan.by_size())
