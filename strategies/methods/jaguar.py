"""Without gradients: differences of losses along a few coordinates, which the server draws and the clients know."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.check import Count, Finite, Momentum
from fedsim.layout import Layout
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.oracles import NewtonSchulz, Norms, Sign, Spectral
from fedsim.types import Batch, State


@dataclass(frozen=True)
class JaguarSignSGD(Method):
    """JAGUAR SignSGD (arXiv:2506.04430): a momentum of finite differences, of a few coordinates each round.

    client  sends r_j = (f_i(x + tau e_j) - f_i(x - tau e_j)) / (2 tau) for the `coordinates` j in I, which all know
    server  m_I <- momentum m_I + (1 - momentum) RAgg(r);  x <- x - lr sign(m)
    A message is one number for each j in I, and costs two losses each. The authors' code moves a block at once, by one
    difference, and forgets m; this is the paper's algorithm. Losses are no gradients: example-level privacy is refused.
    """

    lr: Rate = 1e-3
    coordinates: Count = 8
    momentum: Momentum = 0.9
    tau: Finite = 1e-3

    def width(self, layout: Layout) -> int:
        return min(self.coordinates, layout.width)

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        found = []
        for j in self._places(env.common(env.layout.width)).tolist():
            e = torch.zeros_like(x)
            e[..., j] = self.tau
            found.append((env.loss(x + e, batch) - env.loss(x - e, batch)) / (2 * self.tau))
        return state, torch.stack(found, -1)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "m": torch.zeros_like(x)}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        there = self._places(env.common(env.layout.width)).to(aggregate.device)
        m = state["m"].index_copy(0, there, torch.lerp(aggregate, state["m"][there], self.momentum))
        return {"x": state["x"] - rate(self.lr, env.round) * self.norms.direction(m, env.layout), "m": m}

    @property
    def norms(self) -> Norms:
        return Norms.all(Sign())

    def _places(self, common: Tensor) -> Tensor:
        return common.argsort(stable=True)[: self.coordinates]


@dataclass(frozen=True)
class JaguarMuon(JaguarSignSGD):
    """JAGUAR Muon (arXiv:2506.04430): the same with x <- x - lr polar(m) for each matrix, by Newton-Schulz steps."""

    lr: Rate = 0.01
    newton_schulz: Count = 10

    @property
    def norms(self) -> Norms:
        return Norms.all(Spectral(polar=NewtonSchulz(self.newton_schulz)))
