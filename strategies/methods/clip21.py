"""Clipping with error feedback and two momenta: Clip21-SGD2M and its Byzantine-robust forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.check import ClipNorm, Share
from fedsim.layout import clip_
from fedsim.method import Env, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.traits import Clipped
from fedsim.types import Batch, State


@dataclass(frozen=True)
class ByzClip21SGD2M(Clipped):
    """Byz-Clip21-SGD2M, Algorithm 1 of arXiv:2603.23472.

    client  v_i <- (1 - beta) v_i + beta grad f_i(x);  q = clip_tau(v_i - g_i);  g_i <- g_i + beta_hat q;  sends
            c_i = q + noise
    server  m_i <- m_i + beta_hat c_i;  x <- x - lr RAgg(m_1 .. m_n)
    The noise enters the server's m_i and never the client's g_i. tau = inf, beta_hat = 1 and no noise is Algorithm 2.
    `beta` is the weight of the new gradient. The paper moves x first, with RAgg = 0 at the start: the same iterates.
    """

    server_memory: ClassVar[bool] = True

    lr: Rate
    tau: ClipNorm
    beta: Share = 0.1
    beta_hat: Share = 0.01

    def client_init(self, x: Tensor) -> State:
        return {"v": x.new_zeros(x.shape), "g": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        v = torch.lerp(state["v"], env.first_gradient(), self.beta, out=env.buffer("v"))
        q = clip_(v - state["g"], self.tau)
        g = torch.add(state["g"], q, alpha=self.beta_hat, out=env.buffer("g"))
        return {"v": v, "g": g}, env.noisy(q)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "m": x.new_zeros(n, x.numel())}

    def receive(
        self, state: State, rows: Tensor, ids: Tensor, *, out: Tensor | None = None
    ) -> tuple[State, Tensor]:
        if len(ids) == len(state["m"]):  # all, in order
            m = torch.add(state["m"], rows, alpha=self.beta_hat, out=out)
        else:
            m = state["m"].index_add(0, ids, rows, alpha=self.beta_hat)
        return {**state, "m": m}, m

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - rate(self.lr, env.round) * aggregate}


@dataclass(frozen=True)
class ByzClip21SGD2MPlus(ByzClip21SGD2M):
    """Byz-Clip21-SGD2M+, Algorithm 5 of arXiv:2603.23472: clip and noise inside, clipped difference outside.

    The same steps with tau the outer bound tau_o; privacy is example-level (`ExampleDP`, whose `clip` is the inner
    bound tau_i) and no noise is put on the message.
    """

    @property
    def message_bound(self) -> float | None:
        return None

    @property
    def message_clip(self) -> float | None:
        return super().message_bound


@dataclass(frozen=True)
class Clip21SGD2M(ByzClip21SGD2M):
    """Clip21-SGD2M, arXiv:2502.11682: no Byzantine clients, so the server keeps g <- g + beta_hat mean(c_i) alone.

    Equal to Byz-Clip21-SGD2M with rule = Mean and f = 0, with a server memory of d numbers in place of n d.
    """

    server_memory: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "g": x.new_zeros(x.shape), "n": x.new_tensor(float(n))}

    def receive(
        self, state: State, rows: Tensor, ids: Tensor, *, out: Tensor | None = None
    ) -> tuple[State, Tensor]:
        return {**state, "share": len(ids) / state["n"]}, rows

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        # absent clients count as zero, as in the n-row memory
        g = state["g"] + self.beta_hat * state["share"] * aggregate
        return {**state, "g": g, "x": state["x"] - rate(self.lr, env.round) * g}
