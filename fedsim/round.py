"""One round in two functions: `answer`, a client's line, and `finish`, everything after the messages are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.federation import Federation, Ids
from fedsim.gradients import one_client
from fedsim.layout import clip_
from fedsim.mechanism import Mechanism
from fedsim.types import Batch, State, Target, View


class Client:
    """The `Env` of one client."""

    def __init__(self, fed: Federation, client: int, round: int, state: State) -> None:
        self.fed, self.ids, self.round, self.calls = fed, np.array([client]), round, 0
        self.mechanism = Mechanism.of(fed, self.ids, round, state)

    def grad(self, x: Tensor, batch: Batch, tau: float = inf) -> Tensor:
        clip = self.mechanism.clip() if self.mechanism else None
        gradient = one_client(self.fed.model, x, batch, clip)
        if self.mechanism and clip:
            gradient = self.mechanism.noisy(gradient[None], self.calls)[0]
            self.mechanism.learn(clip, batch.weight, self.calls)
        self.calls += 1
        return clip_(self.fed.regularise(gradient, x), tau)

    def descend(self, x: Tensor, batch: Batch, lr: float, out: Tensor | None = None) -> Tensor:
        return x - lr * self.grad(x, batch)

    def noisy(self, message: Tensor) -> Tensor:
        if self.fed.message_privacy is None:
            return message
        return self.fed.noisy(message[None], "message", self.round, self.ids)[0]

    def room(self, name: str) -> Tensor | None:
        return None


def answer(fed: Federation, client: int, state: State, x: Tensor, round: int) -> tuple[State, Tensor]:
    """A client's new state and its message (d,), from its state, the broadcast model x and the round."""
    batch = fed.batch(round, np.array([client]))
    one = Batch(batch.x[0], batch.y[0], batch.weight[0])
    env = Client(fed, client, round, state)
    state, message = fed.experiment.method.client_step(state, x, one, env)
    return state | (env.mechanism.kept if env.mechanism else {}), message


@dataclass(frozen=True)
class Server:
    """What the server carries from round to round: the method's state, the last aggregate, the adversary's memory."""

    state: State
    previous: Tensor | None
    memory: State

    @property
    def x(self) -> Tensor:
        return self.state["x"]

    @classmethod
    def start(cls, fed: Federation) -> Server:
        return cls(fed.experiment.method.server_init(fed.x0, fed.experiment.clients), None, {})


@dataclass(frozen=True)
class Seen:
    """What the rule saw in a round and what it made of it; the first `honest` rows are honest."""

    rows: Tensor  # (n', d)
    honest: int
    aggregate: Tensor  # (d,); among peers the mean of the honest nodes'


@dataclass(frozen=True)
class Stage:
    """Where forged rows enter: beside the honest rows, in place of the Byzantine clients' own, which may be missing."""

    honest: Tensor  # (h, d)
    ids: Ids  # (h,), of those clients
    own: Tensor  # (f, d), or (0, d) where the Byzantine clients computed none
    f: int
    join: Callable[[Tensor], tuple[State, Tensor]]  # forged rows (f, d) -> server state, what the rule sees
    last: Callable[[Tensor], tuple[State, Tensor]]  # the same, once: it may write over the messages


