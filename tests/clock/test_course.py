"""Events: lazy is eager to the bit, engines agree, dropped work leaves no trace, a stopped run goes on to the bit."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import Invalid, run, runner
from fedsim.asynchronous import Asynchronous
from fedsim.attacks import ALIE, IPM, Adaptive, SignFlip
from fedsim.batches import Batches, Epochs, Fixed, Full, Poisson
from fedsim.clock import Bandwidth, Clock, Constant, Dropouts, Exponential, Ladder, Turns
from fedsim.config import catalog
from fedsim.course import Course
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.engines import Engine, Everyone, loop, vector
from fedsim.federation import Federation
from fedsim.machine import mapped
from fedsim.method import Env, Method
from fedsim.models import MLP, Logistic
from fedsim.privacy import CentralDP, ExampleDP, MessageDP, Quantile
from fedsim.round import answer
from fedsim.runner import Result
from fedsim.schedule import InverseTime
from fedsim.spec import Experiment
from fedsim.strategies import (
    IA2SGD,
    NNM,
    AsyncSGD,
    Chain,
    DelayAdaptiveSGD,
    FedAsync,
    FedBuff,
    FedSGD,
    FoolsGold,
    HeavyBall,
    Malenia,
    Mean,
    Median,
    Rennala,
    Ringleader,
    Ringmaster,
    TrimmedMean,
)
from fedsim.task import Task
from fedsim.types import Batch, State


@dataclass(frozen=True)
class Momentum(Ringleader):
    """Ringleader with clients who send a momentum, and keep it."""

    momentum: float = 0.8
    client_init = HeavyBall.client_init
    client_step = HeavyBall.client_step  # type: ignore[assignment]


NETWORK = Bandwidth(up=1e6, down=1e6, latency=0.2, spread=0.5)
BASE = Experiment(
    task=Task(data=Blobs(), model=MLP(hidden=6)),
    split=Dirichlet(1.0),
    clients=7,
    rule=Mean(),
    method=Ringleader(lr=0.2),
    batches=Fixed(4),
    rounds=25,
    evaluate_every=5,
    clock=Clock(Ladder(), NETWORK),
)
METHODS: dict[str, Asynchronous] = {
    "ringleader": Ringleader(lr=0.2),
    "ringleader, resent": Ringleader(lr=0.2, resend=True),
    "ringleader, one missing": Ringleader(lr=0.2, missing=1),
    "momentum": Momentum(lr=0.2),
    "malenia": Malenia(lr=0.2, S=9.0),
    "malenia, no stops": Malenia(lr=0.2, stops=False),
    "rennala": Rennala(lr=0.2, buffer=5),
    "rennala, no stops": Rennala(lr=0.2, buffer=5, stops=False),
    "ia2sgd": IA2SGD(lr=0.05),
    "async": AsyncSGD(lr=0.05, buffer=3, distinct=True),
    "delay": DelayAdaptiveSGD(lr=0.05),
    "ringmaster": Ringmaster(lr=0.05, R=4),
    "ringmaster, stops": Ringmaster(lr=0.05, R=4, stops=True),
    "fedbuff": FedBuff(lr=0.1, buffer=3, local_steps=2),
    "fedasync": FedAsync(lr=0.1, local_steps=2, prox=0.1),
}


def went(e: Experiment, engine: Engine = vector.rows, lazy: bool = True) -> Course:
    """A run to its end."""
    fed = Federation(e)
    course = Course.start(fed, fed.client_state())
    course.lazy = lazy
    while course.goes_on(fed):
        course.advance(fed, Everyone(engine), [])
    return course


def state_of(course: Course) -> Tensor:
    return torch.cat([value.double().flatten() for value in course.server.state.values()])


def model(result: Result) -> Tensor:
    return torch.cat([value.flatten() for value in result.model.values()])


def test_every_asynchronous_method_is_tried() -> None:
    known = {cls for cls in catalog.names("methods").values() if issubclass(cls, Asynchronous)}
    assert known <= {type(method) for method in METHODS.values()}


@pytest.mark.parametrize("name", METHODS)
def test_lazy_is_eager_to_the_bit_and_engines_agree(name: str) -> None:
    """The oracle works out each gradient alone, client by client, when its message is due."""
    e = replace(BASE, method=METHODS[name])
    lazy, eager, plain = went(e), went(e, lazy=False), went(e, loop.rows, lazy=False)
    assert torch.equal(state_of(lazy), state_of(eager))
    assert lazy.calls < eager.calls == eager.clients.arrivals
    torch.testing.assert_close(state_of(lazy), state_of(plain), rtol=1e-4, atol=1e-5)
    assert lazy.seconds == eager.seconds == plain.seconds
    assert torch.equal(state_of(went(e, loop.rows)), state_of(plain))


@pytest.mark.parametrize(
    ("batches", "privacy", "changes"),
    [
        (Full(), None, {"model": Logistic()}),
        (Poisson(size=3), None, {}),
        (Epochs(3), None, {"model": MLP(hidden=33, activation="relu"), "l2": 0.01}),
        (Fixed(3), ExampleDP(clip=0.5, noise=1.0, delta=1e-4), {}),
        (Poisson(size=4), ExampleDP(clip=Quantile(0.5), noise=1.0, delta=1e-4), {"model": Logistic()}),
    ],
)
def test_lazy_is_eager_with_any_batches_and_privacy(
    batches: Batches, privacy: ExampleDP | None, changes: dict[str, Any]
) -> None:
    """Batches of different widths, where padding would change how sums are added up, included."""
    task = replace(BASE.task, **changes)
    e = replace(BASE, task=task, batches=batches, privacy=privacy, rounds=15, method=Ringleader(lr=0.1))
    lazy = went(e)
    assert torch.equal(state_of(lazy), state_of(went(e, lazy=False)))
    assert torch.isfinite(lazy.server.x).all()


def test_dropped_work_leaves_no_trace_in_a_client_s_state() -> None:
    """Clients of Malenia with a momentum, in plain code: only messages that came count."""
    method = Stopped(lr=0.2)
    e = replace(BASE, method=method, clients=3, clock=Clock(Ladder(noise=0.2)), rounds=6)
    found, fed = went(e, loop.rows), Federation(e)
    assert found.clients.dropped > 6
    log: list[tuple[int, int]] = []
    course, ask = Course.start(fed, fed.client_state()), Everyone(loop.rows)
    while course.goes_on(fed):
        assert course.clients.next < inf  # clears what is stale from the top of the heap
        _, client = course.clients.heap[0]
        log.append((client, int(course.clients.attempt[client])))
        course._event(fed, ask)
    skipped = sum(
        1 for client in range(3) for a in range(course.clients.attempt[client]) if (client, a) not in log
    )
    assert skipped > 0
    kept = course.states.of(np.arange(3))["m"]
    again = torch.zeros(3, fed.width)
    x, table, count = fed.x0, torch.zeros(3, fed.width), torch.zeros(3)
    for client, attempt in log:
        answered = answer(fed, client, {"m": again[client]}, {"x": x}, attempt)
        again[client] = answered.state["m"]
        table[client] += answered.message
        count[client] += 1
        if (count > 0).all():
            x = x - 0.2 * (table / count[:, None]).mean(0)
            table, count = torch.zeros(3, fed.width), torch.zeros(3)
    torch.testing.assert_close(kept, again)
    torch.testing.assert_close(course.server.x, x)


@dataclass(frozen=True)
class Stopped(Malenia):
    momentum: float = 0.8
    client_init = HeavyBall.client_init
    client_step = HeavyBall.client_step  # type: ignore[assignment]


# ---------------------------------------------------------------- stopped and resumed
AWAY = Clock(Ladder(), NETWORK, presence=Dropouts(8.0, 0.3))
VARIANTS: dict[str, Experiment] = {
    "momentum, away": replace(BASE, method=Momentum(lr=0.1), clock=AWAY),
    "private": replace(
        BASE, method=Malenia(lr=0.1), privacy=ExampleDP(clip=Quantile(0.5), noise=1.0, delta=1e-4), rounds=10
    ),
    "attacked": replace(
        BASE, method=IA2SGD(lr=0.05), rule=Chain(NNM(), TrimmedMean()), byzantine=2, attack=ALIE(), rounds=60
    ),
    "own rows": replace(
        BASE, method=AsyncSGD(lr=0.05, buffer=5, distinct=True), rule=Median(), byzantine=2, attack=SignFlip()
    ),
    "sums": replace(BASE, method=IA2SGD(lr=0.05), rounds=60),
    "stops": replace(BASE, method=Ringmaster(lr=0.1, R=3, stops=True), clock=AWAY, rounds=60),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("at", [0, 17, 40])
def test_a_run_goes_on_to_the_bit_from_between_any_two_events(variant: str, at: int, tmp_path: Path) -> None:
    """A real interrupt in the middle of an event: it is finished, kept, and no line is lost or said twice."""
    e = VARIANTS[variant]
    whole, event, count = run(e), Course._event, iter(range(10**6))

    def interrupted(course: Course, *args: Any) -> Any:
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return event(course, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Course, "_event", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(e, out=tmp_path)
    rest = run(e, out=tmp_path, resume=True)
    assert torch.equal(model(whole), model(rest))
    assert whole.frame.drop(columns="seconds").equals(rest.frame.drop(columns="seconds"))
    assert whole.notes == rest.notes


def test_stopped_while_a_line_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the step and its line nothing is kept, whatever raises; the last checkpoint before serves."""
    whole = run(BASE)
    with pytest.raises(KeyboardInterrupt):
        run(BASE, out=tmp_path, progress=lambda now, _: _interrupt(now == 7))
    measure, calls = runner.evaluate, iter(range(100))

    def broken(*args: Any) -> Any:
        _interrupt(next(calls) == 1)
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "evaluate", broken)
        with pytest.raises(KeyboardInterrupt):
            run(BASE, out=tmp_path, resume=True)
    rest = run(BASE, out=tmp_path, resume=True)
    assert whole.frame.drop(columns="seconds").equals(rest.frame.drop(columns="seconds"))
    assert torch.equal(model(whole), model(rest))


