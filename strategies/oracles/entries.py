"""Oracles of norms of entries, columns, rows and of the whole: closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from torch import Tensor

from fedsim.layout import Block
from fedsim.strategies.oracles.base import Oracle, length, unit


@dataclass(frozen=True)
class Frobenius(Oracle):
    """||Z||_F: G / ||G||_F, which is normalized SGD layer by layer; its dual is itself."""

    def _unit(self, g: Tensor, block: Block) -> Tensor:
        return unit(g, (-2, -1))

    def _dual(self, g: Tensor, block: Block) -> Tensor:
        return length(g, (-2, -1))


@dataclass(frozen=True)
class RMS(Oracle):
    """||Z||_F / sqrt(size): G / RMS(G), Scion's step of a bias (arXiv:2502.07529); the dual is sqrt(size) ||G||_F."""

    def _unit(self, g: Tensor, block: Block) -> Tensor:
        return sqrt(block.size) * unit(g, (-2, -1))

    def _dual(self, g: Tensor, block: Block) -> Tensor:
        return sqrt(block.size) * length(g, (-2, -1))


@dataclass(frozen=True)
class Sign(Oracle):
    """max |Z_ij|: sign(G), with sign(0) = 0; the dual is sum |G_ij|.

    scale  "one", or "per_input" over the number of inputs: Scion's step of an output layer (arXiv:2502.07529)
    """

    scale: Literal["one", "per_input"] = "one"

    def _unit(self, g: Tensor, block: Block) -> Tensor:
        return g.sign() * self._factor(g)

    def _dual(self, g: Tensor, block: Block) -> Tensor:
        return g.abs().sum((-2, -1)) * self._factor(g)

    def _factor(self, g: Tensor) -> float:
        return 1.0 if self.scale == "one" else 1 / g.shape[-1]


@dataclass(frozen=True)
class Columns(Oracle):
    """The largest norm of a column: each column over its own; the dual is the sum of the columns' L2 norms, scaled.

    scale  "one" of L2 norms; "rms" of root mean squares, Scion's step of embeddings, of which a column is one token's;
           "rms/q" that over the number of inputs
    """

    scale: Literal["one", "rms", "rms/q"] = "rms"

    def _unit(self, g: Tensor, block: Block) -> Tensor:
        return unit(g, -2) * self._factor(g)

    def _dual(self, g: Tensor, block: Block) -> Tensor:
        return length(g, -2).sum(-1) * self._factor(g)

    def _factor(self, g: Tensor) -> float:
        m, q = g.shape[-2:]
        return {"one": 1.0, "rms": sqrt(m), "rms/q": sqrt(m) / q}[self.scale]


@dataclass(frozen=True)
class Rows(Oracle):
    """The largest L2 norm of a row: each row over its own; the dual is the sum of the rows' L2 norms, scaled.

    scale  "one", or "1/sqrt(q)" with q inputs (Scion, arXiv:2502.07529)
    """

    scale: Literal["one", "1/sqrt(q)"] = "one"

    def _unit(self, g: Tensor, block: Block) -> Tensor:
        return unit(g, -1) * self._factor(g)

    def _dual(self, g: Tensor, block: Block) -> Tensor:
        return length(g, -1).sum(-1) * self._factor(g)

    def _factor(self, g: Tensor) -> float:
        return 1.0 if self.scale == "one" else g.shape[-1] ** -0.5