def finish(fed: Federation, server: Server, rows: Tensor, ids: Ids, round: int) -> tuple[Server, Seen]:
    """Forge, aggregate, step. `ids` take part, in order; `rows` are the messages of those of them that compute.

    Behind these there may be room for the forged ones. Where it is enough (`fed.pooled`) one row is the mean of all.
    """
    experiment, method = fed.experiment, fed.experiment.method
    stage = (_in_memory if experiment.attacked == "memory" else _in_messages)(fed, server, rows, ids)
    assumed = 0 if fed.pooled else experiment.assumed  # of one row, the mean of all, none may be Byzantine
    honest = experiment.honest if method.remembers else len(ids) - stage.f
    forged, memory, seed = stage.own, server.memory, fed.rule_seed(round)
    received = None
    if method.peer:
        chance = fed.keys.generator("received", round)
        received = method.received(len(ids), honest, assumed, chance)
    if experiment.attack is not None and stage.f:
        granted = experiment.knowledge
        target = Target(
            experiment.rule,
            assumed,
            server.previous,
            lambda last: stage.join(last)[1],
            seed,
            honest,
            received,
        )
        view = View(
            n=len(stage.honest) + stage.f,
            f=stage.f,
            round=round,
            x=server.x,
            generator=fed.keys.generator("attack", round, device=fed.device),
            own=stage.own if "own" in granted and len(stage.own) else None,
            honest=stage.honest if "honest" in granted else None,
            ids=torch.from_numpy(stage.ids) if "honest" in granted else None,
            target=target if "rule" in granted else None,
        )
        forged, memory = experiment.attack.remember(view, memory)
    state, seen = stage.last(forged)
    generator = torch.Generator(fed.device).manual_seed(seed)
    if received is not None:
        models = experiment.rule.each(seen, assumed, received, generator=generator)
        there = torch.from_numpy(ids).to(fed.device)  # the others stay where they are
        after = method.update(state, server.x.index_copy(0, there, models), round)
        return Server(after, None, memory), Seen(seen, honest, models[:honest].mean(0))
    aggregate = experiment.rule(seen, assumed, previous=server.previous, generator=generator)
    aggregate = fed.published(aggregate, len(ids) if fed.pooled else len(seen), round)
    return Server(method.update(state, aggregate, round), aggregate, memory), Seen(seen, honest, aggregate)


def attempt(
    fed: Federation, server: Server, rows: Tensor, answered: Ids, asked: Ids, round: int
) -> tuple[Server, Seen | None]:
    """`finish` with those of `asked` who answered: n shrinks, f stays; where the rule is then undefined, nothing moves.

    Clients that never compute are always there: the attack speaks for them, unless it has nobody to look at.
    """
    ids = np.concatenate([answered, asked[asked >= fed.computing]])
    attack, honest = fed.experiment.attack, answered < fed.experiment.honest
    if not len(answered) or (attack is not None and "honest" in attack.needs and not honest.any()):
        return server, None
    try:
        return finish(fed, server, rows, ids, round)
    except Invalid:
        if len(ids) == len(asked):
            raise
        return server, None


def _in_messages(fed: Federation, server: Server, rows: Tensor, ids: Ids) -> Stage:
    """Byzantine clients send forged messages."""
    h, computed = (int((ids < count).sum()) for count in (fed.experiment.honest, fed.computing))
    honest, own = rows[:h], rows[h:computed]
    senders = torch.from_numpy(ids).to(rows.device)

    def receive(sent: Tensor) -> tuple[State, Tensor]:
        return fed.experiment.method.receive(server.state, sent, senders)

    def join(forged: Tensor) -> tuple[State, Tensor]:
        return receive(torch.cat([honest, forged]))

    def last(forged: Tensor) -> tuple[State, Tensor]:
        room = rows[computed:]
        if forged is own:
            return receive(rows[:computed])
        if room.shape != forged.shape:
            return join(forged)
        room.copy_(forged)
        return receive(rows)

    return Stage(honest, ids[:h], own, len(ids) - h, join, last)


def _in_memory(fed: Federation, server: Server, rows: Tensor, ids: Ids) -> Stage:
    """Byzantine clients write the rows that the rule sees, whatever the server does to messages before."""
    sent = _in_messages(fed, server, rows, ids)
    own = sent.own if len(sent.own) else rows.new_zeros(sent.f, rows.shape[1])
    state, seen = sent.join(own)
    h = fed.experiment.honest if fed.experiment.method.remembers else len(sent.honest)

    def join(forged: Tensor) -> tuple[State, Tensor]:
        return state, torch.cat([seen[:h], forged])

    who = np.arange(h) if fed.experiment.method.remembers else sent.ids
    return Stage(seen[:h], who, seen[h:], len(seen) - h, join, join)
