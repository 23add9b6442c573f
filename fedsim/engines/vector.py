"""All clients as one tensor program, on a CPU or a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.federation import Federation
from fedsim.mechanism import Mechanism
from fedsim.threads import each
from fedsim.types import Batch, State

CACHED = 2**20  # numbers in a group's rows on a CPU: small enough for the caches, large enough for Python
STEPPED = 2**21  # where a round has several steps, each a product: more of them at once, still not all


class Clients:
    """The `Env` of many clients at once."""

    def __init__(self, fed: Federation, ids: NDArray[np.int64], round: int, state: State) -> None:
        self.fed, self.ids, self.round, self.calls = fed, ids, round, 0
        self.mechanism = Mechanism.of(fed, ids, round, state)

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        return Gradient(self, x, batch).rows(slice(None), x.new_empty(len(self.ids), x.shape[-1]))

    def noisy(self, message: Tensor) -> Tensor:
        if self.fed.message_privacy is None:
            return message
        return self.fed.noisy(message, "message", self.round, self.ids)


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


class Group(Clients):
    """The `Env` of some of them, who need not work out the gradient that all ask for first."""

    def __init__(
        self,
        env: Clients,
        part: slice,
        state: State,
        x: Tensor,
        batch: Batch,
        known: Gradient | None,
        sent: Tensor,
    ) -> None:
        super().__init__(env.fed, env.ids[part], env.round, state)
        self.env, self.part, self.x, self.batch, self.known, self.sent = env, part, x, batch, known, sent

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        known, self.known = self.known, None
        if known is None or x is not self.x or batch is not self.batch:
            return super().grad(x, batch)
        self.calls, self.mechanism = 1, self.env.mechanism and self.env.mechanism.part(self.part)
        # a gradient is likely to be the message, unless noise is still to come
        return known.rows(self.part, torch.empty_like(self.sent) if self.fed.message_privacy else self.sent)

    def noisy(self, message: Tensor) -> Tensor:
        if self.fed.message_privacy is None:
            return message
        return self.fed.noisy(message, "message", self.round, self.ids, out=self.sent)


def rows(
    fed: Federation, states: State, x: Tensor, round: int, ids: NDArray[np.int64]
) -> tuple[State, Tensor]:
    """The gradients of all at once; what a method makes of them group by group, so that it stays in the cache."""
    method, n, d = fed.experiment.method, len(ids), fed.x0.numel()
    at = x if not method.peer else x[: fed.computing]  # among peers all take part
    env, messages = Clients(fed, ids, round, states), fed.x0.new_empty(n, d)
    batch = fed.batch(round, ids) if method.steps == 1 else None
    known = Gradient(env, at, batch) if batch else None
    after = {name: torch.empty_like(value) for name, value in states.items()}

    def step(part: slice) -> None:
        state = {name: value[part] for name, value in states.items()}
        here = at[part] if method.peer else at
        those = batch.part(part) if batch else fed.batch(round, ids[part])
        group = Group(env, part, state, here, those, known, messages[part])
        state, sent = method.client_step(state, group.x, group.batch, group)
        for name, value in (state | (group.mechanism.kept if group.mechanism else {})).items():
            after[name][part] = value
        if sent.data_ptr() != group.sent.data_ptr():
            messages[part] = sent

    size = n if fed.device != "cpu" else max(1, (CACHED if batch else STEPPED) // d)
    groups = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    for _ in each(step, groups, fed.device) if batch else map(step, groups):
        pass
    return after, messages
