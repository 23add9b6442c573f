"""Votes of stochastic signs, with momentum and variance reduction: one bit a coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from fedsim.check import Momentum, Share
from fedsim.layout import norms
from fedsim.messages import All, Compressor, StochasticSigns
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.types import Batch, State

Bound = Annotated[float, Ge(1e-6), Le(1e6)]


@dataclass(frozen=True)
class StochasticVote(Method):
    """Majority vote on stochastic signs of a momentum (arXiv:2507.12091, variant 1); the rule is MajorityVote.

    client  v_i <- (1 - beta) v_i + beta grad f_i(x);  sends S(v_i / bound), coordinates clipped to the bound
    server  x <- x - lr RAgg(signs)
    """

    lr: Rate = 1e-3
    bound: Bound = 1.0
    beta: Share = 0.1

    @property
    def uplink(self) -> Compressor:
        return All(StochasticSigns(self.bound))

    def client_init(self, x: Tensor) -> State:
        return {"v": torch.zeros_like(x)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        v = torch.lerp(state["v"], env.first_gradient(), self.beta)
        return {"v": v}, env.compress(v)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - rate(self.lr, env.round) * aggregate}


@dataclass(frozen=True)
class SSVRMV(StochasticVote):
    """SSVR-MV, option 1 (arXiv:2406.00489): the vote of a variance-reduced momentum.

    client  v_i <- grad f_i(x) + (1 - beta) (v_i - grad f_i(x_before)), on one batch;  sends S(v_i / bound)
    server  x <- x - lr RAgg(signs), the rule being MajorityVote
    The vote is biased where clients differ: sign means (u, u, -2 u) give an expected vote of u^3.
    """

    beta: Share = 0.5

    @property
    def gradients(self) -> int:
        return 2

    def client_init(self, x: Tensor) -> State:
        return {"v": torch.zeros_like(x), "before": x.clone(), "begun": x.new_zeros(1)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        keep = (1 - self.beta) * state["begun"]
        v = env.first_gradient() + keep * (state["v"] - env.grad(state["before"], batch))
        return {"v": v, "before": x.expand(v.shape), "begun": torch.ones_like(keep)}, env.compress(v)


@dataclass(frozen=True)
class SSDM(Method):
    """Stochastic sign descent with momentum (arXiv:1905.12938, algorithm 3): no vote, the mean of unbiased signs.

    client  v_i <- momentum v_i + (1 - momentum) grad f_i(x), at first the gradient;  sends S(v_i / ||v_i||)
    server  x <- x - lr RAgg(signs), the rule being Mean
    """

    lr: Rate = 1e-3
    momentum: Momentum = 0.9

    @property
    def uplink(self) -> Compressor:
        return All(StochasticSigns(1.0))

    def client_init(self, x: Tensor) -> State:
        return {"v": torch.zeros_like(x), "begun": x.new_zeros(1)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        v = torch.lerp(state["v"], env.first_gradient(), 1 - self.momentum * state["begun"])
        norm = norms(v).unsqueeze(-1)
        unit = torch.where(norm > 0, v / norm, 0)
        return {"v": v, "begun": torch.ones_like(state["begun"])}, env.compress(unit)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - rate(self.lr, env.round) * aggregate}


@dataclass(frozen=True)
class DVRSign(Method):
    """DVR-Sign: differences of gradients, unbiased signs of these, and the sign of what the server adds up.

    client  h_i = grad f_i(x) - (1 - beta) grad f_i(x_before), on one batch;  sends Q(h_i)
    server  z <- (1 - beta) z + RAgg(Q(h_i));  x <- x - lr sign(z), or - lr z (`step` "mean")
    It has no floor where clients differ, as votes have ("Revisiting Distributed Sign-Based Variance Reduction").
    """

    linear: ClassVar[bool] = True

    lr: Rate = 1e-3
    beta: Share = 0.3
    up: Compressor = All(StochasticSigns())
    moves: Literal["sign", "mean"] = "sign"

    @property
    def uplink(self) -> Compressor:
        return self.up

    @property
    def gradients(self) -> int:
        return 2

    def client_init(self, x: Tensor) -> State:
        return {"before": x.clone(), "begun": x.new_zeros(1)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        keep = (1 - self.beta) * state["begun"]
        h = env.first_gradient() - keep * env.grad(state["before"], batch)
        return {"before": x.expand(h.shape), "begun": torch.ones_like(keep)}, env.compress(h)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "z": torch.zeros_like(x)}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        z = (1 - self.beta) * state["z"] + aggregate
        moved = z.sign() if self.moves == "sign" else z
        return {**state, "z": z, "x": state["x"] - rate(self.lr, env.round) * moved}
