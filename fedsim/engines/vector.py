"""All clients as one tensor program, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf, isfinite, log2

import torch
from torch import Tensor

from fedsim.env import AtClients, Draws, places
from fedsim.federation import Federation, Ids
from fedsim.gradients import hvps, losses
from fedsim.gradients.batched import Route
from fedsim.layout import LARGE, clip_, clip_factor
from fedsim.machine.threads import each, one_thread
from fedsim.mechanism import Mechanism
from fedsim.method import Method
from fedsim.round import Messages, told_to
from fedsim.types import Batch, Round, State, at

CACHED = 2**20  # numbers in a group's rows on a CPU: small enough for the caches, large enough for Python
ALONE = 2**26  # products of an example and a parameter, some 6 ms: so many are the work of one thread
STEPPED = 2**21  # where a round has several steps, each a product: more of them at once, still not all


class Clients(AtClients):
    """The `Env` of many clients at once."""

    sent: Tensor | None = None  # where their messages are to be, if anywhere

    def __init__(
        self, fed: Federation, ids: Ids, round: Round, state: State, told: State, batch: Batch | None
    ) -> None:
        super().__init__(fed, ids, round, told)
        self.batch = batch
        self.mechanism = Mechanism.of(fed, ids, round, state)

    def grad(self, x: Tensor, batch: Batch, tau: float = inf) -> Tensor:
        return Gradient(self, x, batch).rows(slice(None), self._empty(), tau)

    def first_gradient(self, tau: float = inf) -> Tensor:
        assert self.batch is not None
        return self.grad(self.x, next(self.batch.split(self.fed.experiment.method.steps)), tau)

    def descend(self, x: Tensor, batch: Batch, lr: float, out: Tensor | None = None) -> Tensor:
        return torch.sub(x, g := self.grad(x, batch), alpha=lr, out=g)

    def hvp(self, x: Tensor, v: Tensor, batch: Batch) -> Tensor:
        self.unaccounted("hvp")
        return self.fed.regularise(hvps(self.fed.gradients, x, v, batch), v)

    def loss(self, x: Tensor, batch: Batch) -> Tensor:
        self.unaccounted("loss")
        return losses(self.fed.gradients, x, batch) + self.fed.experiment.task.l2 / 2 * x.square().sum(-1)

    def uniform(self, count: int) -> Tensor:
        return self.draws.own(count)

    def compress(self, message: Tensor) -> Tensor:
        rounding = Draws(self.fed, "uplink", self.address, self.ids)
        return self.uplink(message, self.layout, rounding.own, places(self.fed, self.address))

    def noisy(self, message: Tensor) -> Tensor:
        if self.fed.message_privacy is None:
            return message
        self.noise_once()
        return self.fed.noisy(message, "message", self.address, self.ids, out=self.sent)

    def buffer(self, name: str) -> Tensor | None:
        return None

    def _empty(self) -> Tensor:
        """Memory for a gradient of each."""
        return self.fed.x0.new_empty(len(self.ids), self.fed.x0.numel())

    @property
    def kept(self) -> State:
        """What the clients' states keep beside the method's own."""
        return self.mechanism.kept if self.mechanism else {}


class Gradient:
    """The gradients of clients at a point: what they follow from, of all at once, then those of some at a time."""

    def __init__(self, env: Clients, x: Tensor, batch: Batch) -> None:
        # not the env, which keeps the first of its gradients: a cycle stays in memory until it is looked for
        self.fed, self.count, self.x, self.call = env.fed, len(env.ids), x, env.call(batch)
        clip = env.mechanism.clip() if env.mechanism else None
        self.batch, self.clip = batch, clip
        self.ready = env.fed.gradients.prepare(x, batch, clip)
        self.mechanism = env.mechanism and env.mechanism.part(slice(None))  # as it is before it learns
        if env.mechanism and clip:
            env.mechanism.learn(clip, batch.weight, self.call)

    def rows(self, clients: slice, out: Tensor, tau: float = inf) -> Tensor:
        self.ready.write(clients, out)
        if self.mechanism:
            self.mechanism.part(clients).noisy(out, self.call)
        whole = self.fed.regularise(out, self.x if self.x.dim() == 1 else self.x[clients])
        return clip_(whole, tau)

    def total(self, tau: float = inf) -> Tensor:
        """The sum (1, d) of all rows, of which none is written; not among peers, nor for sums that are clipped."""
        out = self.x.new_empty(1, self.x.shape[-1])
        if tau == inf:
            self.ready.write(slice(None), out)
        else:
            norm = self.ready.norms()
            known = norm <= LARGE
            self.ready.write(slice(None), out, clip_factor(norm, tau).where(known, 0))
            for i in (~known).nonzero()[:, 0].tolist():
                out += self.rows(slice(i, i + 1), torch.empty_like(out), tau)
        if self.mechanism:
            self.mechanism.noisy(out, self.call)
        return self.fed.regularise(out, self.count * self.x)


class Share(Clients):
    """As many as work at a time, in groups: the gradient that these ask for first, of all at once."""

    _first: Gradient | None = None

    @property
    def first(self) -> Gradient:
        """Worked out once; `cached_property` of Python 3.11 would let one thread work at a time."""
        if self._first is None:
            assert self.batch is not None  # None where a round has several steps: then groups draw theirs
            self._first = Gradient(self, self.x, self.batch)
        return self._first


class Group(Clients):
    """The `Env` of some of a share, part by part: what is made of their gradients stays in the caches."""

    sent: Tensor

    def __init__(
        self, share: Share, part: slice, state: State, batch: Batch, after: State, sent: Tensor
    ) -> None:
        apart = share.x.dim() == 2
        told = {name: value[part] for name, value in share.told.items()} if apart else share.told
        super().__init__(share.fed, share.ids[part], at(share.address, part), state, told, batch)
        self.share, self.part = share, part
        self.after, self.sent = after, sent  # where new states and messages are to be

    def grad(self, x: Tensor, batch: Batch, tau: float = inf) -> Tensor:
        return Gradient(self, x, batch).rows(slice(None), self._empty(), tau)

    def first_gradient(self, tau: float = inf) -> Tensor:
        if self.calls or self.share.batch is None:
            return super().first_gradient(tau)
        first = self.share.first
        self.call(self.share.batch.part(self.part))
        self.mechanism = self.share.mechanism and self.share.mechanism.part(self.part)
        # it is likely to be the message, unless noise is still to come
        message = self.fed.width == self.fed.x0.numel() and not self.fed.message_privacy
        return first.rows(self.part, self.sent if message else self._empty(), tau)

    def descend(self, x: Tensor, batch: Batch, lr: float, out: Tensor | None = None) -> Tensor:
        """One product, added to where the model is, and no gradient."""
        if self.mechanism:
            return super().descend(x, batch, lr)
        out = self._empty() if out is None else out
        gradient = Gradient(self, x, batch)  # all that needs x, which may be what is written over
        _put(x.expand_as(out), out)
        if l2 := self.fed.experiment.task.l2:
            out.mul_(1 - lr * l2)
        gradient.ready.write(slice(None), out, out.new_full((len(out),), -lr), added=True)
        return out

    def buffer(self, name: str) -> Tensor | None:
        return self.after[name]


@one_thread()
def rows(fed: Federation, states: State, told: State, round: Round, ids: Ids) -> tuple[State, Messages]:
    """The states after the step and the messages, with room for others; or where it is enough their mean.

    Then messages are added up as they come, and gradients that are messages are none before they are added up. Where
    that is not finite all is done again message by message: the rule drops broken ones.
    """
    if fed.mean_only:
        after, mean = _sum(fed, states, told, round, ids) or _step(fed, states, told, round, ids, None)
        if isfinite(mean.sum()):
            return after, Messages(mean, mean_only=True)
    room = len(fed.cohort(round)) if isinstance(round, int) else len(ids)
    spare = fed.space.empty(fed.x0, room, fed.width)
    after, _ = _step(fed, states, told, round, ids, spare)
    return after, Messages(spare[: len(ids)], spare)


def _sum(fed: Federation, states: State, told: State, round: Round, ids: Ids) -> tuple[State, Tensor] | None:
    """The states after the step and the mean message (1, d) of clients who send their gradient, by whole products.

    None where they send anything else, or clip what follows from the layers no more.
    """
    method, route = fed.experiment.method, _route(fed, ids, round)
    if type(method).client_step is not Method.client_step or fed.weights(ids) is not None:
        return None
    tau = method.message_bound or inf
    if tau < inf and (fed.example_privacy or fed.experiment.task.l2 or not route.normed):
        return None
    after = {name: fed.space.empty(value, *value.shape) for name, value in states.items()}

    def work(part: slice) -> Tensor:
        mine = {name: value[part] for name, value in states.items()}
        env = Share(fed, ids[part], round, mine, told, fed.batch(round, ids[part]))
        sent = env.first.total(tau)
        for name, value in after.items():
            _put(env.kept.get(name, mine[name]), value[part])
        return fed.noisy(sent, "message", round, env.ids, out=sent) if fed.message_privacy else sent

    return after, _added(fed, work, _shares(fed, ids, round)) / len(ids)


def _added(fed: Federation, work: Callable[[slice], Tensor], shares: list[slice]) -> Tensor:
    """The sum (1, width) of what `work` gives for each share, as it comes, in order."""
    total = fed.x0.new_zeros(1, fed.width)
    for sent in each(work, shares, fed.device):
        total += sent
    return total


def _step(
    fed: Federation, states: State, told: State, round: Round, ids: Ids, spare: Tensor | None
) -> tuple[State, Tensor]:
    """Shares of the clients, each on one thread: the gradients of a share at once, what is made of them by groups.

    The states after the step; the messages, written to `spare`, or their mean (1, d) where that is None.
    """
    method, width = fed.experiment.method, fed.width
    after = {name: fed.space.empty(value, *value.shape) for name, value in states.items()}
    once = method.steps == 1
    cached = (CACHED if once else STEPPED) // max(width, fed.x0.numel())
    group_size = max(1, cached) if fed.device == "cpu" else len(ids)
    weights = fed.weights(ids)
    count = None if weights is None else len(ids) * weights.to(fed.x0)

    def work(share: slice) -> Tensor:
        mine = {name: value[share] for name, value in states.items()}
        here, now = told_to(fed, told, ids, share), at(round, share)
        env = Share(fed, ids[share], now, mine, here, fed.batch(now, ids[share]) if once else None)
        total = fed.x0.new_zeros(1, 0 if spare is not None else width)
        places = fed.x0.new_empty(min(group_size, len(env.ids)), width) if spare is None else spare[share]
        for part in _cut(len(env.ids), group_size):
            new = {name: value[share][part] for name, value in after.items()}
            place = places[: part.stop - part.start] if spare is None else places[part]
            state = {name: value[part] for name, value in mine.items()}
            batch = env.batch.part(part) if env.batch else fed.batch(at(now, part), env.ids[part])
            group = Group(env, part, state, batch, new, place)
            state, sent = method.client_step(state, group.x, batch, group)
            group.require_noised()
            for name, value in (state | group.kept).items():
                _put(value, new[name])
            if spare is None:
                total += sent.sum(0) if count is None else count[share][part] @ sent
            else:
                _put(sent, place)
        return total

    shares = _shares(fed, ids, round)
    if spare is None:
        return after, _added(fed, work, shares) / len(ids)
    for _ in each(work, shares, fed.device):
        pass
    return after, spare


def _shares(fed: Federation, ids: Ids, round: Round) -> list[slice]:
    """The clients in shares, cut by the shape of their work alone, not by threads: sums depend on where they are cut.

    A share costs time of its own: four times the work are twice as many. The gradients of a step fit the memory.
    """
    n, steps, route = len(ids), fed.experiment.method.steps, _route(fed, ids, round)
    products = n * steps * _examples(fed, ids) * fed.x0.numel()
    alone = route.alone or fed.device != "cpu" or products < ALONE
    size = n if alone else ceil(n / 2 ** int(0.5 + log2(products / ALONE) / 2))
    return _cut(n, size if steps > 1 else min(size, _at_once(fed, ids)))


def _at_once(fed: Federation, ids: Ids) -> int:
    """How many clients' gradients of one step fit the memory, once the route to them is known."""
    return fed.gradients.at_once(_examples(fed, ids), fed.example_privacy is not None)


def _examples(fed: Federation, ids: Ids) -> int:
    """How many examples a client's step takes, at the most that are expected."""
    return ceil(float(fed.experiment.batches.expected(fed.sizes[ids]).max()))


def _route(fed: Federation, ids: Ids, round: Round) -> Route:
    steps = fed.experiment.method.steps
    return fed.gradients.route or fed.gradients.choose(
        next(fed.batch(at(round, slice(1)), ids[:1]).split(steps))
    )


def _put(value: Tensor, place: Tensor) -> None:
    if value.data_ptr() != place.data_ptr():
        place.copy_(value)


def _cut(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
