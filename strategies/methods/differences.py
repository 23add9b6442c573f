"""Unbiased compression of differences: to a shift that follows the gradient, or to the gradient of the round before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.check import NonNegative, Share
from fedsim.messages import All, Compressor
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.types import Batch, State


@dataclass(frozen=True)
class DIANA(Method):
    """DIANA (arXiv:1901.09269): unbiased compression of differences to a shift that follows the gradient.

    client  c_i = Q(grad f_i(x) - h_i);  h_i <- h_i + shift c_i;  sends c_i
    server  g_i = h_i + c_i, what the rule sees;  h_i <- h_i + shift c_i;  x <- x - lr RAgg(g_1 .. g_n)
    An absent client's g_i is its h_i. Theory: shift = 1 / (1 + omega).
    """

    server_memory: ClassVar[bool] = True

    lr: Rate = 0.1
    up: Compressor = All()
    shift: NonNegative = 0.5

    @property
    def uplink(self) -> Compressor:
        return self.up

    def client_init(self, x: Tensor) -> State:
        return {"h": torch.zeros_like(x)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        c = env.compress(env.first_gradient() - state["h"])
        return {"h": state["h"] + self.shift * c}, c

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "h": x.new_zeros(n, x.numel())}

    def receive(
        self, state: State, rows: Tensor, ids: Tensor, *, out: Tensor | None = None
    ) -> tuple[State, Tensor]:
        seen = state["h"].index_add(0, ids, rows)
        return {**state, "h": state["h"].index_add(0, ids, rows, alpha=self.shift)}, seen

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - rate(self.lr, env.round) * aggregate}


@dataclass(frozen=True)
class MARINA(Method):
    """MARINA (arXiv:2102.07845, algorithm 1): gradients whole now and then, in between differences, compressed.

    client  first, and with chance p, one coin for all: sends grad f_i(x), whole;  else Q(grad f_i(x) - grad f_i(x'))
            with x' the model of the round before, both on one batch
    server  g <- RAgg(messages) of a whole round, else g + RAgg(messages);  x <- x - lr g
    Byz-VR-MARINA (arXiv:2206.00529) takes RAgg(g + messages): the same where a rule moves with its rows. In theory p
    is the share of the bits that Q sends.
    away  clients may miss rounds: the server tells x' too, else they keep their last model, at half the downlink
    """

    gradients: ClassVar[int] = 2
    linear: ClassVar[bool] = True

    lr: Rate = 0.1
    p: Share = 0.2
    up: Compressor = All()
    away: bool = False

    @property
    def uplink(self) -> Compressor:
        return self.up

    @property
    def tells(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("before",) if self.away else ()

    def whole(self, round: int, coin: float) -> bool:
        return round == 0 or coin < self.p

    def client_init(self, x: Tensor) -> State:
        return {} if self.away else {"before": x.clone()}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        sent = env.first_gradient()
        if not env.whole:
            sent = sent - env.grad(env.told["before"] if self.away else state["before"], batch)
        return {} if self.away else {"before": x.expand(sent.shape)}, env.compress(sent)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "g": torch.zeros_like(x)} | ({"before": x} if self.away else {})

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        g, x = aggregate if env.whole else state["g"] + aggregate, state["x"]
        return {"x": x - rate(self.lr, env.round) * g, "g": g} | ({"before": x} if self.away else {})
