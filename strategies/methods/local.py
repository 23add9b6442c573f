"""Methods that keep local steps from drifting apart: FedProx, SCAFFOLD, FedNova, FedDyn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.check import ClipNorm, Count, Finite, Invalid, Momentum, NonNegative
from fedsim.layout import Layout, clip_
from fedsim.method import Env, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.sgd import FedAvg
from fedsim.strategies.methods.traits import Clipped, LocalSteps
from fedsim.types import Batch, State


def descended(
    x: Tensor,
    batches: Iterable[Batch],
    env: Env,
    lr: float,
    pull: Callable[[Tensor], Tensor] | None = None,
    work: Tensor | None = None,
) -> Tensor:
    """y after a step y <- y - lr (grad f(y) + pull(y)) on each batch, from y = x, (d,) or (n, d).

    work  (1,) or (n, 1): a client that does less than all steps stays where it is after so many
    """
    y, spare = x, None
    for step, batch in enumerate(batches):
        new = env.descend(y, batch, lr, out=spare)
        if pull is not None:
            new.sub_(pull(y), alpha=lr)
        if work is not None:
            new = torch.where(step < work, new, y)
        spare, y = (None if y is x else y), new
    return y


def steps_done(env: Env, least: int, most: int) -> Tensor | None:
    """How many steps each client does in a round, `least` to `most` by chance, (1,) or (n, 1); None: all do `most`."""
    return None if least == most else least + (env.uniform(1) * (most - least + 1)).floor()


@dataclass(frozen=True)
class _Partial(FedAvg):
    """FedAvg in which a client may do less than all local steps: `least` to `local_steps`, drawn afresh each round."""

    least: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least is not None and self.least > self.local_steps:
            raise Invalid(
                f"{type(self).__name__}.least = {self.least}: at most local_steps = {self.local_steps}"
            )

    def _work(self, env: Env) -> Tensor | None:
        return steps_done(env, self.least or self.local_steps, self.local_steps)


@dataclass(frozen=True)
class FedProx(_Partial):
    """FedProx, arXiv:1812.06127, Algorithm 2: FedAvg with (mu / 2) ||y - x||^2 added to each client's loss.

    y <- y - lr (grad f_i(y) + mu (y - x)); with `least` a client does `least` to `local_steps` such steps by chance.
    """

    mu: NonNegative = 0.01

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        parts, lr = batch.split(self.local_steps), rate(self.lr, env.round)
        y = descended(x, parts, env, lr, lambda y: self.mu * (y - x), self._work(env))
        return state, env.noisy(clip_(x - y, self.tau))


@dataclass(frozen=True)
class SCAFFOLD(Clipped):
    """SCAFFOLD, arXiv:1910.06378, Algorithm 1: client and server control variates c_i and c, all 0 at first.

    client  K = `local_steps` times y <- y - lr (grad f_i(y) - c_i + c), from y = x
            c_i+ = grad f_i(x) on one more batch (option "I"), or c_i - c + (x - y) / (K lr) (option "II")
            sends (x - y, K lr (c_i+ - c_i)), 2 d numbers, as a whole clipped to norm tau; c_i moves by what it sent
    server  x <- x - server_lr RAgg(..);  c <- c + (|S| / N) RAgg(..) / (K lr), of all N clients the cohort S took part
    The rule sees both parts as one row; K lr gives both the unit of x, so that neither outweighs the other in
    distances, in the clip and under noise. With the mean, c is always the mean of all c_i. Option I is a round behind:
    where K lr times the clients' curvature is far above 1 (the paper asks for far below), it may diverge.
    """

    tells: ClassVar[tuple[str, ...]] = ("c",)
    linear: ClassVar[bool] = True

    lr: Rate
    local_steps: Count = 5
    server_lr: Rate = 1.0
    option: Literal["I", "II"] = "II"
    tau: ClipNorm = float("inf")

    @property
    def steps(self) -> int:
        return self.local_steps + (self.option == "I")

    def width(self, layout: Layout) -> int:
        return 2 * layout.width

    def client_init(self, x: Tensor) -> State:
        return {"c": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        parts, k, way = batch.split(self.steps), self.local_steps, self._way(env.round)
        c, own = env.told["c"], state["c"]
        moved = x - descended(x, islice(parts, k), env, way / k, lambda y: c - own)
        change = way * (env.grad(x, next(parts)) - own) if self.option == "I" else moved - way * c
        message = clip_(torch.cat([moved, change], -1), self.tau)
        return {"c": own + _over(message[..., x.shape[-1] :], way)}, env.noisy(message)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "c": x.new_zeros(x.shape), "n": x.new_tensor(float(n))}

    def receive(
        self, state: State, rows: Tensor, ids: Tensor, *, out: Tensor | None = None
    ) -> tuple[State, Tensor]:
        return {**state, "share": len(ids) / state["n"]}, rows

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        moved, change = aggregate.chunk(2)
        x = state["x"] - rate(self.server_lr, env.round) * moved
        return {**state, "x": x, "c": state["c"] + state["share"] * _over(change, self._way(env.round))}

    def _way(self, round: int) -> float:
        """K lr of a round."""
        return self.local_steps * rate(self.lr, round)


def _over(change: Tensor, way: float) -> Tensor:
    """change / way; 0 in a round whose step size is 0, which tells of no gradient."""
    return change / way if way else torch.zeros_like(change)


@dataclass(frozen=True)
class FedNova(_Partial):
    """FedNova, arXiv:2007.07481: clients of unequal work count alike, by the length of a step.

    client  m <- momentum m + grad f_i(y);  y <- y - lr m, tau_i times;  sends ((x - y) / a_i, a_i), d + 1 numbers, with
            a_i = (tau_i - momentum (1 - momentum^tau_i) / (1 - momentum)) / (1 - momentum), tau_i without momentum
    server  x <- x - server_lr a RAgg(..), a the rule's answer for a_i
    tau_i is `least` to `local_steps` by chance; where all are equal this is FedAvg. Messages have no bound: noise on
    messages, and central noise, are refused.
    """

    tau: ClipNorm = float("inf")
    momentum: Momentum = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isfinite(self.tau):
            raise Invalid(f"FedNova.tau = {self.tau}: messages are not clipped; allowed is inf")

    def width(self, layout: Layout) -> int:
        return layout.width + 1

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        lr, rho, work = rate(self.lr, env.round), self.momentum, self._work(env)
        y, m = x, None
        for step, part in enumerate(batch.split(self.local_steps)):
            g = env.grad(y, part)
            m = g if m is None else m.mul_(rho).add_(g)
            y = y - lr * m if work is None else torch.where(step < work, y - lr * m, y)
        moved = x - y
        done = moved.new_full((*moved.shape[:-1], 1), self.local_steps) if work is None else work.to(moved)
        a = (done - rho * (1 - rho**done) / (1 - rho)) / (1 - rho)
        return state, torch.cat([moved / a, a], -1)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        direction, a = aggregate[:-1], aggregate[-1]
        return {**state, "x": state["x"] - rate(self.server_lr, env.round) * a * direction}


@dataclass(frozen=True)
class FedDyn(LocalSteps, Clipped):
    """FedDyn, arXiv:2111.04263, Algorithm 1: each client's loss is bent until its minimum is that of all.

    client  y ~ argmin f_i(y) - <g_i, y> + (alpha / 2) ||y - x||^2 by `local_steps` gradient steps from y = x; sends
            x - y, clipped to norm tau;  g_i <- g_i + alpha (what it sent), 0 at first
    server  h <- h + alpha (|S| / N) RAgg(..);  x <- x - RAgg(..) - h / alpha
    """

    linear: ClassVar[bool] = True

    lr: Rate
    local_steps: Count = 5
    alpha: Finite = 0.01
    tau: ClipNorm = float("inf")

    def client_init(self, x: Tensor) -> State:
        return {"g": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        parts, lr = batch.split(self.local_steps), rate(self.lr, env.round)
        y = descended(x, parts, env, lr, lambda y: self.alpha * (y - x) - state["g"])
        moved = clip_(x - y, self.tau)
        g = torch.add(state["g"], moved, alpha=self.alpha, out=env.buffer("g"))
        return {"g": g}, env.noisy(moved)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "h": x.new_zeros(x.shape), "n": x.new_tensor(float(n))}

    def receive(
        self, state: State, rows: Tensor, ids: Tensor, *, out: Tensor | None = None
    ) -> tuple[State, Tensor]:
        return {**state, "share": len(ids) / state["n"]}, rows

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        h = state["h"] + self.alpha * state["share"] * aggregate
        return {**state, "h": h, "x": state["x"] - aggregate - h / self.alpha}
