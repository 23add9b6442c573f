"""Asynchronous methods against the papers' lines: plain loops over arrivals, with models and sums written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.asynchronous import Asynchronous
from fedsim.batches import Fixed
from fedsim.clock import Clock, Constant, Ladder
from fedsim.clock.paces import Pace
from fedsim.course import Course
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.engines import Everyone, loop
from fedsim.federation import Federation
from fedsim.gradients import one_client
from fedsim.models import Logistic
from fedsim.spec import Experiment
from fedsim.strategies import (
    IA2SGD,
    AsyncSGD,
    DelayAdaptiveSGD,
    FedAsync,
    FedBuff,
    Malenia,
    Mean,
    Median,
    Rennala,
    Ringleader,
    Ringmaster,
)
from fedsim.task import Task

N, LR, ARRIVALS = 5, 0.3, 90
BASE = Experiment(
    task=Task(data=Blobs(), model=Logistic()),
    split=Dirichlet(1.0),
    clients=N,
    rule=Mean(),
    method=Ringleader(lr=LR),
    batches=Fixed(4),
    rounds=10**6,
    evaluate_every=10**6,
    clock=Clock(Ladder(noise=0.4)),
)


class Over(Exception):
    """So many arrivals are through."""


class World:
    """Clients who compute: when each is done, and at which model, update and attempt it is."""

    def __init__(
        self, fed: Federation, arrivals: int, local: Callable[[World, int], Tensor] | None = None
    ) -> None:
        self.fed, self.left, self.local, self.k = fed, arrivals, local, 0
        self.x = fed.x0.clone()
        self.at, self.since = [self.x] * N, [0] * N
        self.attempt, self.heap = [-1] * N, list[tuple[float, int, int]]()
        self.now, self.when = 0.0, list[float]()
        for i in range(N):
            self.go(i)

    def go(self, i: int, handed: bool = False) -> None:
        """Client i begins another gradient, at the server's model where it is handed that."""
        if handed:
            self.at[i], self.since[i] = self.x, self.k
        self.attempt[i] += 1
        pace = self.fed.experiment.clock.gradient  # type: ignore[union-attr]
        steps, end = self.fed.experiment.method.steps, self.now
        for step in range(steps):
            end += pace.gradient_seconds(self.fed.keys, i, self.attempt[i] * steps + step, end)
        heappush(self.heap, (end, i, self.attempt[i]))

    def gradient(self, i: int, x: Tensor, step: int = 0) -> Tensor:
        batches = list(
            self.fed.batch(self.attempt[i], np.array([i])).part(0).split(self.fed.experiment.method.steps)
        )
        return one_client(self.fed.model, x, batches[step])

    def arrival(self) -> tuple[int, Tensor, int]:
        """Whose message is next, it, and its delay."""
        if not self.left:
            raise Over
        self.left -= 1
        while True:
            self.now, i, attempt = heappop(self.heap)
            if attempt == self.attempt[i]:
                message = self.local(self, i) if self.local else self.gradient(i, self.at[i])
                return i, message, self.k - self.since[i]

    def step(self, by: Tensor) -> None:
        self.x, self.k = self.x - by, self.k + 1
        self.when.append(self.now)


def ringleader(w: World, resend: bool = False) -> None:
    """Algorithm of arXiv:2509.22860, phase by phase."""
    s, b = [torch.zeros_like(w.x) for _ in range(N)], [0] * N
    s_next, b_next = [torch.zeros_like(w.x) for _ in range(N)], [0] * N
    while True:
        while True:  # phase 1
            i, g, _ = w.arrival()
            s[i], b[i] = s[i] + g, b[i] + 1
            if min(b) > 0:
                break
            w.go(i, handed=resend)
        w.step(LR / N * sum((s[j] / b[j] for j in range(N)), torch.zeros_like(w.x)))
        w.go(i, handed=True)
        pending = set(range(N)) - {i}
        while pending:  # phase 2
            i, g, _ = w.arrival()
            if i in pending:
                s[i], b[i] = s[i] + g, b[i] + 1
                w.step(LR / N * sum((s[j] / b[j] for j in range(N)), torch.zeros_like(w.x)))
                w.go(i, handed=True)
                pending.remove(i)
            else:
                s_next[i], b_next[i] = s_next[i] + g, b_next[i] + 1
                w.go(i, handed=resend)
        s, b = s_next, b_next
        s_next, b_next = [torch.zeros_like(w.x) for _ in range(N)], [0] * N


def malenia(w: World, budget: float = 0.0, stops: bool = True) -> None:
    """Method 6 of arXiv:2305.12387: all at x^k until the harmonic mean of their counts is above S / n."""
    while True:
        s, b = [torch.zeros_like(w.x) for _ in range(N)], [0] * N
        while min(b) == 0 or N / sum(1 / count for count in b) <= budget / N:
            i, g, delay = w.arrival()
            if delay == 0:
                s[i], b[i] = s[i] + g, b[i] + 1
            if min(b) == 0 or N / sum(1 / count for count in b) <= budget / N:
                w.go(i, handed=delay > 0)
        w.step(LR / N * sum((s[j] / b[j] for j in range(N)), torch.zeros_like(w.x)))
        for j in range(N) if stops else [i]:
            w.go(j, handed=True)


