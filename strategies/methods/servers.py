"""Small optimizers of the server, each a few lines on the layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.check import Count, Finite, Momentum, NonNegative, Share
from fedsim.layout import Block, Layout
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate
from fedsim.strategies.methods.optimizer import Here, ServerOptimizer, adam, begun
from fedsim.strategies.oracles import NewtonSchulz
from fedsim.strategies.oracles.base import as_matrix, from_matrix, unit
from fedsim.strategies.oracles.polar import Polar
from fedsim.types import Batch, State


@dataclass(frozen=True)
class SWAN(ServerOptimizer):
    """SWAN (arXiv:2412.13148): rows standardized, then whitened: nothing is kept from round to round.

    G~ = (G - mean of each row) / deviation of each row;  u = ||G~||_F polar(G~) / ||polar(G~)||_F;  a vector's is
    g / RMS(g)
    Good where a server or a device has no memory for a momentum.
    """

    lr: Rate = 0.01
    polar: Polar = NewtonSchulz(10, (1.875, -1.25, 0.375))

    def turn(self, state: State, g: Tensor, env: Here) -> tuple[State, Tensor]:
        return state, env.layout.map(self._white, g)

    def _white(self, block: Block, g: Tensor) -> Tensor:
        matrix = as_matrix(g, block)
        if len(block.shape) > 1:
            spread = matrix - matrix.mean(-1, keepdim=True)
            matrix = unit(spread, -1) * spread.shape[-1] ** 0.5  # 0 where a row is constant
            size = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
            return from_matrix(size * unit(self.polar(matrix), (-2, -1)), block)
        return from_matrix(unit(matrix, (-2, -1)) * block.size**0.5, block)


@dataclass(frozen=True)
class FRUGAL(ServerOptimizer):
    """FRUGAL (arXiv:2411.07837): Adam on a random part of the coordinates, signSGD on the rest.

    Every `every` rounds a share `density` of the coordinates is drawn anew, and m, v begin at 0. u = Adam(g) there,
    sign(g) elsewhere. Between signSGD (density 0) and Adam (1): good where m and v of all are too much to keep.
    """

    lr: Rate = 1e-3
    density: Share = 0.25
    every: Count = 200
    b1: Momentum = 0.9
    b2: Momentum = 0.999
    epsilon: NonNegative = 1e-8

    def start(self, x: Tensor) -> State:
        return {**begun(x), "kept": x.new_zeros(x.shape)}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        if env.round % self.every == 0:
            kept = (env.uniform(env.layout.width) < self.density).to(aggregate)
            state = {**state, **begun(aggregate), "kept": kept}
        return super().step(state, aggregate, env)

    def turn(self, state: State, g: Tensor, env: Here) -> tuple[State, Tensor]:
        new, u = adam(state, g * state["kept"], self.b1, self.b2, self.epsilon)
        return {**new, "kept": state["kept"]}, torch.where(state["kept"] > 0, u, g.sign())


@dataclass(frozen=True)
class SGDSaI(ServerOptimizer):
    """SGD-SaI (arXiv:2412.11768): momentum SGD whose step sizes by layer are set once, from the first gradient.

    snr_l = ||g_l|| / (std(g_l) + epsilon) at first;  m <- momentum m + g;  u_l = snr_l m_l
    Half of Adam's memory; good where layers differ in scale, and that stays so.
    """

    lr: Rate = 1e-3
    momentum: Momentum = 0.9
    epsilon: NonNegative = 1e-8

    def start(self, x: Tensor) -> State:
        return {"m": x.new_zeros(x.shape), "snr": x.new_zeros(x.shape), "begun": x.new_zeros(1)}

    def turn(self, state: State, g: Tensor, env: Here) -> tuple[State, Tensor]:
        snr = torch.where(state["begun"] > 0, state["snr"], self._snr(g, env.layout))
        m = self.momentum * state["m"] + g
        return {"m": m, "snr": snr, "begun": torch.ones_like(state["begun"])}, snr * m

    def _snr(self, g: Tensor, layout: Layout) -> Tensor:
        def each(part: Tensor) -> Tensor:
            ratio: Tensor = part.norm() / (part.std(correction=0) + self.epsilon)
            return ratio.expand(part.shape)

        return torch.cat([each(part) for part in g.split(layout.sizes, -1)], -1)


@dataclass(frozen=True)
class DiffGrad(ServerOptimizer):
    """diffGrad (arXiv:1909.11015): Adam times sigmoid(|g_before - g|) for each coordinate, from 1/2 to 1.

    A coordinate whose gradient stays moves half as far; good where Adam runs over a minimum.
    """

    lr: Rate = 1e-3
    b1: Momentum = 0.9
    b2: Momentum = 0.999
    epsilon: NonNegative = 1e-8

    def start(self, x: Tensor) -> State:
        return {**begun(x), "before": x.new_zeros(x.shape)}

    def turn(self, state: State, g: Tensor, env: Here) -> tuple[State, Tensor]:
        new, u = adam(state, g, self.b1, self.b2, self.epsilon)
        return {**new, "before": g}, u * (state["before"] - g).abs().sigmoid()


@dataclass(frozen=True)
class NGNM(Method):
    """NGN-M (arXiv:2508.15071): a step size from the loss itself, with momentum; f is not negative.

    client  sends grad f_i(x) and f_i(x), d + 1 numbers
    server  (g, f) = RAgg of both;  gamma = c / (1 + c ||g||^2 / (2 f))
            x <- x - (1 - momentum) gamma g + momentum (x - x_before)
    Good where there is no time to tune: too large a c does no harm. A loss is no gradient: example-level privacy is
    refused.
    """

    c: Finite = 1.0
    momentum: Momentum = 0.9

    def width(self, layout: Layout) -> int:
        return layout.width + 1

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        g, f = env.first_gradient(), env.loss(x, batch)
        return state, torch.cat([g, f.unsqueeze(-1)], -1)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "before": x}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        x, g, f = state["x"], aggregate[:-1], aggregate[-1].clamp_min(0)
        gamma = self.c * 2 * f / (2 * f + self.c * (g @ g)).clamp_min(torch.finfo(g.dtype).tiny)
        moved = x - (1 - self.momentum) * gamma * g + self.momentum * (x - state["before"])
        return {"x": moved, "before": x}
