"""Asynchronous methods that act on single messages, or on so many at a time, so that a rule has what it compares."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.asynchronous import Buffered, Due
from fedsim.check import ClipNorm, Count, Invalid, NonNegative, Share, StepSize
from fedsim.layout import clip_
from fedsim.method import Env, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.traits import Clipped, LocalSteps
from fedsim.types import Batch, State


@dataclass(frozen=True)
class AsyncSGD(Clipped, Buffered):
    """Asynchronous SGD: x <- x - lr g for every gradient g that comes, at whatever model it was worked out.

    buffer    so many at a time: x <- x - lr RAgg(g_1 .. g_buffer)
    distinct  of each client the newest one alone
    tau       L2 norm that a client clips its gradient to
    """

    lr: Rate
    buffer: Count = 1
    distinct: bool = False
    tau: ClipNorm = float("inf")

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        return state, self.put(state, row, client)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": aggregate.mul(-rate(self.lr, env.round)).add_(state["x"])}


@dataclass(frozen=True)
class DelayAdaptiveSGD(AsyncSGD):
    """Delay-adaptive asynchronous SGD: x <- x - lr min(1, n / delay) g (arXiv:2206.07638, arXiv:2206.08307).

    The delay is the number of updates since the client was handed the model at which g was worked out.
    """

    def server_init(self, x: Tensor, n: int) -> State:
        return {**super().server_init(x, n), "n": torch.tensor(n)}

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        n = int(state["n"])
        return super().arrive(state, row * (n / max(n, age)), client, age)


@dataclass(frozen=True)
class Ringmaster(AsyncSGD):
    """Ringmaster ASGD, arXiv:2501.16168: x <- x - lr g where g is less than R updates old; older ones are ignored.

    Who sent an older one is handed the model. stops: and so is, before it is done, whoever is R updates behind.
    For clients with data alike: it silences the slow ones.
    """

    R: Count = 10
    stops: bool = False

    def server_init(self, x: Tensor, n: int) -> State:
        handed = {"updates": torch.tensor(0), "since": torch.zeros(n, dtype=torch.int64)}
        return {**super().server_init(x, n), **handed, "client": torch.tensor(-1), "late": torch.tensor([])}

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        state["since"][client] = state["updates"]  # it is handed the model, whatever comes of its message
        state["client"] = torch.tensor(client)
        return (state, None) if age >= self.R else super().arrive(state, row, client, age)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        updates, since = state["updates"] + 1, state["since"]
        since[state["client"]] = updates
        late = (updates - since >= self.R).nonzero()[:, 0] if self.stops else since[:0]
        since[late] = updates
        return {**super().step(state, aggregate, env), "updates": updates, "late": late}

    def restart(self, state: State, client: int, moved: bool) -> list[int]:
        return [client, *(state["late"].tolist() if moved else [])]


@dataclass(frozen=True)
class Rennala(AsyncSGD):
    """Rennala SGD, arXiv:2305.12387: all work at one model; x <- x - lr (1/S) sum_j g_j, of the first S gradients.

    S is `buffer`. For clients with data alike: a fast one counts as often as it sends.
    stops  who is at work then begins anew at the new model; otherwise it finishes, and what it sends does not count
    """

    stops: bool = True

    def server_init(self, x: Tensor, n: int) -> State:
        return {**super().server_init(x, n), "n": torch.tensor(n), "stale": torch.tensor(False)}

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        state["stale"] = torch.tensor(age > 0)
        return (state, None) if age > 0 else super().arrive(state, row, client, age)

    def restart(self, state: State, client: int, moved: bool) -> list[int]:
        if moved and self.stops:
            return list(range(int(state["n"])))
        return [client] if moved or state["stale"] else []


@dataclass(frozen=True)
class FedBuff(LocalSteps, AsyncSGD):
    """FedBuff, arXiv:2106.06639: x <- x - server_lr RAgg(w_1 u_1 .. w_K u_K), K = `buffer`, w = (1 + delay)^-power.

    u = x' - y is what `local_steps` gradient steps y <- y - lr g(y) from the client's model x' came to, clipped to tau.
    """

    idles: ClassVar[bool] = True

    lr: StepSize
    buffer: Count = 10
    local_steps: Count = 1
    server_lr: Rate = 1.0
    power: NonNegative = 0.5

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        y, out = x, None
        for part in batch.split(self.local_steps):
            y = out = env.descend(y, part, self.lr, out=out)
        return state, env.noisy(clip_(x - y, self.tau))

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        return super().arrive(state, row * (1 + age) ** -self.power, client, age)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - rate(self.server_lr, env.round) * aggregate}


@dataclass(frozen=True)
class FedAsync(FedBuff):
    """FedAsync, arXiv:1903.03934: x <- (1 - w) x + w y, w = mix (1 + delay)^-power; clients send their model y.

    It is what `local_steps` steps y <- y - lr (g(y) + prox (y - x')) from the model x' come to. With a `buffer`:
    x <- x - mix RAgg((1 + delay_j)^-power (x - y_j)).
    """

    buffer: Count = 1
    mix: Share = 0.6
    prox: NonNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isfinite(self.tau) or self.server_lr != 1.0:
            raise Invalid(
                f"FedAsync: tau = {self.tau:g} and server_lr = {self.server_lr}: its clients send models, which are "
                "mixed; allowed are inf and 1, or FedBuff"
            )

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        y, out = x, None
        for part in batch.split(self.local_steps):
            pull = self.lr * self.prox * (y - x)
            y = out = env.descend(y, part, self.lr, out=out).sub_(pull)
        return state, env.noisy(y)

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        return super().arrive(state, state["x"] - row, client, age)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - self.mix * aggregate}
