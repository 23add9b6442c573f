"""One round in two functions: `answer`, a client's line, and `finish`, everything after the messages are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import torch
from torch import Tensor

from fedsim.asynchronous import Asynchronous
from fedsim.check import Component, Invalid
from fedsim.downlink import kept
from fedsim.env import AtClients, AtServer, Draws, as_read, places
from fedsim.federation import Federation, Ids
from fedsim.gradients import one_client, one_hvp, one_loss
from fedsim.layout import clip_, norms
from fedsim.machine.threads import one_thread
from fedsim.mechanism import Mechanism
from fedsim.messages.payload import Payload
from fedsim.method import Method
from fedsim.recall import MemoryRule, Recall, Recalled, recalled
from fedsim.types import Batch, State, Target, View

AT_CLIP = 1e-5  # a message this close to the bound, relatively, was shortened to it: what rounding leaves


class Client(AtClients):
    """The `Env` of one client."""

    def __init__(self, fed: Federation, client: int, round: int, state: State, told: State) -> None:
        super().__init__(fed, np.array([client]), round, told)
        self.batch = fed.batch(round, self.ids).part(0)
        self.mechanism = Mechanism.of(fed, self.ids, round, state)
        self.payload: Payload | None = None  # of the message, where it was compressed

    def grad(self, x: Tensor, batch: Batch, tau: float = inf) -> Tensor:
        clip = self.mechanism.clip() if self.mechanism else None
        gradient, call = one_client(self.fed.model, x, batch, clip, self.fed.loss), self.call(batch)
        if self.mechanism and clip:
            gradient = self.mechanism.noisy(gradient[None], call)[0]
            self.mechanism.learn(clip, batch.weight, call)
        return clip_(self.fed.regularise(gradient, x), tau)

    def first_gradient(self, tau: float = inf) -> Tensor:
        return self.grad(self.x, next(self.batch.split(self.fed.experiment.method.steps)), tau)

    def descend(self, x: Tensor, batch: Batch, lr: float, out: Tensor | None = None) -> Tensor:
        return x - lr * self.grad(x, batch)

    def hvp(self, x: Tensor, v: Tensor, batch: Batch) -> Tensor:
        self.unaccounted("hvp")
        return self.fed.regularise(one_hvp(self.fed.model, x, v, batch, self.fed.loss), v)

    @torch.no_grad()
    def loss(self, x: Tensor, batch: Batch) -> Tensor:
        self.unaccounted("loss")
        return one_loss(self.fed.model, x, batch, self.fed.loss) + self.fed.experiment.task.l2 / 2 * (x @ x)

    def uniform(self, count: int) -> Tensor:
        return self.draws.own(count)[0]

    def compress(self, message: Tensor) -> Tensor:
        draws = Draws(self.fed, "uplink", self.address, self.ids)

        def rounding(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return draws.own(count, dtype)[0]

        self.payload = self.uplink.encode(message, self.layout, rounding, places(self.fed, self.address))
        return self.uplink.decode(self.payload, self.layout, places(self.fed, self.address)).to(
            message.device
        )

    def noisy(self, message: Tensor) -> Tensor:
        if self.fed.message_privacy is None:
            return message
        self.noise_once()
        return self.fed.noisy(message[None], "message", self.address, self.ids)[0]

    def buffer(self, name: str) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Answer:
    """A client's new state, and its message (d,) as the server reads it; where that is compressed, what travels."""

    state: State
    message: Tensor
    payload: Payload | None


@one_thread()
def answer(fed: Federation, client: int, state: State, told: State, round: int) -> Answer:
    """What a client makes of its state, of what the server broadcast and of the round."""
    env = Client(fed, client, round, state, told)
    state, message = fed.experiment.method.client_step(state, env.x, env.batch, env)
    env.require_noised()
    if message.shape != (fed.width,):
        raise Invalid(
            f"{type(fed.experiment.method).__name__}: a message of shape {tuple(message.shape)}, its `width` says "
            f"({fed.width},)"
        )
    if fed.experiment.method.uplink is not None and env.payload is None:
        raise Invalid(
            f"{type(fed.experiment.method).__name__}: has an `uplink`, and sends without env.compress"
        )
    return Answer(state | (env.mechanism.kept if env.mechanism else {}), message, env.payload)


