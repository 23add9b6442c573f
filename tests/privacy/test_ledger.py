"""The ledger: who pays for which rounds, when the budget stops a run, and that a resumed run goes no further."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.accounting import gaussian_epsilon
from fedsim.batches import Batches, Epochs, Fixed, Full, Poisson
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID, QuantitySkew
from fedsim.federation import Federation
from fedsim.models import Logistic
from fedsim.privacy import CentralDP, ExampleDP, MessageDP
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import Plan
from fedsim.runner import run
from fedsim.schedule import InverseTime
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task


def plan(rounds: int, n: int, batches: Batches = Full()) -> Plan:
    return Plan(frozenset({tuple(range(rounds))}), 1, batches, 100, n, 1.0, 10)


def charged(ledger: Ledger, cohorts) -> Ledger:
    for cohort in cohorts:
        ledger = ledger.charge(np.array(sorted(cohort), np.int64))
    return ledger


COHORTS = st.lists(st.sets(st.integers(0, 5)), max_size=30)


@given(COHORTS, st.floats(0.5, 20))
def test_the_ledger_says_what_the_client_pays_that_pays_most(cohorts, z):
    ledger = charged(Ledger.open(MessageDP(noise=z), plan(30, 6)), cohorts)
    counts = [sum(client in cohort for cohort in cohorts) for client in range(6)]
    assert ledger.epsilon == pytest.approx(max(gaussian_epsilon(sqrt(count) / z, 1e-5) for count in counts))


FADING = InverseTime(1.0, 5)
PRIVACIES = {
    "message": (MessageDP(noise=2.0), Full()),
    "message, schedule": (MessageDP(noise=2.0, schedule=FADING), Full()),
    "example": (ExampleDP(clip=1.0, noise=2.0), Fixed(10)),
    "example, schedule": (ExampleDP(clip=1.0, noise=2.0, schedule=FADING), Poisson(size=10)),
    "epochs": (ExampleDP(clip=1.0, noise=2.0), Epochs(30)),
    "central": (CentralDP(noise=2.0), Full()),
}


@pytest.mark.parametrize("name", PRIVACIES)
@given(cohorts=COHORTS)
@settings(max_examples=10)
def test_clients_who_pay_alike_are_counted_once_and_nobody_is_left_out(name, cohorts):
    privacy, batches = PRIVACIES[name]
    ledger = charged(Ledger.open(privacy, plan(30, 6, batches)), cohorts)
    alone = [
        tuple(t for t, cohort in enumerate(cohorts) if client in cohort or privacy.all_pay)
        for client in range(6)
    ]
    assert ledger.epsilon == max(privacy.spent(ledger.plan, frozenset({rounds})) for rounds in alone)


@pytest.mark.parametrize("name", PRIVACIES)
@given(cohorts=COHORTS)
@settings(max_examples=10)
def test_a_ledger_survives_being_written(name, cohorts):
    privacy, batches = PRIVACIES[name]
    opened = Ledger.open(privacy, plan(30, 6, batches))
    ledger = charged(opened, cohorts)
    read = opened.load(ledger.dump())
    assert len(read.paid) == len(cohorts)
    for ours, truth in zip(read.paid, ledger.paid, strict=True):
        assert (ours is None) == (truth is None)
        assert ours is None or ours.tolist() == truth.tolist()


def test_clients_beyond_the_honest_ones_are_not_charged():
    ledger = Ledger.open(MessageDP(noise=1.0), plan(3, 2)).charge(np.array([5, 6]))
    assert ledger.epsilon == 0


def test_a_cohort_without_honest_clients_costs_nothing():
    ledger = Ledger.open(MessageDP(noise=1.0, stop_at_epsilon=5.0), plan(3, 2)).charge(np.array([0]))
    assert ledger.affords(np.array([7]))
    assert ledger.charge(np.array([7])).epsilon == ledger.epsilon


def test_a_statement_tells_who_took_part_how_often():
    ledger = Ledger.open(MessageDP(noise=9.0), plan(3, 2)).charge(np.array([0, 1])).charge(np.array([1]))
    assert ledger.statement().endswith("; clients took part in 1 to 2 of 2 rounds")
    assert "took part" not in ledger.charge(np.array([0])).statement()


@pytest.mark.parametrize("limit", [0.9, 2.0, 3.7])
def test_the_budget_affords_exactly_the_rounds_that_fit(limit):
    private = MessageDP(noise=6.0, stop_at_epsilon=limit)
    ledger, everyone = Ledger.open(private, plan(100, 3)), np.arange(3)
    while ledger.affords(everyone):
        ledger = ledger.charge(everyone)
    spent = len(ledger.paid)
    assert gaussian_epsilon(sqrt(spent) / 6.0, 1e-5) <= limit < gaussian_epsilon(sqrt(spent + 1) / 6.0, 1e-5)


def test_a_budget_for_no_round_at_all_is_refused():
    with pytest.raises(Invalid, match=r"stop_at_epsilon = 0\.1: the first round alone costs 4\.377"):
        Ledger.open(MessageDP(noise=1.0, stop_at_epsilon=0.1), plan(9, 3))


# ---------------------------------------------------------------- in a run
def experiment(**changes) -> Experiment:
    base = Experiment(
        task=Task(data=Blobs(), model=Logistic()),
        split=IID(),
        clients=6,
        rule=Mean(),
        method=FedSGD(lr=0.5),
        privacy=ExampleDP(clip=1.0, noise=20.0, delta=1e-3),
        rounds=40,
        evaluate_every=10,
    )
    return replace(base, **changes)


def test_a_run_stops_before_it_exceeds_its_budget_and_a_resumed_one_stays_stopped(tmp_path):
    limit = 0.7
    stopping = experiment(privacy=ExampleDP(clip=1.0, noise=20.0, delta=1e-3, stop_at_epsilon=limit))
    result = run(stopping, out=tmp_path)
    done = result.summary["rounds"]
    assert 0 < done < 40
    assert result.summary["epsilon"] == gaussian_epsilon(sqrt(done) / 20, 1e-3) <= limit
    assert gaussian_epsilon(sqrt(done + 1) / 20, 1e-3) > limit
    assert f"stopped after round {done}: one more would exceed stop_at_epsilon = {limit}" in result.notes
    again = run(stopping, out=tmp_path, resume=True)
    assert again.summary["rounds"] == done
    assert len(again.frame) == len(result.frame)


def test_an_interrupted_run_remembers_what_it_has_spent(tmp_path):
    def interrupt(round, metrics):
        if round == 15:
            raise KeyboardInterrupt

    private = ExampleDP(clip=1.0, noise=20.0, delta=1e-3, stop_at_epsilon=0.7)
    whole = run(experiment(privacy=private, cohort=3))
    with pytest.raises(KeyboardInterrupt):
        run(experiment(privacy=private, cohort=3), out=tmp_path, progress=interrupt)
    resumed = run(experiment(privacy=private, cohort=3), out=tmp_path, resume=True)
    assert resumed.summary["rounds"] == whole.summary["rounds"]
    assert resumed.summary["epsilon"] == whole.summary["epsilon"]
    assert resumed.notes == whole.notes


def test_a_cohort_pays_only_for_its_rounds_and_gets_less_noise():
    fed = Federation(experiment(privacy=ExampleDP(clip=1.0, epsilon=1.0, delta=1e-3), cohort=2))
    counts = np.zeros(6, int)
    for t in range(40):
        counts[fed.cohort(t)] += 1
    assert counts.max() < 40
    z = fed.ledger.multiplier
    assert gaussian_epsilon(sqrt(counts.max()) / z, 1e-3) == pytest.approx(1.0)
    result = run(experiment(privacy=ExampleDP(clip=1.0, epsilon=1.0, delta=1e-3), cohort=2))
    assert result.summary["epsilon"] == pytest.approx(1.0)
    assert result.notes[0].endswith(f"; clients took part in {counts.min()} to {counts.max()} of 40 rounds")


@pytest.mark.parametrize("seed", [0, 169])
def test_with_epochs_every_client_pays_at_most_what_the_ledger_says(seed):
    """Each by its own rounds and size: with seed 169 a larger client meets two epochs, the smallest would meet one."""
    e = experiment(
        task=Task(data=Blobs(train=2000), model=Logistic()),
        split=QuantitySkew(2.0),
        clients=3,
        cohort=1,
        batches=Epochs(70),
        privacy=ExampleDP(clip=1.0, noise=1.0, delta=1e-4),
        rounds=6,
        seed=seed,
    )
    fed, took = Federation(e), {i: [] for i in range(3)}
    ledger = fed.ledger
    for t in range(e.rounds):
        took[int(fed.cohort(t)[0])].append(t)
        ledger = ledger.charge(fed.cohort(t))
    own = [replace(ledger.plan, smallest=int(m), others=()) for m in fed.sizes]
    paid = [e.privacy.spent(own[i], frozenset({tuple(rounds)})) for i, rounds in took.items() if rounds]
    assert ledger.epsilon >= max(paid) * (1 - 1e-9)
    epsilon = replace(e.privacy, noise=None, epsilon=1.0)
    z = epsilon.multiplier(ledger.plan)
    assert all(
        replace(e.privacy, noise=z).spent(own[i], frozenset({tuple(r)})) <= 1 + 1e-6 for i, r in took.items()
    )
