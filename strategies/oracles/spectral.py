"""Oracles of norms of singular values, and mixtures of oracles."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from fedsim.check import Count, Momentum
from fedsim.layout import Block
from fedsim.strategies.oracles.base import Oracle, as_matrix, from_matrix, scaled, sides
from fedsim.strategies.oracles.entries import Frobenius
from fedsim.strategies.oracles.polar import NewtonSchulz, Polar, largest, leading


@dataclass(frozen=True)
class Spectral(Oracle):
    """The largest singular value: the polar factor U V' of G = U S V', times a scale; the dual is that of sum S.

    scale  "one"; "rms" sqrt(m / q), a step of the norm from RMS to RMS, of a kernel sqrt(c_out / c_in) / k^2 as in
           Scion (arXiv:2502.07529); "muon" sqrt(max(1, m / q)), Muon's and Scion's of an input layer
    polar  how U V' is found. An iteration is no exact oracle: <G, LMO(G)> is then within a band of -||G||_*
    """

    scale: Literal["one", "rms", "muon"] = "one"
    polar: Polar = NewtonSchulz()

    def _unit(self, g: Tensor, block: Block) -> Tensor:
        return scaled(self.polar(g), self._factor(block))

    def _dual(self, g: Tensor, block: Block) -> Tensor:
        return largest(g) * self._factor(block)

    def _factor(self, block: Block) -> float:
        m, q, places = sides(block)
        return {"one": 1.0, "rms": sqrt(m / q) / places, "muon": sqrt(max(1.0, m / (q * places)))}[self.scale]


@dataclass(frozen=True)
class KyFan(Oracle):
    """max(||Z||_op, ||Z||_nuclear / k): sum_{i <= k} u_i v_i'; the dual is the Ky Fan norm, the k largest of S.

    k = 1 is the ball of the nuclear norm, a step of rank one (Neon); k = min(m, q) is Muon (arXiv:2512.09678). By
    singular value decomposition in float64.
    """

    k: Count = 1

    def _unit(self, g: Tensor, block: Block) -> Tensor:
        return leading(g, self.k)

    def _dual(self, g: Tensor, block: Block) -> Tensor:
        return largest(g, self.k)


@dataclass(frozen=True)
class Mix(Oracle):
    """share -LMO_1(G) + (1 - share) -LMO_2(G): the oracle of the norm whose dual is so mixed (arXiv:2512.09678).

    Mix(first=Spectral(), second=Frobenius()) is F-Muon, with second=Sign(radius) S-Muon.
    """

    first: Oracle = Spectral()
    second: Oracle = Frobenius()
    share: Momentum = 0.5

    def _unit(self, g: Tensor, block: Block) -> Tensor:
        layers = from_matrix(g, block)
        both = self.first.direction(layers, block), self.second.direction(layers, block)
        return as_matrix(torch.lerp(both[1], both[0], self.share), block)

    def _dual(self, g: Tensor, block: Block) -> Tensor:
        layers = from_matrix(g, block)
        return torch.lerp(self.second.dual(layers, block), self.first.dual(layers, block), self.share)
