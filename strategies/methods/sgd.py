"""Methods that send a gradient, a momentum or the outcome of local steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.check import ClipNorm, Count, Momentum
from fedsim.layout import clip_
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.traits import Clipped, LocalSteps
from fedsim.types import Batch, State


@dataclass(frozen=True)
class FedSGD(Method):
    """Clients send g_i = grad f_i(x); the server steps x <- x - lr * RAgg(g_1 .. g_n)."""

    lr: Rate

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - rate(self.lr, env.round) * aggregate}


@dataclass(frozen=True)
class HeavyBall(FedSGD):
    """Robust distributed heavy ball (D-SHB): m_i <- momentum * m_i + (1 - momentum) * g_i, and clients send m_i.

    `momentum` is the weight of the old value. With Byz-Clip21-SGD2M's tau = inf and no noise the two are one method
    (its Algorithm 2, with beta = 1 - momentum). Source: Algorithm 3 of arXiv:2302.01772.
    """

    momentum: Momentum = 0.9

    def client_init(self, x: Tensor) -> State:
        return {"m": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        m = torch.lerp(state["m"], env.first_gradient(), 1 - self.momentum, out=env.buffer("m"))
        return {"m": m}, m


@dataclass(frozen=True)
class FedAvg(LocalSteps, Clipped):
    """`local_steps` gradient steps y <- y - lr * g_i(y) from y = x; clients send x - y, clipped to norm tau.

    The server steps x <- x - server_lr * RAgg(...). With the mean, server_lr = 1 and tau = inf this is FedAvg
    (arXiv:1602.05629, Algorithm 1), with a finite tau and noise it is DP-FedAvg (arXiv:1710.06963).
    weights  "examples": client i counts m_i / m in the mean, m_i its examples, m those of all who answered, as in the
             paper; "equal": all alike. A robust rule never weighs: what a client says of itself is no evidence. A
             Byzantine client that holds none counts as the average of the others.
    """

    idles: ClassVar[bool] = True

    lr: Rate
    local_steps: Count = 5
    server_lr: Rate = 1.0
    tau: ClipNorm = float("inf")
    weights: Literal["examples", "equal"] = "examples"

    @property
    def by_examples(self) -> bool:
        return self.weights == "examples"

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        y, out, lr = x, None, rate(self.lr, env.round)
        for part in batch.split(self.local_steps):
            y = out = env.descend(y, part, lr, out=out)
        return state, env.noisy(clip_(x - y, self.tau))

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - rate(self.server_lr, env.round) * aggregate}
