"""Adam on the clients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.check import Momentum, NonNegative
from fedsim.method import Env
from fedsim.strategies.methods.optimizer import adam, begun
from fedsim.strategies.methods.sgd import FedSGD
from fedsim.types import Batch, State


@dataclass(frozen=True)
class Adam(FedSGD):
    """Adam of every client (arXiv:1412.6980): it sends its direction, the server steps x <- x - lr * RAgg(...).

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  sent is (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)
    with t the rounds that the client took part in. With example-level privacy this is DP-Adam: what follows g costs
    nothing, and no bias of the noise in v is removed. One client with the mean is torch.optim.Adam.
    """

    b1: Momentum = 0.9
    b2: Momentum = 0.999
    epsilon: NonNegative = 1e-8

    def client_init(self, x: Tensor) -> State:
        return begun(x)

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        return adam(state, env.first_gradient(), self.b1, self.b2, self.epsilon)
