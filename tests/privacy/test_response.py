"""Randomized response on sign bits: its accounting against sums over all outcomes, and the flips that are made."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import exp, inf, log

import numpy as np
import pytest
import torch

from fedsim import engines
from fedsim.accounting import gaussian_epsilon
from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.federation import Federation
from fedsim.method import Method
from fedsim.models import MLP
from fedsim.privacy import MessageDP, RandomizedResponse
from fedsim.privacy.binomial import response_chance, response_delta, response_epsilon, unit
from fedsim.round import Server, answer
from fedsim.runner import run
from fedsim.schedule import Power
from fedsim.spec import Experiment
from fedsim.strategies import EF21, HeavyTailSign, MajorityVote, SignSGD, Signum
from fedsim.task import Task


def experiment(privacy: RandomizedResponse, method: Method | None = None, **changes: object) -> Experiment:
    base = Experiment(
        task=Task(data=Blobs(), model=MLP(hidden=6)),
        split=Dirichlet(1.0),
        clients=5,
        rule=MajorityVote(),
        method=method or Signum(lr=0.01),
        privacy=privacy,
        batches=Fixed(5),
        rounds=4,
        evaluate_every=2,
    )
    return replace(base, **changes)


def over_all_outcomes(epsilon: float, one: list[float], other: list[float]) -> float:
    """sup over sets of P - e^epsilon Q, by adding up all outcomes; given are the chances of a plus at each bit."""
    total = 0.0
    for bits in product((0, 1), repeat=len(one)):
        p, q = (
            np.prod([c if bit else 1 - c for c, bit in zip(of, bits, strict=True)]) for of in (one, other)
        )
        total += max(0.0, p - exp(epsilon) * q)
    return total


@pytest.mark.parametrize("p", [0.05, 0.3, 0.49])
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_delta_is_the_sum_over_all_outcomes(k: int, p: float) -> None:
    for epsilon in (0.0, 0.3 * unit(p), unit(p), 1.7 * unit(p), (k - 0.5) * unit(p), k * unit(p)):
        want = over_all_outcomes(epsilon, [1 - p] * k, [p] * k)
        assert response_delta(epsilon, k, p) == pytest.approx(want, rel=1e-9, abs=1e-15)


def test_one_bit_in_closed_form() -> None:
    """delta = 1 - p - e^epsilon p, so epsilon = ln((1 - p - delta) / p); at delta = 0 it is ln((1 - p) / p)."""
    for p, delta in ((0.1, 0.05), (0.25, 0.1), (0.4, 0.01)):
        assert response_epsilon(1, p, delta) == pytest.approx(log((1 - p - delta) / p), rel=1e-8)
    assert response_epsilon(1, 0.25, 1e-300) == pytest.approx(log(3), rel=1e-9)
    assert response_epsilon(7, 0.25, 1e-300) == pytest.approx(7 * log(3), rel=1e-9)
    assert response_epsilon(3, 0.0, 1e-5) == inf
    assert response_epsilon(0, 0.25, 1e-5) == 0


@pytest.mark.parametrize("p", [0.1, 0.45])
def test_no_other_pair_of_messages_is_worse(p: float) -> None:
    """Bits that agree, and zeros, which are sent as either: every pair of messages of three coordinates."""
    chance = {1: 1 - p, 0: 0.5, -1: p}
    for epsilon in (0.1 * unit(p), unit(p), 2 * unit(p)):
        worst = response_delta(epsilon, 3, p)
        for one, other in product(product(chance, repeat=3), repeat=2):
            pair = [[chance[sign] for sign in message] for message in (one, other)]
            assert over_all_outcomes(epsilon, *pair) <= worst + 1e-15


@pytest.mark.parametrize(("k", "p"), [(1, 0.2), (30, 0.4), (100_000, 0.495), (10**7, 0.4995)])
def test_the_gaussian_whose_sign_it_is_bounds_it(k: int, p: float) -> None:
    from statistics import NormalDist

    exact, delta = response_epsilon(k, p, 1e-5), 1e-5
    bound = gaussian_epsilon(-2 * NormalDist().inv_cdf(p) * k**0.5, delta)
    assert exact <= bound * (1 + 1e-9)
    if k > 1000:  # there the central limit theorem leaves pi / 2 between the two variances
        assert bound / exact == pytest.approx((np.pi / 2) ** 0.5, rel=0.25)


@pytest.mark.parametrize(("k", "epsilon", "delta"), [(1, 1.0, 1e-5), (1000, 4.0, 1e-5), (10**6, 8.0, 1e-6)])
def test_the_least_chance_keeps_the_budget_and_no_less_does(k: int, epsilon: float, delta: float) -> None:
    p = response_chance(k, epsilon, delta)
    assert response_epsilon(k, p, delta) <= epsilon
    assert response_epsilon(k, p * (1 - 1e-6), delta) > epsilon


def test_a_budget_is_met_and_the_ledger_says_what_was_spent() -> None:
    e = experiment(RandomizedResponse(epsilon=30.0, delta=1e-5))
    fed, result = Federation(e), run(e)
    p = fed.response.flips(fed.ledger.plan, 0)
    assert p * 2**24 == int(p * 2**24)
    spent = [response_epsilon(fed.width * t, p, 1e-5) for t in (2, 4)]
    assert result.frame["epsilon"].tolist() == pytest.approx(spent, rel=1e-12)
    assert 29.9 < spent[-1] <= 30.0
    assert "exact binomial composition" in result.notes[0]
    assert "unit: one example, or all that a client has, replace-one" in result.notes[0]


def test_a_client_pays_for_its_own_rounds_and_a_limit_ends_the_run() -> None:
    e = experiment(RandomizedResponse(noise=0.2), cohort=2, rounds=6, evaluate_every=1)
    fed = Federation(e)
    times = np.zeros(5, int)
    for t, epsilon in enumerate(run(e).frame["epsilon"]):
        times[fed.cohort(t)] += 1
        p = fed.response.flips(fed.ledger.plan, 0)
        assert epsilon == pytest.approx(response_epsilon(fed.width * times.max(), p, 1e-5))
    two = response_epsilon(fed.width * 2, p, 1e-5)
    stopped = run(replace(e, cohort=None, privacy=replace(e.privacy, stop_at_epsilon=two)))
    assert stopped.frame["round"].iloc[-1] == 2


@pytest.mark.parametrize("method", [SignSGD(0.01), Signum(0.01), HeavyTailSign(0.01, samples=2)], ids=repr)
def test_flips_are_made_with_their_chance_on_every_engine(method: Method) -> None:
    e = experiment(RandomizedResponse(noise=0.05), method)
    fed, bare = Federation(e), Federation(replace(e, privacy=None))
    ids, told = np.arange(5), Server.start(fed).told(method)
    rows = {
        name: engines.get(name)(f, f.client_states(), told, 1, ids)[1].rows
        for name, f in {"loop": fed, "vector": fed, "grid": fed}.items()
    }
    assert torch.equal(rows["vector"], rows["loop"])
    assert torch.equal(rows["grid"], rows["loop"])
    assert set(rows["loop"].unique().tolist()) == {-1.0, 1.0}
    assert fed.uplink_bits(1) == fed.width  # no zeros are left, so a bit a coordinate
    honest = engines.get("loop")(bare, bare.client_states(), told, 1, ids)[1].rows
    p, live = fed.response.flips(fed.ledger.plan, 1), honest != 0
    flipped = (rows["loop"] != honest)[live].double().mean()
    assert float(flipped) == pytest.approx(p, abs=5 * (p * (1 - p) / int(live.sum())) ** 0.5)


def test_a_schedule_is_accounted_by_the_gaussian() -> None:
    e = experiment(RandomizedResponse(noise=0.3, schedule=Power(1.0, 0.5)))
    fed = Federation(e)
    flips = [fed.response.flips(fed.ledger.plan, t) for t in range(4)]
    assert flips == sorted(flips, reverse=True)
    assert "exact Gaussian composition" in run(e).notes[0]
    same = replace(e, method=SignSGD(0.01), privacy=RandomizedResponse(noise=0.3))
    assert Federation(same).ledger.privacy.spent(fed.ledger.plan, frozenset({(0,)})) < (
        fed.ledger.privacy.spent(fed.ledger.plan, frozenset({(0,)}))
    )


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(Invalid, match="does not send signs"):
        experiment(RandomizedResponse(noise=0.3), EF21())
    with pytest.raises(Invalid, match=r"allowed is from 9\.54e-07 to below 1/2"):
        Federation(experiment(RandomizedResponse(noise=0.001)))
    with pytest.raises(Invalid, match="without a bound"):
        experiment(MessageDP(noise=0.3))
    weak = Federation(experiment(RandomizedResponse(epsilon=1.0))).ledger.warnings()
    assert any("deviations from a tie: expect little learning" in line for line in weak)


def test_a_method_must_flip_what_is_booked_as_flipped() -> None:
    class Forgetful(SignSGD):
        def client_step(self, state, x, batch, env):  # type: ignore[no-untyped-def]
            return state, env.compress(env.first_gradient().sign())

    class Twice(SignSGD):
        def client_step(self, state, x, batch, env):  # type: ignore[no-untyped-def]
            signs = env.first_gradient().sign()
            return state, env.compress(env.respond(signs) + 0 * env.respond(signs))

    for method, reason in ((Forgetful(0.1), "without env.respond"), (Twice(0.1), "twice in a round")):
        fed = Federation(experiment(RandomizedResponse(noise=0.3), method))
        with pytest.raises(Invalid, match=reason):
            answer(fed, 0, fed.client_state(), Server.start(fed).told(method), 0)
        with pytest.raises(Invalid, match=reason):
            engines.get("vector")(fed, fed.client_states(), Server.start(fed).told(method), 0, np.arange(5))