def told_to(fed: Federation, told: State, ids: Ids, some: slice | int) -> State:
    """What some of the clients `ids` are told: of a model for each client theirs, otherwise what all are told.

    Among peers there is a model for each client there is, in an asynchronous run one for each of those who are asked.
    """
    method = fed.experiment.method
    if isinstance(method, Asynchronous):
        return {name: value[some] for name, value in told.items()}
    return {name: value[ids[some]] for name, value in told.items()} if method.peer else told


@dataclass(frozen=True)
class Messages:
    """What has come of a round's clients.

    rows       (k, d), in the order of their ids; or (1, d), the mean of all, where that is enough
    spare      (k + m, d), the same with room behind them for the m of the cohort who never compute
    mean_only  whether it is the mean
    examples   (k,), how many each client has by what it says itself, where some have others than they were dealt
    """

    rows: Tensor
    spare: Tensor | None = None
    mean_only: bool = False
    examples: Ids | None = None

    def with_forged(self, forged: Tensor, keep: int) -> Tensor:
        """The first `keep` rows and the forged ones behind them; without a copy of the rows where there is room."""
        if self.spare is None or len(self.rows) != keep or len(self.spare) != keep + len(forged):
            return torch.cat([self.rows[:keep], forged])
        self.spare[keep:] = forged
        return self.spare


@dataclass(frozen=True)
class Server:
    """What the server carries from round to round.

    state     the method's
    previous  the last aggregate
    memory    the adversary's
    recall    that of a rule that remembers
    sent      the last differences that were broadcast (`fedsim.downlink`), where the method compresses them
    """

    state: State
    previous: Tensor | None
    memory: State
    recall: Recall = field(default_factory=dict)
    sent: State = field(default_factory=dict)

    @property
    def x(self) -> Tensor:
        return self.state["x"]

    def told(self, method: Method) -> State:
        """What is broadcast, and the differences that some may be sent in its place."""
        return {name: self.state[name] for name in (method.sends, *method.tells)} | self.sent

    @classmethod
    def start(cls, fed: Federation) -> Server:
        experiment, row = fed.experiment, fed.x0.new_zeros(fed.width)
        rule = fed.rule
        recall = rule.start(experiment.clients, row) if isinstance(rule, MemoryRule) else {}
        return cls(experiment.method.server_init(fed.x0, experiment.clients), None, {}, recall)


@dataclass(frozen=True)
class Seen:
    """What the rule saw in a round and what it made of it; the first `honest` rows are honest."""

    rows: Tensor  # (n', d)
    honest: int
    aggregate: Tensor  # (d,); among peers the mean of the honest nodes'
    weights: Tensor | None = None  # (n',), how much each row counts in the mean, where not alike
    clipped: float | None = None  # the share of honest messages that a clip has shortened, where that shows
    recalled: Recalled | None = None  # where the rule remembers


@dataclass(frozen=True)
class Stage:
    """Where forged rows enter: beside the honest rows, in place of the Byzantine clients' own, which may be missing."""

    honest: Tensor  # (h, d)
    ids: Ids  # (h,), of those clients
    own: Tensor  # (f, d), or (0, d) where the Byzantine clients computed none
    f: int
    join: Callable[[Tensor], tuple[State, Tensor]]  # forged rows (f, d) -> server state, what the rule sees
    last: Callable[[Tensor], tuple[State, Tensor]]  # the same, once: it may write over the messages