def rennala(w: World, batch: int = 7, stops: bool = True) -> None:
    """Method 4 of arXiv:2305.12387: the first S gradients at x^k, whoever sends them."""
    while True:
        total, count = torch.zeros_like(w.x), 0
        while count < batch:
            i, g, delay = w.arrival()
            if delay == 0:
                total, count = total + g, count + 1
            if count < batch:
                w.go(i, handed=delay > 0)
        w.step(LR * total / batch)
        for j in range(N) if stops else [i]:
            w.go(j, handed=True)


def ia2sgd(w: World) -> None:
    table: dict[int, Tensor] = {}
    while True:
        i, table[i], _ = _named(w.arrival())
        if len(table) == N:
            w.step(LR * torch.stack(list(table.values())).mean(0))
        w.go(i, handed=True)


def _named(arrival: tuple[int, Tensor, int]) -> tuple[int, Tensor, int]:
    return arrival


def asgd(w: World) -> None:
    while True:
        i, g, _ = w.arrival()
        w.step(LR * g)
        w.go(i, handed=True)


def delay_adaptive(w: World) -> None:
    while True:
        i, g, delay = w.arrival()
        w.step(LR * N / max(N, delay) * g)
        w.go(i, handed=True)


def ringmaster(w: World, most: int = 4, stops: bool = False) -> None:
    """Algorithms 4 and 5 of arXiv:2501.16168."""
    while True:
        i, g, delay = w.arrival()
        if delay < most:
            w.step(LR * g)
        late = [j for j in range(N) if j != i and stops and delay < most and w.k - w.since[j] >= most]
        for j in [i, *late]:
            w.go(j, handed=True)


def fedbuff(w: World, size: int = 3) -> None:
    """Algorithm 1 of arXiv:2106.06639, with its staleness scaling."""
    total, count = torch.zeros_like(w.x), 0
    while True:
        i, u, delay = w.arrival()
        total, count = total + u / (1 + delay) ** 0.5, count + 1
        if count == size:
            w.step(0.8 * total / size)
            total, count = torch.zeros_like(w.x), 0
        w.go(i, handed=True)


def descended(w: World, i: int) -> Tensor:
    y = w.at[i]
    for step in range(3):
        y = y - 0.1 * w.gradient(i, y, step)
    return w.at[i] - y


def fedasync(w: World) -> None:
    """Algorithm 1 of arXiv:1903.03934 with the polynomial weight."""
    while True:
        i, y, delay = w.arrival()
        weight = 0.4 * (1 + delay) ** -0.5
        w.x, w.k = (1 - weight) * w.x + weight * y, w.k + 1
        w.go(i, handed=True)


def proximal(w: World, i: int) -> Tensor:
    y = w.at[i]
    for step in range(3):
        y = y - 0.1 * (w.gradient(i, y, step) + 0.2 * (y - w.at[i]))
    return y


CASES: dict[str, tuple[Asynchronous, Callable[[World], None], Callable[[World, int], Tensor] | None]] = {
    "ringleader": (Ringleader(lr=LR), ringleader, None),
    "ringleader, resent": (Ringleader(lr=LR, resend=True), lambda w: ringleader(w, True), None),
    "malenia": (Malenia(lr=LR), malenia, None),
    "malenia, S": (Malenia(lr=LR, S=12.0), lambda w: malenia(w, 12.0), None),
    "malenia, no stops": (Malenia(lr=LR, stops=False), lambda w: malenia(w, 0.0, False), None),
    "rennala": (Rennala(lr=LR, buffer=7), rennala, None),
    "rennala, no stops": (Rennala(lr=LR, buffer=7, stops=False), lambda w: rennala(w, 7, False), None),
    "ia2sgd": (IA2SGD(lr=LR), ia2sgd, None),
    "async": (AsyncSGD(lr=LR), asgd, None),
    "delay": (DelayAdaptiveSGD(lr=LR), delay_adaptive, None),
    "ringmaster": (Ringmaster(lr=LR, R=4), ringmaster, None),
    "ringmaster, stops": (Ringmaster(lr=LR, R=4, stops=True), lambda w: ringmaster(w, 4, True), None),
    "fedbuff": (FedBuff(lr=0.1, buffer=3, local_steps=3, server_lr=0.8), fedbuff, descended),
    "fedasync": (FedAsync(lr=0.1, local_steps=3, mix=0.4, prox=0.2), fedasync, proximal),
}


def went(e: Experiment, arrivals: int = ARRIVALS) -> tuple[Course, Federation]:
    fed = Federation(e)
    course, ask = Course.start(fed, fed.client_state()), Everyone(loop.rows)
    while course.clients.arrivals < arrivals:
        course._event(fed, ask)
    return course, fed


