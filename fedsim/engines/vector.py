"""All clients as one tensor program, on a CPU or a GPU."""

from __future__ import annotations

from math import ceil, isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.federation import Federation
from fedsim.mechanism import Mechanism
from fedsim.threads import each
from fedsim.types import Batch, Method, State

CACHED = 2**20  # numbers in a group's rows on a CPU: small enough for the caches, large enough for Python
STEPPED = 2**21  # where a round has several steps, each a product: more of them at once, still not all


class Clients:
    """The `Env` of many clients at once."""

    sent: Tensor | None = None  # where their messages are to be, if anywhere

    def __init__(self, fed: Federation, ids: NDArray[np.int64], round: int, state: State) -> None:
        self.fed, self.ids, self.round, self.calls = fed, ids, round, 0
        self.mechanism = Mechanism.of(fed, ids, round, state)

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        return Gradient(self, x, batch).rows(slice(None), x.new_empty(len(self.ids), x.shape[-1]))

    def noisy(self, message: Tensor) -> Tensor:
        if self.fed.message_privacy is None:
            return message
        return self.fed.noisy(message, "message", self.round, self.ids, out=self.sent)

    def room(self, name: str) -> Tensor | None:
        return None

    @property
    def kept(self) -> State:
        """What the clients' states keep beside the method's own."""
        return self.mechanism.kept if self.mechanism else {}


class Gradient:
    """The gradients of clients at a point: what they follow from, of all at once, then those of some at a time."""

    def __init__(self, env: Clients, x: Tensor, batch: Batch) -> None:
        self.env, self.x, self.call = env, x, env.calls
        clip = env.mechanism.clip() if env.mechanism else None
        self.write = env.fed.gradients.prepare(x, batch, clip)
        self.mechanism = env.mechanism and env.mechanism.part(slice(None))  # as it is before it learns
        if env.mechanism and clip:
            env.mechanism.learn(clip, batch.weight, env.calls)
        env.calls += 1

    def rows(self, clients: slice, out: Tensor) -> Tensor:
        self.write(clients, out)
        if self.mechanism:
            self.mechanism.part(clients).noisy(out, self.call)
        return self.env.fed.regularise(out, self.x if self.x.dim() == 1 else self.x[clients])

    def total(self) -> Tensor:
        """The sum (d,) of all rows, of which none is written; of no use among peers."""
        n = len(self.env.ids)
        out = self.x.new_empty(1, self.x.shape[-1])
        self.write(slice(0, n), out)
        if self.mechanism:
            self.mechanism.noisy(out, self.call)
        return self.env.fed.regularise(out, n * self.x)[0]


class Group(Clients):
    """The `Env` of some of them, who need not work out the gradient that all ask for first."""

    sent: Tensor

    def __init__(
        self,
        env: Clients,
        part: slice,
        state: State,
        x: Tensor,
        batch: Batch,
        known: Gradient | None,
        after: State,
        sent: Tensor,
    ) -> None:
        super().__init__(env.fed, env.ids[part], env.round, state)
        self.env, self.part, self.x, self.batch, self.known = env, part, x, batch, known
        self.after, self.sent = after, sent  # where new states and messages are to be

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        known, self.known = self.known, None
        if known is None or x is not self.x or batch is not self.batch:
            return super().grad(x, batch)
        self.calls, self.mechanism = 1, self.env.mechanism and self.env.mechanism.part(self.part)
        # a gradient is likely to be the message, unless noise is still to come
        return known.rows(self.part, torch.empty_like(self.sent) if self.fed.message_privacy else self.sent)

    def room(self, name: str) -> Tensor | None:
        return self.after[name]


def rows(
    fed: Federation, states: State, x: Tensor, round: int, ids: NDArray[np.int64]
) -> tuple[State, Tensor]:
    """Shares of the clients, one a thread or more: the gradients of a share at once, what is made of them by groups.

    Where their mean is enough, messages are added up as they come, and gradients that are messages are none before
    they are added up. Where that is not finite all is done again message by message: the rule drops broken ones.
    """
    if fed.pooled:
        after, mean = _step(fed, states, x, round, ids, kept=False)
        if isfinite(mean.sum()):
            return after, mean
    return _step(fed, states, x, round, ids, kept=True)


def _step(
    fed: Federation, states: State, x: Tensor, round: int, ids: NDArray[np.int64], kept: bool
) -> tuple[State, Tensor]:
    """The states after the step; the messages (k, d) and room for others', or if not `kept` their mean (1, d)."""
    method, n, d = fed.experiment.method, len(ids), fed.x0.numel()
    at = x if not method.peer else x[: fed.computing]  # among peers all take part
    after = {name: torch.empty_like(value) for name, value in states.items()}
    once = method.steps == 1
    group_size = max(1, (CACHED if once else STEPPED) // d) if fed.device == "cpu" else n
    plain = type(method).client_step is Method.client_step  # sends the gradient
    messages = fed.x0.new_empty(len(fed.cohort(round)), d) if kept else None

    def work(share: slice) -> Tensor | None:
        mine = {name: value[share] for name, value in states.items()}
        env, here = Clients(fed, ids[share], round, mine), at[share] if method.peer else at
        batch = fed.batch(round, env.ids) if once else None
        known = Gradient(env, here, batch) if batch else None
        if known and not kept and plain:
            for name, value in (mine | env.kept).items():
                _put(value, after[name][share])
            return known.total()
        total = None if kept else fed.x0.new_zeros(d)
        places = fed.x0.new_empty(min(group_size, len(env.ids)), d) if messages is None else messages[share]
        for part in _cut(len(env.ids), group_size):
            those = batch.part(part) if batch else fed.batch(round, env.ids[part])
            state = {name: value[part] for name, value in mine.items()}
            new = {name: value[share][part] for name, value in after.items()}
            place = here[part] if method.peer else here
            room = places[part] if total is None else places[: part.stop - part.start]
            group = Group(env, part, state, place, those, known, new, room)
            state, sent = method.client_step(state, place, those, group)
            for name, value in (state | group.kept).items():
                _put(value, new[name])
            if total is None:
                _put(sent, room)
            else:
                total += sent.sum(0)
        return total

    route = fed.gradients.route or fed.gradients.choose(fed.batch(round, ids[:1]))
    threads = 1 if route.alone or fed.device != "cpu" or n * d < CACHED else torch.get_num_threads()
    size = ceil(n / threads)
    if once:
        b = ceil(fed.experiment.batches.expected(fed.sizes[ids]).max())
        size = min(size, fed.gradients.at_once(b, fed.example_privacy is not None))
    totals = list(each(work, _cut(n, size), fed.device))
    if messages is not None:
        return after, messages
    return after, torch.stack([total for total in totals if total is not None]).sum(0, keepdim=True) / n


def _put(value: Tensor, place: Tensor) -> None:
    if value.data_ptr() != place.data_ptr():
        place.copy_(value)


def _cut(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
