"""FedAvg with an optimiser at the server: FedAvgM and the adaptive ones of FedOpt."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.check import Finite, Momentum
from fedsim.method import ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.sgd import FedAvg
from fedsim.types import State


@dataclass(frozen=True)
class FedAvgM(FedAvg):
    """FedAvgM, arXiv:1909.06335: v <- momentum v + D;  x <- x - server_lr v, with D the rule's answer to all x - y."""

    momentum: Momentum = 0.9

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "v": x.new_zeros(x.shape)}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        v = self.momentum * state["v"] + aggregate
        return {**state, "v": v, "x": state["x"] - rate(self.server_lr, env.round) * v}


@dataclass(frozen=True)
class _FedOpt(FedAvg):
    """What FedAdagrad, FedAdam and FedYogi have in common: all but `second`."""

    server_lr: Rate = 0.1
    b1: Momentum = 0.9
    epsilon: Finite = 1e-3

    @abstractmethod
    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """v after a round with D^2 = `square`."""

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "m": x.new_zeros(x.shape), "v": x.new_full(x.shape, self.epsilon**2)}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        m = torch.lerp(aggregate, state["m"], self.b1)
        v = self.second(state["v"], aggregate.square())
        x = state["x"] - rate(self.server_lr, env.round) * m / (v.sqrt() + self.epsilon)
        return {**state, "x": x, "m": m, "v": v}


@dataclass(frozen=True)
class FedAdagrad(_FedOpt):
    """FedAdagrad, arXiv:2003.00295, Algorithm 2: FedAvg, with Adagrad at the server.

    D the rule's answer to all x - y:  m <- b1 m + (1 - b1) D;  v <- v + D^2, epsilon^2 at first;
    x <- x - server_lr m / (sqrt(v) + epsilon). The paper has b1 = 0.
    """

    b1: Momentum = 0.0

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@dataclass(frozen=True)
class FedAdam(_FedOpt):
    """FedAdam, arXiv:2003.00295, Algorithm 2: FedAvg, with Adam at the server; no bias is corrected.

    D the rule's answer to all x - y:  m <- b1 m + (1 - b1) D;  v <- b2 v + (1 - b2) D^2, epsilon^2 at first;
    x <- x - server_lr m / (sqrt(v) + epsilon).
    """

    b2: Momentum = 0.99

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return torch.lerp(square, v, self.b2)


@dataclass(frozen=True)
class FedYogi(_FedOpt):
    """FedYogi, arXiv:2003.00295, Algorithm 2: FedAvg, with Yogi at the server; no bias is corrected.

    D the rule's answer to all x - y:  m <- b1 m + (1 - b1) D;  v <- v - (1 - b2) D^2 sign(v - D^2), epsilon^2 at
    first;  x <- x - server_lr m / (sqrt(v) + epsilon).
    """

    b2: Momentum = 0.99

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.b2) * square * (v - square).sign()
