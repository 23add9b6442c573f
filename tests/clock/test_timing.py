"""Rounds on a clock: their length, who is cut, who is carried over, against plain code; resumed to the bit."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from resuming import resumed_to_the_bit
from torch import Tensor

from fedsim import Invalid, run
from fedsim.attacks import IPM, SignFlip
from fedsim.batches import Fixed
from fedsim.clock import Bandwidth, Clock, Constant, Dropouts, Exponential, Load, LogNormal
from fedsim.config import codec
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.messages import TopK
from fedsim.models import Logistic
from fedsim.privacy import MessageDP
from fedsim.round import answer
from fedsim.runner import Result
from fedsim.spec import Experiment
from fedsim.strategies import (
    EF21,
    ByzClip21SGD2M,
    FedAvg,
    FedSGD,
    HeavyBall,
    Mean,
    Median,
    MoNNA,
    TrimmedMean,
)
from fedsim.strategies.methods.ef21 import Plain
from fedsim.strategies.methods.estimators import HM, MVR, Estimator, LastGradient
from fedsim.task import Task

PACE = LogNormal(1.0, 0.6, spread=0.3)
BASE = Experiment(
    task=Task(data=Blobs(), model=Logistic()),
    split=IID(),
    clients=8,
    rule=Mean(),
    method=FedSGD(lr=0.4),
    batches=Fixed(5),
    rounds=9,
    evaluate_every=1,
    clock=Clock(PACE),
)
CUT = replace(BASE, clock=Clock(PACE, deadline=1.3))
CARRIED = replace(BASE, clock=Clock(PACE, deadline=0.8, late="carried"))


def model(result: Result) -> Tensor:
    return torch.cat([value.flatten() for value in result.model.values()])


def test_a_round_lasts_as_long_as_its_slowest_member_and_costs_nothing_else() -> None:
    fed, timed, plain = Federation(BASE), run(BASE), run(replace(BASE, clock=None))
    now, ends = 0.0, []
    for t in range(BASE.rounds):
        now += max(PACE.gradient_seconds(fed.keys, i, t, now) for i in range(8))
        ends.append(now)
    np.testing.assert_allclose(timed.frame["simulated_seconds"], ends)
    assert torch.equal(model(timed), model(plain))
    assert "simulated_seconds" not in plain.frame


def test_local_steps_and_bits_take_their_time() -> None:
    clock = Clock(Constant(2.0), Bandwidth(up=1000.0, down=8000.0, latency=0.5))
    e = replace(BASE, method=FedAvg(lr=0.1, local_steps=3), clock=clock, rounds=2)
    bits = 32 * Federation(e).width
    length = 0.5 + bits / 8000 + 3 * 2.0 + 0.5 + bits / 1000
    assert run(e).frame["simulated_seconds"].tolist() == pytest.approx([length, 2 * length])


@pytest.mark.parametrize("engine", ["loop", "vector", "grid"])
def test_a_deadline_cuts_off_who_is_late(engine: str) -> None:
    """Plain code: the mean gradient of those who took at most 1.3 seconds."""
    fed = Federation(CUT)
    x, now, missing = fed.x0, 0.0, 0
    for t in range(CUT.rounds):
        took = np.array([PACE.gradient_seconds(fed.keys, i, t, now) for i in range(8)])
        there = np.flatnonzero(took <= 1.3)
        missing += 8 - len(there)
        x = x - 0.4 * torch.stack([answer(fed, i, {}, {"x": x}, t).message for i in there]).mean(0)
        now += min(1.3, took.max())
    found = run(CUT, engine=engine)
    assert 8 < missing < 40
    torch.testing.assert_close(model(found), x)
    assert found.frame["simulated_seconds"].iloc[-1] == pytest.approx(now)


def test_late_messages_are_carried_over() -> None:
    """Plain code: a client works on at the model that it has, and is in the first round that ends after it is done."""
    fed = Federation(CARRIED)
    x, now, work, carried = fed.x0, 0.0, dict[int, tuple[float, Tensor]](), 0
    for t in range(CARRIED.rounds):
        free = [i for i in range(8) if i not in work]
        done = {i: now + PACE.gradient_seconds(fed.keys, i, t, now) for i in free}
        end = min(now + 0.8, max(done.values())) if done else min(when for when, _ in work.values())
        carried += len(work)
        work |= {i: (done[i], answer(fed, i, {}, {"x": x}, t).message) for i in free}
        there = sorted(i for i, (when, _) in work.items() if when <= end)
        rows = [work.pop(i)[1] for i in there]
        if rows:
            x = x - 0.4 * torch.stack(rows).mean(0)
        now = end
    found = run(CARRIED)
    assert carried > 15
    torch.testing.assert_close(model(found), x)
    assert found.frame["simulated_seconds"].iloc[-1] == pytest.approx(now)


@pytest.mark.parametrize("engine", ["loop", "grid"])
def test_who_works_on_holds_what_it_was_told_when_it_was_asked(engine: str) -> None:
    """Plain code: a late client misses the differences since the round in which it was asked, not its answer's."""
    down = TopK(0.05)
    e = replace(CARRIED, method=EF21(LastGradient(), TopK(0.3), Plain(0.4), down=down), rounds=12)
    fed = Federation(e)
    d, one = fed.width, down.bits(fed.layout)
    now, told, work, held, aways = 0.0, 0.0, dict[int, float](), [-1] * 8, set[int]()
    for t in range(e.rounds):
        free = [i for i in range(8) if i not in work]
        done = {i: now + PACE.gradient_seconds(fed.keys, i, t, now) for i in free}
        end = min(now + 0.8, max(done.values())) if done else min(work.values())
        away = [t - held[i] for i in free if held[i] >= 0]
        whole = [32 * d] * (len(free) - len(away))
        bits = [*whole, *(32 * d if gone * one >= 32 * d else gone * one for gone in away)]
        told += sum(bits) / len(free) if free else 0
        aways |= set(away)
        work |= done
        there = [i for i, when in work.items() if when <= end]
        for i in there:
            del work[i]
        if there:  # otherwise no step, and no difference
            held = [t if i in free else held[i] for i in range(8)]
        now = end
    found = run(e, engine=engine)
    assert max(aways) > 1
    assert found.frame["downlink_bits"].iloc[-1] == pytest.approx(told)


