"""Muon: matrices move by the polar factor of a momentum, all else by Adam; on the server, or on the clients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fedsim.check import Finite, Momentum, NonNegative, Share
from fedsim.layout import Role
from fedsim.messages import All, Compressor, StochasticSigns
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.optimizer import Here, ServerOptimizer, adam, begun, moved
from fedsim.strategies.oracles import NewtonSchulz, Norms, Sign, Spectral
from fedsim.strategies.oracles.polar import Polar
from fedsim.types import Batch, State


@dataclass(frozen=True)
class Muon(ServerOptimizer):
    """Muon (K. Jordan, 2024) on the server, of one gradient: what the rule makes of the clients' gradients.

    matrices  m <- momentum m + g;  u = sqrt(max(1, rows / columns)) polar(g + momentum m), or polar(m) without nesterov
    all else  u = adam times the direction of Adam(b1, b2, epsilon), so that its step size is adam lr
    A kernel (c_out, c_in, k, k) is flat, c_out rows, its factor 1 as in the reference. `roles` are those of matrices;
    the author leaves embeddings and the output layer to Adam. Behind noise the polar factor is post-processing.
    """

    lr: Rate = 0.02
    momentum: Momentum = 0.95
    nesterov: bool = True
    polar: Polar = NewtonSchulz()
    roles: tuple[Role, ...] = ("input", "hidden", "conv")
    adam: Finite = 0.015
    b1: Momentum = 0.9
    b2: Momentum = 0.95
    epsilon: NonNegative = 1e-10

    def start(self, x: Tensor) -> State:
        return begun(x)

    def turn(self, state: State, g: Tensor, env: Here) -> tuple[State, Tensor]:
        """All layers as matrices, and in the others' place then Adam; its v of matrices stays 0."""
        m = torch.add(g, state["m"], alpha=self.momentum)
        ahead = torch.add(g, m, alpha=self.momentum) if self.nesterov else m
        u, v = self._norms.direction(ahead, env.layout), state["v"].clone()
        start = 0
        for block in env.layout.blocks:
            at = slice(start, start + block.size)
            start += block.size
            if block.role not in self.roles:
                kept, way = adam(
                    {"m": state["m"][..., at], "v": v[..., at], "t": state["t"]},
                    g[..., at], self.b1, self.b2, self.epsilon,
                )  # fmt: skip
                m[..., at], v[..., at], u[..., at] = kept["m"], kept["v"], self.adam * way
        return {"m": m, "v": v, "t": state["t"] + 1}, u

    @property
    def _norms(self) -> Norms:
        flat, kernel = Spectral("muon", self.polar), Spectral("one", self.polar)
        ways: dict[str, Any] = {role: kernel if role == "conv" else flat for role in self.roles}
        return replace(Norms.all(Sign()), **ways)


@dataclass(frozen=True)
class ClientMuon(Muon):
    """Muon on each client, before the rule: clients keep m, v and send u_i; x <- x - lr (RAgg(u_1 .. u_n) + decay x).

    A mean of polar factors is shorter than one: where clients differ, or their noise, the step shrinks. tau clips
    gradients here; a message has no bound, so privacy is example-level.
    """

    @property
    def message_bound(self) -> float | None:
        return None

    def client_init(self, x: Tensor) -> State:
        return self.start(x)

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        return self.turn(state, env.first_gradient(self.tau), env)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": moved(state["x"], aggregate, rate(self.lr, env.round), self.decay)}


@dataclass(frozen=True)
class SignMuon(Method):
    """SignMuon (arXiv:2605.16311): clients send one bit a coordinate; the rule is MajorityVote.

    m_i <- (1 - beta) m_i + beta grad f_i(x), and with s the sign
    sign  "after": sends s(-LMO(m_i)), u = vote; "before": sends s(m_i), u = -LMO(vote); "both": s(-LMO(m_i)) and
          u = -LMO(vote);  x <- x - lr u
    A sign of 0 is drawn, +1 or -1 with equal chance: that is the price of one bit. Each of the three can climb on a
    linear function (arXiv:2607.29674).
    """

    lr: Rate = 1e-3
    beta: Share = 0.1
    sign: Literal["after", "before", "both"] = "after"
    norms: Norms = Norms.all(Spectral())

    @property
    def uplink(self) -> Compressor:
        return All(StochasticSigns(1.0))

    def client_init(self, x: Tensor) -> State:
        return {"m": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        m = torch.lerp(state["m"], env.first_gradient(), self.beta)
        way = m if self.sign == "before" else self.norms.direction(m, env.layout)
        return {"m": m}, env.compress(way.sign())

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        u = aggregate if self.sign == "after" else self.norms.direction(aggregate, env.layout)
        return {**state, "x": state["x"] - rate(self.lr, env.round) * u}