@one_thread()
def finish(fed: Federation, server: Server, messages: Messages, ids: Ids, round: int) -> tuple[Server, Seen]:
    """Forge, aggregate, step. `ids` take part, in order; the messages are of those of them that compute."""
    experiment, method = fed.experiment, fed.experiment.method
    messages = messages if messages.mean_only else replace(messages, rows=_bounded(fed, messages.rows))
    stage = (_in_memory if experiment.attacked == "memory" else _in_messages)(
        fed, server, messages, ids, round
    )
    f = 0 if messages.mean_only else experiment.f_round  # of one row, the mean of all, none may be Byzantine
    honest = experiment.honest if method.server_memory else len(ids) - stage.f
    topology, remembered = _topology(fed, ids, round), _remembered(fed, server, ids, f)
    target = Target(
        fed.rule,
        f,
        server.previous,
        lambda last: stage.join(last)[1],
        fed.rule_seed(round),
        honest,
        topology,
        _weights(fed, messages, ids),
        None if remembered is None else lambda seen, generator: remembered(seen).answer(generator),
    )
    forged, memory = _forge(fed, server, stage, target, round)
    clipped = _clipped(fed, messages, ids) if fed.evaluated(round) else None
    state, seen = stage.last(forged)
    if topology is not None:
        generator = torch.Generator(fed.device).manual_seed(target.seed)
        models = fed.rule.each(seen, f, topology, generator=generator)
        there = torch.from_numpy(ids).to(fed.device)  # the others stay where they are
        moved, shown = server.x.index_copy(0, there, models), models[:honest].mean(0)
        after = method.step(state, moved, AtServer(fed, round))
        return Server(after, None, memory), Seen(seen, honest, shown)
    now = None if remembered is None else remembered(seen)
    generator = torch.Generator(fed.device).manual_seed(target.seed)
    aggregate = target.aggregate(seen) if now is None else now.answer(generator)
    require(fed.rule, aggregate, tuple(seen.shape[1:]), seen)
    aggregate = fed.published(aggregate, len(ids) if messages.mean_only else len(seen), round)
    env = AtServer(fed, round)
    after = method.step(state, aggregate, env)
    sent = server.sent if env.payload is None else kept(fed, server.sent, round, env.payload)
    what = Seen(seen, honest, aggregate, target.weights, clipped, now)
    return Server(after, aggregate, memory, server.recall if now is None else now.memory, sent), what


def _weights(fed: Federation, messages: Messages, ids: Ids) -> Tensor | None:
    """How much each row that the rule sees counts in the mean; None where they count alike, or are the mean already."""
    if messages.mean_only:
        return None
    who = np.arange(fed.experiment.clients) if fed.experiment.method.server_memory else ids
    if messages.examples is None or len(who) > len(ids):
        return fed.weights(who)
    silent = np.zeros(len(ids) - len(messages.examples), np.int64)  # of those who never compute
    return fed.weights(who, np.concatenate([messages.examples, silent]))


def _clipped(fed: Federation, messages: Messages, ids: Ids) -> float | None:
    """The share of honest messages that are as long as their clip lets them be; None where noise or a mean hides it."""
    tau, h = fed.experiment.method.message_clip, int((ids < fed.experiment.honest).sum())
    if tau is None or messages.mean_only or fed.message_privacy or not h or not len(messages.rows):
        return None
    return float((norms(messages.rows[:h]) >= (1 - AT_CLIP) * tau).double().mean())


def _remembered(fed: Federation, server: Server, ids: Ids, f: int) -> Callable[[Tensor], Recalled] | None:
    """What a rule that remembers makes of the rows that it sees; None for any other."""
    rule, method = fed.rule, fed.experiment.method
    if not isinstance(rule, MemoryRule):
        return None
    who = torch.from_numpy(np.arange(fed.experiment.clients) if method.server_memory else ids).to(fed.device)
    return lambda seen: recalled(rule, server.recall, who, seen, f, server.x, server.previous)


def _forge(fed: Federation, server: Server, stage: Stage, target: Target, round: int) -> tuple[Tensor, State]:
    """The rows (f, d) that the Byzantine clients send, and what the adversary remembers."""
    experiment, granted = fed.experiment, frozenset(fed.experiment.knowledge)
    if experiment.privacy is not None and experiment.privacy.level == "central":
        granted &= {"own"}  # what honest clients sent may move the mean only by itself
    if experiment.attack is None or not stage.f:
        return stage.own, server.memory
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
        numbers=stage.own.shape[1],
    )
    forged, memory = experiment.attack.remember(view, server.memory)
    require(experiment.attack, forged, (stage.f, stage.own.shape[1]), stage.honest)
    return _bounded(fed, forged), memory


