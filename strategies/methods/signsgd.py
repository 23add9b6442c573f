"""Methods that send one sign a coordinate; the rule that goes with them is MajorityVote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.check import Count, Invalid, Momentum, NonNegative
from fedsim.messages import All, Compressor, StochasticSigns, Votes
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.estimators import Weight, weight
from fedsim.types import Batch, State


@dataclass(frozen=True)
class SignSGD(Method):
    """signSGD with majority vote, arXiv:1810.05291: clients send sign(g_i); x <- x - lr (sign(sum_i .) + decay x).

    zeros  of a gradient: "sent" as no vote, with 1.6 bits a coordinate; or by a fair "coin" as plus or minus, with one
    """

    responds: ClassVar[bool] = True

    lr: Rate
    decay: NonNegative = 0.0
    zeros: Literal["sent", "coin"] = "sent"

    @property
    def uplink(self) -> Compressor:
        return All(Votes() if self.zeros == "sent" else StochasticSigns(1.0))

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        return state, env.compress(env.respond(env.first_gradient().sign()))

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
        return {"v": v}, env.compress(env.respond(v.sign()))


@dataclass(frozen=True)
class HeavyTailSign(SignSGD):
    """Signs under heavy-tailed noise (arXiv:2502.07923): each client draws several batches a round.

    by  "mean": sign of the mean gradient, minibatch-SignSGD; "vote": sign of the sum of their signs, ties 0,
        MajorityVote-SignSGD, for noise that is symmetric
    eta is the weight of the new mean gradient in a momentum, M-SignSGD; a vote has none. The rule is MajorityVote.
    Any eta and lr that fall as Decay(1/2) and Power(lr, 3/4) do need not be tuned.
    """

    samples: Count = 8
    by: Literal["mean", "vote"] = "mean"
    eta: Weight = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == "vote" and self.eta != 1:
            raise Invalid(
                f"HeavyTailSign.eta = {self.eta}: a vote has no momentum; allowed is 1, or by = 'mean'"
            )

    @property
    def steps(self) -> int:
        return self.samples

    def client_init(self, x: Tensor) -> State:
        return {} if self.by == "vote" else {"v": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        gradients = (env.grad(x, part) for part in batch.split(self.samples))
        if self.by == "vote":
            votes = sum((g.sign() for g in gradients), torch.zeros_like(x))
            return state, env.compress(env.respond(votes.sign()))
        mean = sum(gradients, torch.zeros_like(x)) / self.samples
        v = torch.lerp(state["v"], mean, weight(self.eta, env.round))
        return {"v": v}, env.compress(env.respond(v.sign()))
