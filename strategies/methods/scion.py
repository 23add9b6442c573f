"""Steps in a norm for each role of a layer: Scion, Gluon with radii of its own, Drop-Muon with layers left out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from math import pow
from typing import Literal

import torch
from torch import Tensor

from fedsim.check import Finite, Invalid, NonNegative, Share
from fedsim.layout import Layout
from fedsim.messages import All, Compressor
from fedsim.messages.layers import LayersFrom
from fedsim.method import Env, Method, ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.optimizer import moved
from fedsim.strategies.oracles import Norms
from fedsim.types import Batch, State


@dataclass(frozen=True)
class Scion(Method):
    """Scion (arXiv:2502.07529): stochastic conditional gradient in a norm for each role of a layer.

    client  d_i <- (1 - alpha) d_i + alpha grad f_i(x);  sends d_i, or -LMO(d_i) where `lmo` is "before" the rule
    server  x <- x + lr LMO(RAgg(d_1 .. d_n)), or x <- x - lr RAgg(..);  `constrained`: from (1 - lr) x
    constrained keeps each layer in the ball of its radius, and is Frank-Wolfe. Under attack the oracle belongs after
    the rule: all its answers are equally long, a liar's too. How large a batch should be: `budget_batch`.
    """

    lr: Rate = 0.02
    alpha: Share = 0.1
    norms: Norms = Norms()
    constrained: bool = False
    lmo: Literal["after", "before"] = "after"

    def client_init(self, x: Tensor) -> State:
        return {"d": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        d = torch.lerp(state["d"], env.first_gradient(), self.alpha, out=env.buffer("d"))
        return {"d": d}, d if self.lmo == "after" else self.way(d, env.layout)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        u = self.way(aggregate, env.layout) if self.lmo == "after" else aggregate
        return {**state, "x": moved(state["x"], u, rate(self.lr, env.round), float(self.constrained))}

    def way(self, d: Tensor, layout: Layout) -> Tensor:
        """-LMO(d) (..., d)."""
        return self.norms.direction(d, layout)


@dataclass(frozen=True)
class Gluon(Scion):
    """Gluon (arXiv:2505.13416): Scion with a radius for each layer l from its own smoothness.

    t_l = ||d_l||_* / (L0_l + L1_l ||d_l||_*), where ||grad_l f(x) - grad_l f(y)||_* <= (L0_l + L1_l ||grad_l f(x)||_*)
    ||x_l - y_l||;  x_l <- x_l + lr t_l LMO_l(d_l), lr = 1 in theory
    smooth  (pattern, L0, L1): a layer has those of the first pattern that its name fits. ||d_l||_* is taken as
            <d_l, -LMO_l(d_l)>, which an iteration in place of the polar factor is near to.
    """

    lr: Rate = 1.0
    smooth: tuple[tuple[str, Finite, NonNegative], ...] = (("*", 1.0, 1.0),)

    def way(self, d: Tensor, layout: Layout) -> Tensor:
        u = self.norms.direction(d, layout)
        inner = [part.sum(-1, keepdim=True) for part in (d * u).split(layout.sizes, -1)]
        parts = zip(layout.blocks, inner, u.split(layout.sizes, -1), strict=True)
        return torch.cat([part * self._radius(block.name, dual) for block, dual, part in parts], -1)

    def _radius(self, name: str, dual: Tensor) -> Tensor:
        for pattern, l0, l1 in self.smooth:
            if fnmatchcase(name, pattern):
                return dual / (l0 + l1 * dual)
        raise Invalid(f"Gluon.smooth: no pattern fits the layer {name}; end it with ('*', L0, L1)")


@dataclass(frozen=True)
class DropMuon(Scion):
    """Drop-Muon (arXiv:2510.02239): each round draws a layer s, and layers before it keep weights and momentum.

    client  d_l <- (1 - alpha) d_l + alpha grad_l f_i(x) for l >= s;  sends these, and nothing of l < s
    server  x_l <- x_l - lr sharp(d_l), or + lr LMO(d_l) (`move`), for l >= s
    chances  in proportion to which s is each layer, from the first on; () all alike. A layer is a module's parameters.
    All know s, from the round's common numbers. The gradient is that of all layers here.
    """

    move: Literal["sharp", "lmo"] = "lmo"
    chances: tuple[NonNegative, ...] = ()

    @property
    def uplink(self) -> Compressor:
        return All()

    def uplink_in(self, layout: Layout, coin: float) -> Compressor:
        return LayersFrom(self._first(layout, coin))

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        on = self._on(env.layout, env.common).to(x.device)
        d = torch.where(on, torch.lerp(state["d"], env.first_gradient(), self.alpha), state["d"])
        sent = torch.where(on, d, 0)
        return {"d": d}, env.compress(sent if self.lmo == "after" else self.way(sent, env.layout))

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        on = self._on(env.layout, env.common).to(aggregate.device)
        x = super().step(state, aggregate, env)["x"]
        return {**state, "x": torch.where(on, x, state["x"])}

    def way(self, d: Tensor, layout: Layout) -> Tensor:
        return self.norms.sharp(d, layout) if self.move == "sharp" else self.norms.direction(d, layout)

    def _on(self, layout: Layout, common: Callable[[int], Tensor]) -> Tensor:
        """Which coordinates (d,) are trained in this round."""
        first = self._first(layout, float(common(1)))
        sizes = enumerate(layout.sizes)
        return torch.cat([torch.full((size,), block >= first) for block, size in sizes])

    def _first(self, layout: Layout, coin: float) -> int:
        """The first block that is trained."""
        homes = [block.name.rpartition(".")[0] for block in layout.blocks]
        layers = list(dict.fromkeys(homes))
        ends = list(accumulate(self.chances or [1.0] * len(layers)))
        if len(ends) != len(layers) or not ends[-1] > 0:
            raise Invalid(
                f"DropMuon.chances = {self.chances}: must be () or one for each of the {len(layers)} layers, "
                "not all 0"
            )
        return homes.index(layers[bisect_right(ends, coin * ends[-1])])


def budget_batch(tokens: int, per_example: int = 1, constant: float = 1.0) -> int:
    """Examples in a batch, over all clients, for a budget of tokens: constant tokens^(2/3) / per_example, one at least.

    The rule of arXiv:2603.21191 for Scion under a Kurdyka-Lojasiewicz condition: batch times length grows as the budget
    to the power 2/3. Smaller ones are led by noise, of larger ones there are too few steps; the constant is measured.

    budget_batch(1_000_000, per_example=64)  # 156
    """
    if tokens < 1 or per_example < 1 or not constant > 0:
        raise Invalid(f"budget_batch({tokens}, {per_example}, {constant}): all must be above 0")
    return max(1, round(constant * pow(tokens, 2 / 3) / per_example))
