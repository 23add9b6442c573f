"""MoNNA: momentum and nearest-neighbour averaging among peers, without a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fedsim.check import Momentum
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.types import Batch, State


@dataclass(frozen=True)
class MoNNA(Method):
    """MoNNA, arXiv:2209.10931: every node i keeps a model x_i of its own; the rule that goes with it is NNA.

    m_i <- momentum m_i + (1 - momentum) grad f_i(x_i);  sends x_i - lr m_i;  x_i <- RAgg(what it received).
    A node waits for n - f models: its own, all Byzantine ones (the worst case) and others of honest nodes by chance.
    The other rules in place of NNA are that paper's MoCWTM and MoGM; momentum = 0 their momentum-less forms.
    """

    peer: ClassVar[bool] = True

    lr: Rate
    momentum: Momentum = 0.99

    def client_init(self, x: Tensor) -> State:
        return {"m": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        m = torch.lerp(state["m"], env.first_gradient(), 1 - self.momentum, out=env.buffer("m"))
        return {"m": m}, x - rate(self.lr, env.round) * m

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x.expand(n, -1).clone()}

    def topology(self, n: int, honest: int, f: int, generator: Generator) -> Tensor:
        others = max(0, honest - f - 1)
        chance = torch.rand(honest, honest, generator=generator).fill_diagonal_(-1)
        mask = torch.ones(n, n, dtype=torch.bool)
        mask[:honest, :honest] = False
        mask[:honest, :honest].scatter_(1, chance.argsort(dim=1)[:, : others + 1], True)
        return mask

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {"x": aggregate}
