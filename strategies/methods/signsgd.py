"""Methods that send one sign a coordinate; the rule that goes with them is MajorityVote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.check import Momentum, NonNegative
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.types import Batch, State


@dataclass(frozen=True)
class SignSGD(Method):
    """signSGD with majority vote, arXiv:1810.05291: clients send sign(g_i); x <- x - lr (sign(sum_i .) + decay x)."""

    bits: ClassVar[int] = 1
    lr: Rate
    decay: NonNegative = 0.0

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        return state, env.first_gradient().sign()

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        x = state["x"]
        return {**state, "x": x - rate(self.lr, env.round) * (aggregate + self.decay * x)}


@dataclass(frozen=True)
class Signum(SignSGD):
    """Signum with majority vote, Algorithm 1 of arXiv:1810.05291.

    v_i <- momentum v_i + (1 - momentum) g_i, and clients send sign(v_i); `momentum` is the weight of the old value.
    """

    momentum: Momentum = 0.9

    def client_init(self, x: Tensor) -> State:
        return {"v": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        v = torch.lerp(state["v"], env.first_gradient(), 1 - self.momentum, out=env.buffer("v"))
        return {"v": v}, v.sign()
