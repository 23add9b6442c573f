"""What a client makes of its gradients before it sends anything: momentum, plain or with variance reduction.

eta_t is the weight of the new gradient in round t: constant, or falling by `Decay`; 1 in a client's first round.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.check import ClipNorm, Component, Count, Natural, NonNegative, Share
from fedsim.layout import clip_
from fedsim.method import Env
from fedsim.types import Batch, State

__all__ = ["HM", "IGT", "MVR", "PAGE", "ClippedHM", "Decay", "LastGradient", "Polyak"]


@dataclass(frozen=True)
class Decay(Component):
    """eta_t = (2 / (e + 2))^power, with e = t as in the theory of arXiv:2511.14501; 1 at t = 0.

    The authors' code moves eta once an epoch, and has 1 in the first two of them: e = max(0, t // every - lag), with
    `every` rounds an epoch and a lag of 1.
    """

    power: NonNegative = 0.5
    every: Count = 1
    lag: Natural = 0

    def at(self, round: int) -> float:
        return float((2 / (max(0, round // self.every - self.lag) + 2)) ** self.power)


Weight = Share | Decay


def weight(eta: float | Decay, round: int) -> float:
    """eta_t, the weight of the new gradient in a round."""
    return eta.at(round) if isinstance(eta, Decay) else eta


class Estimator(Component):
    """v_t from the gradients of round t; `gradients` of them on one batch.

    state, v = MVR().estimate(state, x, batch, env)
    """

    gradients: ClassVar[int] = 1

    @property
    def backprops(self) -> int:
        return self.gradients

    def init(self, x: Tensor) -> State:
        """What a client keeps for it, before its first round."""
        return {}

    @abstractmethod
    def estimate(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        """The new state, and v (d,) or (n, d)."""


@dataclass(frozen=True)
class LastGradient(Estimator):
    """v = grad f_i(x): no momentum, as in EF21 (arXiv:2106.05203)."""

    def estimate(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        return {}, env.first_gradient()


@dataclass(frozen=True)
class Polyak(Estimator):
    """v <- (1 - eta) v + eta grad f_i(x): heavy ball, as in EF21-SGDM (arXiv:2305.15155), from v = 0."""

    eta: Weight = 0.1

    def init(self, x: Tensor) -> State:
        return {"v": torch.zeros_like(x)}

    def estimate(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        v = torch.lerp(state["v"], env.first_gradient(), weight(self.eta, env.round), out=env.buffer("v"))
        return {"v": v}, v


class _WithModel(Estimator):
    """An estimator that also keeps the model of its last round; a client's first v is its gradient."""

    def init(self, x: Tensor) -> State:
        return {"v": torch.zeros_like(x), "before": x.clone(), "begun": x.new_zeros(1)}

    def estimate(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        # eta = 1 at first: v is then the gradient, whatever v and `before` hold
        eta = torch.where(state["begun"] > 0, weight(self.weight, env.round), 1.0)
        v = self.next(state["v"], state["before"], eta, x, batch, env)
        return {"v": v, "before": x.expand(v.shape), "begun": torch.ones_like(state["begun"])}, v

    @property
    @abstractmethod
    def weight(self) -> float | Decay:
        """eta_t."""

    @abstractmethod
    def next(self, v: Tensor, before: Tensor, eta: Tensor, x: Tensor, batch: Batch, env: Env) -> Tensor:
        """The new v, with eta (1,) or (n, 1)."""


@dataclass(frozen=True)
class IGT(_WithModel):
    """v <- (1 - eta) v + eta grad f_i(x + (1 - eta) / eta (x - x_before)): implicit gradient transport."""

    eta: Weight = Decay(4 / 7)

    @property
    def weight(self) -> float | Decay:
        return self.eta

    def next(self, v: Tensor, before: Tensor, eta: Tensor, x: Tensor, batch: Batch, env: Env) -> Tensor:
        ahead = x + (1 - eta) / eta * (x - before)
        return torch.lerp(v, env.grad(ahead, batch), eta)


@dataclass(frozen=True)
class MVR(_WithModel):
    """v <- grad f_i(x) + (1 - eta) (v - grad f_i(x_before)), both on the new batch: STORM (arXiv:1905.10018)."""

    gradients: ClassVar[int] = 2

    eta: Weight = Decay(2 / 3)

    @property
    def weight(self) -> float | Decay:
        return self.eta

    def next(self, v: Tensor, before: Tensor, eta: Tensor, x: Tensor, batch: Batch, env: Env) -> Tensor:
        return env.first_gradient() + (1 - eta) * (v - env.grad(before, batch))


@dataclass(frozen=True)
class HM(_WithModel):
    """v <- (1 - eta) (v + H_i(x) (x - x_before)) + eta grad f_i(x), H_i the Hessian on the new batch.

    random  the Hessian at a point drawn between x_before and x: RHM
    """

    eta: Weight = Decay(2 / 3)
    random: bool = False

    @property
    def backprops(self) -> int:
        return 3 if self.random else 2  # at a point of its own a Hessian takes a gradient there as well

    @property
    def weight(self) -> float | Decay:
        return self.eta

    def next(self, v: Tensor, before: Tensor, eta: Tensor, x: Tensor, batch: Batch, env: Env) -> Tensor:
        moved = x - before
        at = x - env.uniform(1) * moved if self.random else x
        gradient = env.first_gradient()
        return (1 - eta) * (v + env.hvp(at, moved, batch)) + eta * gradient


@dataclass(frozen=True)
class ClippedHM(HM):
    """v <- (1 - eta) (v + clip(H_i(x') (x - x_before), curvature)) + eta clip(grad f_i(x), tau), for heavy tails.

    Second-order clipping (arXiv:2510.10690): the product with the Hessian is clipped, not the Hessian; x' as in HM.
    curvature is the paper's gamma lambda_h. With a plain step it is the paper's clipped method; HM with a normalized
    step its NSGDHess.
    """

    random: bool = True
    tau: ClipNorm = 1.0
    curvature: ClipNorm = 0.1

    def next(self, v: Tensor, before: Tensor, eta: Tensor, x: Tensor, batch: Batch, env: Env) -> Tensor:
        moved = x - before
        at = x - env.uniform(1) * moved if self.random else x
        gradient = env.first_gradient(self.tau)
        return (1 - eta) * (v + clip_(env.hvp(at, moved, batch), self.curvature)) + eta * gradient


@dataclass(frozen=True)
class PAGE(Estimator):
    """Now and then the gradient, in between v <- v + grad f_i(x) - grad f_i(x_before) (arXiv:2008.10898, algorithm 1).

    The gradient with chance p, one coin for all clients, on the whole batch; differences on its first `few` examples,
    None: on all. Theory: p = b' / (b + b'), with b' = few. With `EF21` it is EF21-PAGE (arXiv:2110.03294).
    """

    gradients: ClassVar[int] = 2

    p: Share = 0.2
    few: Count | None = None

    def init(self, x: Tensor) -> State:
        return {"v": torch.zeros_like(x), "before": x.clone(), "begun": x.new_zeros(1)}

    def estimate(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        begun, whole = state["begun"] > 0, bool(env.common(1) < self.p)
        if whole or self.few is None or not begun.all():
            v = env.first_gradient()
        if not whole:
            part = batch if self.few is None else batch.first(self.few)
            at_x = v if self.few is None else env.grad(x, part)
            moved = state["v"] + at_x - env.grad(state["before"], part)
            v = moved if begun.all() else torch.where(begun, moved, v)
        return {"v": v, "before": x.expand(v.shape), "begun": torch.ones_like(state["begun"])}, v