@pytest.mark.parametrize("name", CASES)
def test_the_paper_line_by_line(name: str) -> None:
    method, algorithm, local = CASES[name]
    course, fed = went(replace(BASE, method=method))
    world = World(fed, ARRIVALS, local)
    with pytest.raises(Over):
        algorithm(world)
    assert course.round == world.k >= 4
    torch.testing.assert_close(course.server.x, world.x, rtol=1e-4, atol=1e-5)
    assert float((course.server.x - fed.x0).norm()) > 0.1


@pytest.mark.parametrize(
    "pace",
    [Ladder(noise=0.0), Ladder(first=1.0, step=5.0, noise=0.0), Constant(1.0)],
)
@pytest.mark.parametrize("resend", [False, True])
def test_n_updates_of_ringleader_take_at_most_twice_the_slowest_client(pace: Pace, resend: bool) -> None:
    """Lemma of arXiv:2509.22860, after the first round too; and every client is handed n models in n rounds."""
    e = replace(BASE, method=Ringleader(lr=LR, resend=resend), clock=Clock(pace))
    course, fed = went(e, 500)
    slowest = max(pace.gradient_seconds(fed.keys, i, 0, 0.0) for i in range(N))
    world = World(fed, 500)
    with pytest.raises(Over):
        ringleader(world, resend)
    assert course.round == len(world.when)
    rounds = np.array([0.0, *world.when[N - 1 :: N]])
    assert (np.diff(rounds) <= 2 * slowest + 1e-9).all()
    assert len(rounds) > 5


@pytest.mark.parametrize("pace", [Ladder(noise=0.0), Ladder(first=1.0, step=5.0, noise=0.0), Constant(1.0)])
def test_every_window_of_twice_the_slowest_client_uses_n_gradients(pace: Pace) -> None:
    """Of Ringleader, on the clock: none is thrown away, so what came in is in this table or the next, or in a step."""
    fed = Federation(replace(BASE, clock=Clock(pace)))
    course, ask = Course.start(fed, fed.client_state()), Everyone(loop.rows)
    used, counted, stepped = [0.0], 0.0, 0.0
    for _ in range(400):
        before = float(course.server.state["count"].sum() + course.server.state["next count"].sum())
        rounds = course.round // N
        course._event(fed, ask)
        after = float(course.server.state["count"].sum() + course.server.state["next count"].sum())
        stepped += (
            before + 1 - after if course.round // N > rounds else 0.0
        )  # the table of a round that has ended
        counted = after
        used.append(course.seconds)
    assert course.clients.dropped == 0
    assert stepped + counted == course.clients.arrivals == 400
    slowest = max(pace.gradient_seconds(fed.keys, i, 0, 0.0) for i in range(N))
    times = np.array(used)
    for start in np.unique(times[times <= times[-1] - 2 * slowest]):
        assert ((times > start) & (times <= start + 2 * slowest + 1e-9)).sum() >= N


def test_a_delay_of_ringleader_is_at_most_2_n_minus_2() -> None:
    delays: list[int] = []

    class Watched(Ringleader):
        def arrive(self, state, row, client, age):  # type: ignore[no-untyped-def]
            delays.append(age)
            return super().arrive(state, row, client, age)

    went(replace(BASE, method=Watched(lr=LR)), 300)
    assert 0 < max(delays) <= 2 * N - 2


def test_without_the_last_clients_nobody_stalls_and_they_are_handed_models_when_they_come() -> None:
    """One of five takes a thousand times as long: n - 1 rows are enough, and it is never more than a round behind."""
    slow = Clock(Constant(1.0), byzantine=Constant(30.3))
    e = replace(BASE, byzantine=1, f=0, clock=slow)
    for method in (
        Ringleader(lr=LR, missing=1),
        Malenia(lr=LR, missing=1, stops=False),
        IA2SGD(lr=LR, missing=1),
    ):
        course, _ = went(replace(e, method=method), 300)
        assert course.round / course.seconds > 0.4, method
    handed: list[int] = []

    class Watched(Ringleader):
        def arrive(self, state, row, client, age):  # type: ignore[no-untyped-def]
            after, due = super().arrive(state, row, client, age)
            if client == N - 1:
                handed.append(bool(after["hand"]) or due is not None)
            return after, due

    went(replace(e, method=Watched(lr=LR, missing=1)), 700)
    assert len(handed) >= 5
    assert all(handed)


def test_a_rule_sees_the_table_and_buffers_in_order_of_ids() -> None:
    """A buffer's rows come to the rule by client, so that the honest ones are the first."""
    seen: list[Tensor] = []

    class Watched(AsyncSGD):
        def arrive(self, state, row, client, age):  # type: ignore[no-untyped-def]
            return super().arrive(state, torch.full_like(row, float(client)), client, age)

    e = replace(BASE, method=Watched(lr=LR, buffer=4, distinct=True), rule=Median(), byzantine=1)
    fed = Federation(e)
    course, ask = Course.start(fed, fed.client_state()), Everyone(loop.rows)
    while len(seen) < 10:
        found = course._event(fed, ask)
        if found:
            seen.append(found.rows[:, 0])
            assert found.honest == int((found.rows[:, 0] < N - 1).sum())
    assert all((rows.diff() > 0).all() for rows in seen)
