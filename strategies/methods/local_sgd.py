"""Local SGD in time (arXiv:2509.23207): K gradients a round as one batch, and local steps that are not the server's."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.layout import clip_
from fedsim.method import Env, ServerEnv
from fedsim.schedule import rate
from fedsim.strategies.methods.sgd import FedAvg
from fedsim.types import Batch, State


@dataclass(frozen=True)
class MinibatchSGD(FedAvg):
    """Minibatch SGD: K = `local_steps` gradients at x, of a batch each; x <- x - server_lr lr (1/n) sum_i sum_j g_ij.

    What `local_steps` of FedAvg cost, without a local step. Hero SGD, its other extreme, is FedAvg with one client.
    """

    idles: ClassVar[bool] = True

    weights: Literal["examples", "equal"] = "equal"

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        total = torch.zeros_like(x)
        for part in batch.split(self.local_steps):
            total = total + env.grad(x, part)
        return state, env.noisy(clip_(rate(self.lr, env.round) * total, self.tau))


@dataclass(frozen=True)
class DualLocalSGD(FedAvg):
    """Dual Local SGD: local steps are sqrt(n) times the server's: x <- x - sqrt(n) server_lr RAgg(x - z_1 .. x - z_n).

    z_i is what `local_steps` gradient steps of size lr came to, n the number of messages in the round.
    """

    linear: ClassVar[bool] = True
    weights: Literal["examples", "equal"] = "equal"

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "n": x.new_tensor(float(n))}

    def receive(
        self, state: State, rows: Tensor, ids: Tensor, *, out: Tensor | None = None
    ) -> tuple[State, Tensor]:
        return {**state, "n": torch.full_like(state["n"], len(ids))}, rows

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        scale = sqrt(float(state["n"])) * rate(self.server_lr, env.round)
        return {**state, "x": state["x"] - scale * aggregate}


@dataclass(frozen=True)
class DecayingLocalSGD(DualLocalSGD):
    """Decaying Local SGD: as Dual, the local step of number j being lr sqrt(K / ((j + 1) (1 + ln K))), j = 0 .. K - 1.

    Clients send lr sum_j g(z_j). The paper's own rule of decay is not public; this one keeps the sum of squared local
    steps within K lr^2.
    """

    idles: ClassVar[bool] = True

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        k, lr, y, total = self.local_steps, rate(self.lr, env.round), x, torch.zeros_like(x)
        for j, part in enumerate(batch.split(k)):
            g = env.grad(y, part)
            y, total = y - lr * sqrt(k / ((j + 1) * (1 + log(k)))) * g, total + g
        return state, env.noisy(clip_(lr * total, self.tau))
