"""Methods after which every client has a model of its own, and one that cares for the clients who fare worst."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor

from fedsim.check import Count, Finite, Invalid, NonNegative
from fedsim.layout import Layout, clip_, norms
from fedsim.method import Env, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.local import descended
from fedsim.strategies.methods.sgd import FedAvg
from fedsim.strategies.methods.traits import LocalSteps
from fedsim.types import Batch, State


@dataclass(frozen=True)
class Ditto(FedAvg):
    """Ditto, arXiv:2012.04221, Algorithm 1: FedAvg, and beside it a model v_i of each client's own, v_i = x at first.

    `personal_steps` times v_i <- v_i - lr (grad f_i(v_i) + pull (v_i - x)) on further batches, after the local steps.
    v_i never leaves the client.
    """

    personal_steps: Count = 5
    pull: NonNegative = 1.0

    @property
    def steps(self) -> int:
        return self.local_steps + self.personal_steps

    def client_init(self, x: Tensor) -> State:
        return {"v": x}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        parts, lr = batch.split(self.steps), rate(self.lr, env.round)
        y = descended(x, islice(parts, self.local_steps), env, lr)
        v = descended(state["v"], parts, env, lr, lambda v: self.pull * (v - x))
        return {"v": v}, env.noisy(clip_(x - y, self.tau))

    def personal(self, state: State, x: Tensor, layout: Layout) -> Tensor:
        return state["v"]


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedPer, arXiv:1912.00818: FedAvg in which a part of the model stays with each client: trained, and never sent.

    kept  what stays, as `Layout.chosen` has it: "head", "norm", roles, or names of parameters such as "3.*"
    The server's model keeps that part as it was at first; clients begin with it.
    """

    kept: tuple[str, ...] = ("head",)

    def width(self, layout: Layout) -> int:
        kept = int(layout.chosen(self.kept).sum())
        if not 0 < kept < layout.width:
            raise Invalid(
                f"{type(self).__name__}.kept = {list(self.kept)}: keeps {kept} of {layout.width} numbers; allowed is "
                "a part of them"
            )
        return layout.width - kept

    def client_init(self, x: Tensor) -> State:
        return {"own": x}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        start = self.personal(state, x, env.layout)
        y = descended(start, batch.split(self.local_steps), env, rate(self.lr, env.round))
        shared = self._shared(env.layout, x)
        message = (start - y).index_select(-1, shared)
        return {"own": y}, env.noisy(clip_(message, self.tau))

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        move = -rate(self.server_lr, env.round) * aggregate
        return {**state, "x": state["x"].index_add(0, self._shared(env.layout, aggregate), move)}

    def personal(self, state: State, x: Tensor, layout: Layout) -> Tensor:
        return torch.where(layout.chosen(self.kept).to(x.device), state["own"], x)

    def _shared(self, layout: Layout, like: Tensor) -> Tensor:
        """The places of what is sent."""
        return (~layout.chosen(self.kept)).nonzero()[:, 0].to(like.device)


@dataclass(frozen=True)
class FedBN(FedPer):
    """FedBN, arXiv:2102.07623: FedAvg in which norms stay with each client; here group and layer norms."""

    kept: tuple[str, ...] = ("norm",)


@dataclass(frozen=True)
class QFFL(LocalSteps):
    """q-FedAvg, arXiv:1905.10497, Algorithm 2: clients of larger loss count more, fairer as q grows.

    client  F = f_i(x) on its first batch, D = (x - y) / lr after `local_steps` steps;
            sends (F^q D, q F^(q-1) ||D||^2 + F^q / lr), d + 1 numbers
    server  x <- x - RAgg(..) / RAgg(..), of the two parts
    q = 0 is FedAvg with all alike. Losses are told: privacy by examples is refused, and messages have no bound.
    """

    lr: Rate
    local_steps: Count = 5
    q: NonNegative = 1.0
    least: Finite = 1e-10  # added to F, whose powers below 0 may be

    def width(self, layout: Layout) -> int:
        return layout.width + 1

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        parts, lr = batch.split(self.local_steps), rate(self.lr, env.round)
        first = next(parts)
        loss = (env.loss(x, first) + self.least).unsqueeze(-1)
        d = (x - descended(x, chain([first], parts), env, lr)) / lr
        h = self.q * loss ** (self.q - 1) * norms(d).square().unsqueeze(-1) + loss**self.q / lr
        return state, torch.cat([loss**self.q * d, h], -1)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        d, h = aggregate[:-1], aggregate[-1]
        return {**state, "x": state["x"] - torch.where(h > 0, d / h, 0)}