def _interrupt(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    short = replace(BASE, rounds=10)
    run(short, out=tmp_path / "short")
    longer = run(BASE, out=tmp_path / "long", start=tmp_path / "short")
    assert torch.equal(model(longer), model(run(BASE)))


# ---------------------------------------------------------------- memory
@pytest.mark.parametrize(
    "method", [Ringleader(lr=0.1, missing=1), IA2SGD(lr=0.05), AsyncSGD(lr=0.05, buffer=5, distinct=True)]
)
def test_tables_and_models_beyond_the_memory_lie_in_files(
    method: Asynchronous, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit what memory gives, behind a rule that reads all rows; stopped and resumed there, too."""
    e, lying = replace(BASE, method=method, rule=Chain(NNM(), TrimmedMean()), f=1), list[int]()
    whole = run(e)
    monkeypatch.setattr(mapped, "FEW", 1)
    with pytest.raises(KeyboardInterrupt):
        run(e, out=tmp_path, memory=1e-9, progress=lambda now, _: _interrupt(now == 7))
    rest = run(
        e, out=tmp_path, memory=1e-9, resume=True, callbacks=[lambda line: lying.append(len(mapped._files))]
    )
    assert min(lying) >= 2  # the server's rows and the clients' models
    assert torch.equal(model(whole), model(rest))
    assert whole.frame.drop(columns="seconds").equals(rest.frame.drop(columns="seconds"))


# ---------------------------------------------------------------- privacy
def test_who_sends_pays_and_who_is_stopped_before_does_not() -> None:
    """Ladder without noise: by hand. Of three clients that take 1, 2 and 3 seconds, the slowest ends each round.

    Messages take 2 seconds more, so that at 5 seconds the fast one has sent a second message that is on its way; it is
    dropped, and paid for.
    """
    e = replace(
        BASE,
        clients=3,
        method=Malenia(lr=0.1, tau=1.0),
        privacy=MessageDP(noise=3.0, delta=1e-4),
        clock=Clock(Ladder(noise=0.0), Bandwidth(latency=1.0)),
        rounds=1,
    )
    course = went(e)
    order = np.argsort(
        [e.clock.spell(Federation(e).keys, i, 0, 0.0, course.clients.load).sent for i in range(3)]
    )  # type: ignore[union-attr]
    assert course.seconds == 5.0  # 1 + 3 + 1
    # the fast one: in at 3, its next message leaves at 4; the middle one: in at 4, its next one would leave at 6
    assert [course.clients.paid[i] for i in order] == [[0, 1], [0], [0]]
    assert course.clients.arrivals == 3
    assert course.clients.dropped == 2
    ledger = course.ledger
    assert ledger is not None
    privacy = e.privacy
    assert privacy is not None
    assert ledger.epsilon == privacy.spent(ledger.plan, frozenset({(0, 1)}))
    assert "clients took part in 1 to 2 of 2 rounds" in ledger.statement()


def test_a_client_stops_at_its_budget_and_the_others_go_on() -> None:
    free = replace(
        BASE, method=Malenia(lr=0.1, tau=1.0), privacy=MessageDP(noise=3.0, delta=1e-4), rounds=400
    )
    privacy = free.privacy
    fed = Federation(free)
    assert privacy is not None
    assert fed.ledger is not None
    limit = privacy.spent(fed.ledger.plan, frozenset({tuple(range(9))}))
    e = replace(free, method=IA2SGD(lr=0.01, tau=1.0), privacy=replace(privacy, stop_at_epsilon=limit))
    course = went(e)
    assert [len(mine) for mine in course.clients.paid] == [9] * 7
    assert course.clients.spent.all()
    assert course.ledger is not None
    assert course.ledger.epsilon == pytest.approx(limit)
    notes = run(e).notes
    assert "7 clients stopped: one more message would exceed stop_at_epsilon" in notes


def test_noise_is_never_the_same_twice() -> None:
    """Messages of a run with noise alone: no two attempts, of one client or of two, share it."""
    e = replace(BASE, method=Malenia(lr=1e-6, tau=1e-6), privacy=MessageDP(noise=100.0, delta=1e-4), rounds=5)
    fed = Federation(e)
    course, seen, ask = Course.start(fed, fed.client_state()), [], Everyone(vector.rows)
    worked = course._worked
    course._worked = lambda *args: (seen.append(worked(*args)[1]), worked(*args))[1]  # type: ignore[method-assign,func-returns-value]
    while course.goes_on(fed):
        course._event(fed, ask)
    assert len(torch.stack(seen)[:, 0].unique()) == len(seen) > 50


def test_a_run_that_a_callback_stops_promises_nothing() -> None:
    e = replace(BASE, privacy=ExampleDP(clip=0.5, noise=1.0, delta=1e-4))
    result = run(e, callbacks=[lambda line: line["round"] >= 10])
    assert result.summary["epsilon"] is None
    assert any("no epsilon: what came out chose the end" in note for note in result.notes)


# ---------------------------------------------------------------- the adversary
def test_one_forged_message_is_the_client_s_row_of_all() -> None:
    """Sign flip: what arrives of a Byzantine client is minus its own gradient, whatever the others do."""
    e = replace(BASE, method=AsyncSGD(lr=0.1), byzantine=2, f=0, attack=SignFlip(3.0), rounds=30)
    flipped = replace(e, method=Flipped(lr=0.1), byzantine=0, attack=None)
    assert torch.equal(went(e).server.x, went(flipped).server.x)


@dataclass(frozen=True)
class Flipped(AsyncSGD):
    def arrive(self, state: State, row: Tensor, client: int, age: int) -> Any:
        return super().arrive(state, -3.0 * row if client >= 5 else row, client, age)


def test_attackers_hear_honest_messages_as_they_come() -> None:
    """IPM sends minus twice the mean of the last honest messages, and before the first nothing."""
    e = replace(BASE, method=AsyncSGD(lr=0.1), byzantine=2, f=0, attack=IPM(2.0), rounds=40)
    fed, heard, checked = Federation(e), dict[int, Tensor](), 0
    course, ask = Course.start(fed, fed.client_state()), Everyone(loop.rows)
    assert fed.computing == 5
    while course.goes_on(fed):
        x, (_, client) = course.server.x, course.clients.heap[0]
        course._event(fed, ask)
        gradient = (x - course.server.x) / 0.1
        if client < 5:
            heard[client] = gradient
        else:
            mean = torch.stack(list(heard.values())).mean(0) if heard else torch.zeros_like(x)
            torch.testing.assert_close(gradient, -2 * mean, atol=1e-4, rtol=1e-4)
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize(
    ("method", "rows", "f"),
    [
        (Ringleader(lr=0.1), 7, 2),
        (IA2SGD(lr=0.1, missing=2), 5, 2),
        (AsyncSGD(lr=0.1, buffer=4), 4, 2),  # 2 of 7, of 4: rounded up
        (AsyncSGD(lr=0.1, buffer=5, distinct=True), 5, 2),
    ],
)
def test_how_many_rows_are_byzantine(method: Asynchronous, rows: int, f: int) -> None:
    e = replace(BASE, method=method, f=2)
    assert (e.rows, e.f_round) == (rows, f)


def test_fast_liars_fill_a_buffer_of_messages_and_not_one_of_clients() -> None:
    """Two of seven, ten times as fast: of the five rows that come next most are theirs, of five clients' rows two."""
    fast = Clock(Exponential(1.0), byzantine=Constant(0.1))
    e = replace(
        BASE, byzantine=2, attack=SignFlip(5.0), rule=Median(), clock=fast, rounds=80, evaluate_every=80
    )
    e = replace(e, split=Dirichlet(10.0), task=replace(e.task, model=Logistic()))
    filled = run(replace(e, method=AsyncSGD(lr=0.3, buffer=5)))
    distinct = run(replace(e, method=AsyncSGD(lr=0.3, buffer=5, distinct=True)))
    assert filled.accuracy < 0.4
    assert distinct.accuracy > 0.7


# ---------------------------------------------------------------- time
def test_the_run_ends_at_its_horizon_and_says_where_it_stands() -> None:
    e = replace(BASE, clock=Clock(Constant(2.0), horizon=21.0), rounds=1000)
    frame = run(e).frame
    assert frame["simulated_seconds"].iloc[-1] <= 21.0
    assert frame["round"].is_unique
    assert 7 * 9 <= frame["arrivals"].iloc[-1] <= 7 * 10
    with pytest.raises(Invalid, match=r"clock\.horizon = 1.0: the first message comes later"):
        run(replace(e, clock=Clock(Constant(2.0), horizon=1.0)))


def test_where_no_row_is_ever_due_the_run_ends_with_the_first_model() -> None:
    stalled = Clock(Constant(1.0), byzantine=Constant(1e6), horizon=30.0)
    e = replace(BASE, byzantine=1, attack=SignFlip(), f=0, clock=stalled, rounds=1000)
    frame = run(e).frame
    assert frame["round"].tolist() == [0]
    free = run(replace(e, method=Ringleader(lr=0.2, missing=1)))
    assert free.frame["round"].iloc[-1] > 20


def test_who_has_the_model_already_is_not_sent_it_again() -> None:
    """Ringleader's clients who go on wait for nothing; bits are those that travelled."""
    e = replace(
        BASE, clients=2, clock=Clock(Ladder(noise=0.0), Bandwidth(latency=0.5, down=1e5, up=1e5)), rounds=4
    )
    course = went(e)
    sent = course.traffic(Federation(e))
    width = 32 * Federation(e).width
    assert sent["uplink_bits"] == round(width * course.clients.arrivals / 2)
    assert sent["downlink_bits"] == round(width * course.clients.told / 2)
    assert course.clients.told == 2 + 4 < 2 + course.clients.arrivals
    assert np.isclose(course.clients.sent - course.clients.time, -(0.5 + width / 1e5)).all()


def test_alternating_attackers_take_turns() -> None:
    clock = Clock(Constant(1.0), byzantine=Turns(Constant(0.1), Constant(5.0), every=4))
    e = replace(BASE, method=AsyncSGD(lr=0.01), byzantine=1, f=0, attack=SignFlip(), clock=clock, rounds=60)
    course = went(e)
    assert course.clients.attempt[6] == pytest.approx(course.seconds / 20.4 * 8, abs=4)


# ---------------------------------------------------------------- what does not combine
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"clock": Clock(Constant(1.0), deadline=2.0)},
            r"clock\.deadline = 2\.0: ends rounds, and Ringleader has none",
        ),
        ({"cohort": 3}, "cohort = 3: is drawn for a round"),
        ({"attacked": "memory"}, "attacked = 'memory'"),
        ({"rule": FoolsGold()}, "rule = FoolsGold: remembers clients by rounds"),
        (
            {
                "attack": Adaptive(ALIE()),
                "byzantine": 1,
                "knowledge": ("own", "honest", "rule"),
                "rule": Median(),
            },
            "attack: knows the rule",
        ),
        (
            {"method": Ringleader(lr=0.1, tau=1.0), "privacy": CentralDP(noise=1.0)},
            "privacy: is central",
        ),
        (
            {"privacy": ExampleDP(clip=1.0, epsilon=3.0)},
            r"privacy\.epsilon = 3 with Ringleader: how many messages",
        ),
        (
            {"privacy": ExampleDP(clip=InverseTime(1.0, 10.0), noise=1.0)},
            "privacy: has a schedule, by rounds",
        ),
        ({"method": Ringleader(lr=0.1, missing=7)}, "leaves no row of 7 clients"),
        ({"method": AsyncSGD(lr=0.1), "f": 1}, "Mean: f = 1 with n = 1"),
        ({"method": FedAsync(lr=0.1), "privacy": MessageDP(noise=1.0)}, "sends messages without a bound"),
    ],
)
def test_what_does_not_combine_says_so(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        replace(BASE, **changes)


def test_where_asynchronous_methods_do_not_run_says_so() -> None:
    with pytest.raises(
        Invalid, match="engine = 'ray' with method = Ringleader: has a task for each single gradient"
    ):
        run(BASE, engine="ray")
    with pytest.raises(
        Invalid, match="method = Ringleader: acts on messages as they come, so it needs a clock"
    ):
        run(replace(BASE, clock=None))
    with pytest.raises(Invalid, match=r"tau = 1 and server_lr = 1\.0"):
        FedAsync(lr=0.1, tau=1.0)


@dataclass(frozen=True)
class Curious(AsyncSGD):
    what: str = "round"

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        told = env.round if self.what == "round" else env.common(2)
        return state, env.first_gradient() + float(torch.as_tensor(told).sum())


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_a_client_half_that_asks_for_the_round_is_told(engine: str) -> None:
    with pytest.raises(Invalid, match=r"Curious: asks for env\.round on a client"):
        run(replace(BASE, method=Curious(lr=0.1)), engine=engine)


def test_synchronous_methods_are_none_the_less_what_they_were() -> None:
    assert not isinstance(FedSGD(lr=0.1), Asynchronous)
    assert issubclass(Asynchronous, Method)