def _bounded(fed: Federation, rows: Tensor) -> Tensor:
    """Rows as a trusted server takes them, none longer than the method's bound.

    Beside a row of 1e7 float32 carries no noise of 0.1, and what the others sent would show without it.
    """
    privacy, bound = fed.experiment.privacy, fed.experiment.method.message_bound
    if privacy is None or privacy.level != "central" or bound is None:
        return rows
    longer = norms(rows) > bound * (1 + 1e-4)  # an honest client's own clip rounds
    return torch.where(longer[:, None], clip_(rows.clone(), bound), rows)


def require(component: Component, given: object, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise `Invalid` where what a component gave back is no tensor of this shape, of the type and device of `like`."""
    name = type(component).__name__
    if not isinstance(given, Tensor):
        raise Invalid(f"{name}: gave back a {type(given).__name__}, must be a tensor of shape {shape}")
    got, wanted = (
        f"shape {tuple(each)}, {t.dtype}, on {t.device.type}"
        for each, t in ((given.shape, given), (shape, like))
    )
    if got != wanted:
        raise Invalid(f"{name}: gave back a tensor of {got}; must be of {wanted}")


def attempt(
    fed: Federation, server: Server, messages: Messages, answered: Ids, asked: Ids, round: int
) -> tuple[Server, Seen | None]:
    """`finish` with those of `asked` who answered: n shrinks, f stays; where the rule is then undefined, nothing moves.

    Those of them that never compute are there: the attack speaks for them, unless it has nobody to look at.
    """
    ids = np.concatenate([answered, asked[asked >= fed.computing]])
    attack, honest = fed.experiment.attack, answered < fed.experiment.honest
    if not len(answered) or (attack is not None and "honest" in attack.needs and not honest.any()):
        return server, None
    if len(ids) != fed.experiment.active and not _defined(fed, ids, round):
        return server, None
    return finish(fed, server, messages, ids, round)


def _defined(fed: Federation, ids: Ids, round: int) -> bool:
    """Whether the rule takes f of the rows that it would see if only clients `ids` took part."""
    experiment, method = fed.experiment, fed.experiment.method
    topology = _topology(fed, ids, round)
    rows = [experiment.clients if method.server_memory else len(ids)]
    try:
        for n in rows if topology is None else set(topology.sum(1).tolist()):
            fed.rule.require(n, experiment.f_round)
    except Invalid:
        return False
    return True


def _topology(fed: Federation, ids: Ids, round: int) -> Tensor | None:
    """Among peers: whose rows each node has; otherwise None."""
    experiment, method = fed.experiment, fed.experiment.method
    if not method.peer:
        return None
    honest = int((ids < experiment.honest).sum())
    return method.topology(len(ids), honest, experiment.f_round, fed.keys.generator("received", round))


def _in_messages(fed: Federation, server: Server, messages: Messages, ids: Ids, round: int) -> Stage:
    """Byzantine clients send forged messages."""
    rows, h = messages.rows, int((ids < fed.experiment.honest).sum())
    honest, own = rows[:h], rows[h:]
    senders = torch.from_numpy(ids).to(rows.device)

    def receive(sent: Tensor) -> tuple[State, Tensor]:  # of rows that are nobody else's
        return fed.experiment.method.receive(server.state, sent, senders, out=sent)

    def join(sent: Tensor) -> tuple[State, Tensor]:
        return receive(torch.cat([honest, sent if sent is own else as_read(fed, sent, round)]))

    def last(sent: Tensor) -> tuple[State, Tensor]:
        return receive(rows if sent is own else messages.with_forged(as_read(fed, sent, round), h))

    return Stage(honest, ids[:h], own, len(ids) - h, join, last)


def _in_memory(fed: Federation, server: Server, messages: Messages, ids: Ids, round: int) -> Stage:
    """Byzantine clients write the rows that the rule sees, whatever the server does to messages before."""
    sent, d = _in_messages(fed, server, messages, ids, round), messages.rows.shape[1]
    own = sent.own if len(sent.own) else messages.rows.new_zeros(sent.f, d)
    state, seen = sent.join(own)
    h = fed.experiment.honest if fed.experiment.method.server_memory else len(sent.honest)

    def join(forged: Tensor) -> tuple[State, Tensor]:
        return state, torch.cat([seen[:h], forged])

    who = np.arange(h) if fed.experiment.method.server_memory else sent.ids
    return Stage(seen[:h], who, seen[h:], len(seen) - h, join, join)