STATEFUL = replace(
    CARRIED,
    byzantine=2,
    attack=SignFlip(2.0),
    rule=TrimmedMean(),
    method=ByzClip21SGD2M(lr=0.3, tau=0.5, beta=0.5, beta_hat=0.5),
    rounds=10,
)
VARIANTS = {
    "carried": STATEFUL,
    "carried, silent": replace(STATEFUL, attack=IPM(1.0), method=HeavyBall(lr=0.2)),
    "cut, away": replace(
        STATEFUL, clock=Clock(PACE, presence=Dropouts(2.0, 0.3), deadline=1.5), method=HeavyBall(lr=0.2)
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_goes_on_to_the_bit(variant: str, tmp_path: Path) -> None:
    whole, rest = resumed_to_the_bit(VARIANTS[variant], tmp_path, after=4)
    assert whole.frame["simulated_seconds"].tolist() == rest.frame["simulated_seconds"].tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_engines_agree(variant: str) -> None:
    loop, vector, grid = (run(VARIANTS[variant], engine=engine) for engine in ("loop", "vector", "grid"))
    torch.testing.assert_close(model(vector), model(loop), rtol=1e-4, atol=1e-6)
    assert torch.equal(model(grid), model(loop))


def test_a_late_client_keeps_its_state_until_its_message_is_in() -> None:
    """With momentum: what the client keeps is what it sent, so a message that is cut off leaves no trace."""
    slow = Clock(Constant(1.0), byzantine=Constant(10.0), deadline=2.0)
    e = replace(BASE, clients=4, byzantine=1, attack=SignFlip(), f=0, method=HeavyBall(lr=0.2), clock=slow)
    honest = replace(e, clients=4, byzantine=0, attack=None, clock=Clock(Constant(1.0)))
    fed, whole = Federation(honest), run(e)
    x, m = fed.x0, torch.zeros(3, len(fed.x0))
    for t in range(e.rounds):
        for i in range(3):
            m[i] = answer(fed, i, {"m": m[i]}, {"x": x}, t).state["m"]
        x = x - 0.2 * m.mean(0)
    torch.testing.assert_close(model(whole), x)


def test_byzantine_clients_who_are_cut_do_not_count_and_f_stays() -> None:
    """Of 8 rows 2 are cut, and the median of 6 is the honest ones'; without 3 of 8 it is not defined for f = 3."""
    slow = Clock(Constant(1.0), byzantine=Constant(9.0), deadline=2.0)
    e = replace(BASE, byzantine=2, attack=IPM(5.0), rule=Median(), clock=slow)
    fed = Federation(e)
    x = fed.x0
    for t in range(e.rounds):
        rows = torch.stack([answer(fed, i, {}, {"x": x}, t).message for i in range(6)])
        x = x - 0.4 * Median()(rows, 2)
    torch.testing.assert_close(model(run(e)), x)
    assert torch.equal(model(run(replace(e, byzantine=3))), fed.x0)


@pytest.mark.parametrize(
    ("estimator", "passes"), [(LastGradient(), 1), (MVR(), 2), (HM(), 2), (HM(random=True), 3)], ids=repr
)
def test_a_product_with_a_hessian_takes_as_long_as_a_gradient(estimator: Estimator, passes: int) -> None:
    e = replace(BASE, method=EF21(estimator, TopK(0.5), Plain(0.1)), clock=Clock(Constant(0.5)), rounds=3)
    assert run(e).frame["simulated_seconds"].iloc[-1] == 3 * 0.5 * passes


def test_who_is_away_is_not_asked_and_pays_nothing() -> None:
    presence = Dropouts(1.0, 0.5)
    e = replace(
        BASE,
        method=FedAvg(lr=0.3, local_steps=1, tau=1.0),
        privacy=MessageDP(noise=2.0, delta=1e-4),
        clock=Clock(Exponential(0.05), presence=presence),
    )
    keys, now, paid = Federation(e).keys, 0.0, np.zeros(8, int)
    for t in range(e.rounds):
        here = [i for i in range(8) if presence.absence(keys, i, now, now)[0] > now]
        spells = [e.clock.spell(keys, i, t, now, Load(1, 0, 0)) for i in here] if e.clock else []
        paid[here] += 1
        now = max(spell.known for spell in spells)
    note = next(n for n in run(e).notes if "clients took part in" in n)
    assert f"clients took part in {paid.min()} to {paid.max()} of 9 rounds" in note
    assert paid.min() < paid.max()


def test_where_all_are_away_time_passes() -> None:
    presence = Dropouts(1.0, 0.6)
    e = replace(BASE, clients=1, clock=Clock(Constant(0.3), presence=presence), rounds=30)
    keys, now, ends, waits = Federation(e).keys, 0.0, [], 0
    for _ in range(30):
        left, back = presence.absence(keys, 0, now, now + 0.3)
        waits += left <= now
        now = back if left <= now else min(left, now + 0.3)
        ends.append(now)
    assert waits > 3
    assert run(e).frame["simulated_seconds"].tolist() == pytest.approx(ends)


def test_the_run_ends_at_its_horizon() -> None:
    e = replace(BASE, clock=Clock(Constant(1.5), horizon=7.0), rounds=100)
    assert run(e).frame["simulated_seconds"].tolist() == [1.5, 3.0, 4.5, 6.0]


def test_what_does_not_combine_says_so() -> None:
    with pytest.raises(Invalid, match=r"clock\.late = 'carried' with cohort = 3"):
        replace(CARRIED, cohort=3)
    with pytest.raises(Invalid, match=r"clock\.late = 'carried' with method = MoNNA"):
        replace(CARRIED, method=MoNNA(lr=0.1), rule=TrimmedMean())


def test_a_clock_on_the_command_line_and_in_files(tmp_path: Path) -> None:
    text = "Clock(gradient=Ladder(noise=0.5), network=Bandwidth(up=1e6, latency=0.1), deadline=3.0, late=carried)"
    e = codec.update(BASE, [("clock", text)])
    (tmp_path / "e.toml").write_text(e.to_toml())
    assert Experiment.from_toml(tmp_path / "e.toml") == e
    assert Experiment.from_json(e.to_json()) == e
    assert e.clock is not None
    assert e.clock.network == Bandwidth(up=1e6, down=inf, latency=0.1)
    assert "clock" not in replace(e, clock=None).to_dict()
    assert Experiment.from_dict(replace(e, clock=None).to_dict()).clock is None
