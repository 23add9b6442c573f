"""Error feedback: clients send compressed differences to what the server already holds of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.check import ClipNorm, Component, Share
from fedsim.layout import Layout, clip_, norms
from fedsim.messages import ByLayer, Compressor, TopK
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.estimators import Estimator, LastGradient, Polyak
from fedsim.strategies.methods.traits import Clipped
from fedsim.strategies.oracles import Norms
from fedsim.types import Batch, State

__all__ = ["LMO", "Normalized", "Plain"]


# ---------------------------------------------------------------- how the server moves
class Move(Component):
    """x <- x - move(g), from the aggregate g."""

    @abstractmethod
    def move(self, g: Tensor, layout: Layout, round: int) -> Tensor: ...


@dataclass(frozen=True)
class Plain(Move):
    """lr g."""

    lr: Rate = 0.1

    def move(self, g: Tensor, layout: Layout, round: int) -> Tensor:
        return g * rate(self.lr, round)


@dataclass(frozen=True)
class Normalized(Move):
    """lr g / ||g|| (arXiv:2511.14501): the length of a step does not hang on that of the gradient.

    Theory: lr = Power(gamma, 3/4) with Polyak momentum, 5/7 with IGT, 2/3 with MVR and HM. The authors' code has a
    constant lr, and `by_layer`: each parameter by its own norm.
    """

    lr: Rate = 0.1
    by_layer: bool = False

    def move(self, g: Tensor, layout: Layout, round: int) -> Tensor:
        step = rate(self.lr, round)
        if self.by_layer:
            return step * torch.cat([_unit(part) for part in g.split(layout.sizes, -1)], -1)
        return step * _unit(g)


@dataclass(frozen=True)
class LMO(Move):
    """-lr LMO_l(g_l) for each layer l, in the norm of its role: Muon's, Scion's, Gluon's step, with radii by name."""

    lr: Rate = 0.02
    norms: Norms = Norms()

    def move(self, g: Tensor, layout: Layout, round: int) -> Tensor:
        return rate(self.lr, round) * self.norms.direction(g, layout)


def _unit(g: Tensor) -> Tensor:
    """g / ||g||, 0 where g is."""
    norm = norms(g).unsqueeze(-1)
    return torch.where(norm > 0, g / norm, 0)


# ---------------------------------------------------------------- the methods
@dataclass(frozen=True)
class EF21(Clipped):
    """EF21 (arXiv:2106.05203) with any estimator, compressor and step; the rule sees each client's memory.

    client  v_i <- estimator;  c_i = C(clip_tau(v_i - g_i) + noise);  g_i <- g_i + c_i;  sends c_i
    server  g_i <- g_i + c_i;  x <- x - move(RAgg(g_1 .. g_n))
    With Polyak momentum this is EF21-SGDM (arXiv:2305.15155), behind a robust rule Byz-EF21-SGDM; with a decaying
    estimator and a normalized step ||EF21-..|| (arXiv:2511.14501).
    down   EF21-P: clients hold w in place of x, and the server broadcasts D(x - w), w <- w + D(x - w)
    start  g_i = 0; or "whole": messages of the first round travel uncompressed, g_i = v_i, as in the sources
    """

    server_memory: ClassVar[bool] = True

    estimator: Estimator = Polyak()
    up: Compressor = TopK(0.1)
    move: Move = Plain()
    down: Compressor | None = None
    tau: ClipNorm = inf
    start: Literal["zero", "whole"] = "zero"

    def whole(self, round: int, coin: float) -> bool:
        return self.start == "whole" and round == 0

    @property
    def gradients(self) -> int:
        return self.estimator.gradients

    @property
    def backprops(self) -> int:
        return self.estimator.backprops

    @property
    def uplink(self) -> Compressor:
        return self.up

    @property
    def downlink(self) -> Compressor | None:
        return self.down

    @property
    def sends(self) -> str:  # type: ignore[override]
        return "x" if self.down is None else "w"

    def client_init(self, x: Tensor) -> State:
        return self.estimator.init(x) | {"g": torch.zeros_like(x)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        mine, v = self.estimator.estimate(state, x, batch, env)
        c = env.compress(env.noisy(clip_(v - state["g"], self.tau)))
        return {**mine, "g": torch.add(state["g"], c, out=env.buffer("g"))}, c

    def server_init(self, x: Tensor, n: int) -> State:
        state = {"x": x, "g": x.new_zeros(n, x.numel())}
        return state if self.down is None else {**state, "w": x}

    def receive(
        self, state: State, rows: Tensor, ids: Tensor, *, out: Tensor | None = None
    ) -> tuple[State, Tensor]:
        everyone = len(ids) == len(state["g"])  # in order
        g = torch.add(state["g"], rows, out=out) if everyone else state["g"].index_add(0, ids, rows)
        return {**state, "g": g}, g

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        x = state["x"] - self.move.move(aggregate, env.layout, env.round)
        if self.down is None:
            return {**state, "x": x}
        return {**state, "x": x, "w": state["w"] + env.compress(self.down, x - state["w"])}


@dataclass(frozen=True)
class EControl(EF21):
    """EControl (arXiv:2311.05645): EF21 that also sends, with weight eta, what was lost before.

    client  v_i <- estimator;  c_i = C(clip_tau(v_i - g_i + eta e_i) + noise);  sends c_i
            g_i <- g_i + c_i;  e_i <- e_i + v_i - g_i
    server  as in EF21, which it is with eta = 0
    """

    estimator: Estimator = LastGradient()
    eta: Share = 0.1

    def client_init(self, x: Tensor) -> State:
        return {**super().client_init(x), "e": torch.zeros_like(x)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        mine, v = self.estimator.estimate(state, x, batch, env)
        c = env.compress(env.noisy(clip_(torch.add(v - state["g"], state["e"], alpha=self.eta), self.tau)))
        g = state["g"] + c
        return {**mine, "g": g, "e": state["e"] + v - g}, c


@dataclass(frozen=True)
class EF21Muon(EF21):
    """EF21-Muon (arXiv:2510.00643): each layer by an oracle, both ways compressed layer by layer.

    client  m_i <- (1 - eta) m_i + eta grad f_i(w);  c_i = C(m_i - g_i);  g_i <- g_i + c_i;  sends c_i
    server  g_i <- g_i + c_i;  x_l <- x_l + lr LMO_l(RAgg(g_1 .. g_n)_l);  sends s = D(x - w);  w <- w + s
    EF21 with other parts: x is what is evaluated, w what clients hold, the rule the mean in the paper. Here m_i = g_i
    = 0 at first; the paper starts from a gradient of each.
    """

    up: Compressor = ByLayer(TopK(0.1))
    move: Move = LMO()
    down: Compressor | None = ByLayer(TopK(0.1))


@dataclass(frozen=True)
class EF14(Method):
    """Error feedback of 2014 (arXiv:1901.09847): what was not sent is added to the next message.

    client  p_i = e_i + lr grad f_i(x);  sends C(p_i);  e_i <- p_i - C(p_i)
    server  x <- x - RAgg(messages)
    """

    lr: Rate = 0.1
    up: Compressor = TopK(0.1)

    @property
    def uplink(self) -> Compressor:
        return self.up

    def client_init(self, x: Tensor) -> State:
        return {"e": torch.zeros_like(x)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        p = state["e"] + rate(self.lr, env.round) * env.first_gradient()
        c = env.compress(p)
        return {"e": p - c}, c

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": state["x"] - aggregate}
