"""Optimizers of the server: clients send gradients, and what the rule makes of them is one gradient to it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import inf
from typing import Protocol

from torch import Tensor

from fedsim.check import ClipNorm, NonNegative
from fedsim.layout import Layout
from fedsim.method import ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.traits import Clipped
from fedsim.types import State


class Here(Protocol):
    """What an optimizer needs to know: the round, and the blocks of x. Clients and the server have it."""

    layout: Layout

    @property
    def round(self) -> int: ...


@dataclass(frozen=True)
class ServerOptimizer(Clipped):
    """Clients send gradients, clipped to tau; x <- x - lr (u + decay x), u the optimizer's turn of RAgg(g_1 .. g_n).

    All that follows the aggregate is post-processing: with noise in it, by whatever privacy, it costs nothing more.
    """

    lr: Rate
    tau: ClipNorm = inf
    decay: NonNegative = 0.0

    def start(self, x: Tensor) -> State:
        """What the optimizer keeps, before its first turn."""
        return {}

    @abstractmethod
    def turn(self, state: State, g: Tensor, env: Here) -> tuple[State, Tensor]:
        """What it keeps, and u (..., d), from a gradient (..., d)."""

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, **self.start(x)}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        kept = {name: value for name, value in state.items() if name != "x"}
        kept, u = self.turn(kept, aggregate, env)
        return {**kept, "x": moved(state["x"], u, rate(self.lr, env.round), self.decay)}


def moved(x: Tensor, u: Tensor, lr: float, decay: float) -> Tensor:
    """x - lr (u + decay x)."""
    return x - lr * u if decay == 0 else (1 - lr * decay) * x - lr * u


def adam(state: State, g: Tensor, b1: float, b2: float, epsilon: float) -> tuple[State, Tensor]:
    """One turn of Adam (arXiv:1412.6980): its m, v, t (..., 1); m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)."""
    t, m, v = state["t"] + 1, state["m"].lerp(g, 1 - b1), state["v"].lerp(g * g, 1 - b2)
    return {"m": m, "v": v, "t": t}, m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + epsilon)


def begun(x: Tensor) -> State:
    """m, v and t of `adam` before its first turn."""
    return {"m": x.new_zeros(x.shape), "v": x.new_zeros(x.shape), "t": x.new_zeros(1)}
