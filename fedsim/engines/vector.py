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

CACHED = 2**18  # numbers in a group's rows on a CPU: a core's cache holds them with a few results
STEPPED = 2**21  # where a round has several steps, each a product: more of them at once, still not all


class Clients:
    """The `Env` of many clients at once."""

    def __init__(self, fed: Federation, ids: NDArray[np.int64], round: int, state: State) -> None:
        self.fed, self.ids, self.round, self.calls = fed, ids, round, 0
        self.mechanism = Mechanism.of(fed, ids, round, state)

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        clip = self.mechanism.clip() if self.mechanism else None
        rows = self.fed.gradients(x, batch, clip=clip)
        if self.mechanism and clip:
            rows = self.mechanism.noisy(rows, self.calls)
            self.mechanism.learn(clip, batch.weight, self.calls)
        self.calls += 1
        return self.fed.regularise(rows, x)

    def noisy(self, message: Tensor) -> Tensor:
        if self.fed.message_privacy is None:
            return message
        return self.fed.noisy(message.clone(), "message", self.round, self.ids)


class Group(Clients):
    """The `Env` of some of them, of whom the gradient at x on their batch may be known already."""

    def __init__(
        self, env: Clients, part: slice, state: State, x: Tensor, batch: Batch, known: Tensor | None
    ) -> None:
        super().__init__(env.fed, env.ids[part], env.round, state)
        self.x, self.batch, self.known = x, batch, known
        self.after = env.mechanism and env.mechanism.part(part)

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        known, self.known = self.known, None
        if known is None or x is not self.x or batch is not self.batch:
            return super().grad(x, batch)
        self.calls, self.mechanism = 1, self.after
        return known


def rows(
    fed: Federation, states: State, x: Tensor, round: int, ids: NDArray[np.int64]
) -> tuple[State, Tensor]:
    """The gradients of all at once; what a method makes of them group by group, so that it stays in the cache."""
    method, n, d = fed.experiment.method, len(ids), fed.x0.numel()
    at = x if not method.peer else x[: fed.computing]  # among peers all take part
    batch, env = fed.batch(round, ids), Clients(fed, ids, round, states)
    known = env.grad(at, batch) if method.steps == 1 else None
    messages = fed.x0.new_empty(n, d) if known is None else known  # a message takes its gradient's place
    after = {name: torch.empty_like(value) for name, value in states.items()}

    def step(part: slice) -> None:
        state = {name: value[part] for name, value in states.items()}
        here, those = (at[part] if method.peer else at), batch.part(part)
        group = Group(env, part, state, here, those, None if known is None else known[part])
        state, sent = method.client_step(state, here, those, group)
        for name, value in (state | (group.mechanism.kept if group.mechanism else {})).items():
            after[name][part] = value
        if sent.data_ptr() != messages[part].data_ptr():
            messages[part] = sent

    size = n if fed.device != "cpu" else max(1, (STEPPED if known is None else CACHED) // d)
    groups = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    for _ in map(step, groups) if known is None else each(step, groups, fed.device):
        pass
    return after, messages
