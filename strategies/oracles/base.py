"""What a linear minimization oracle is: a norm on layers, known by the direction of steepest descent in it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor
from torch.linalg import vector_norm

from fedsim.check import Component, Finite
from fedsim.layout import Block
from fedsim.machine.threads import one_thread

LEAST = 1e-15  # norms of float32 from there on have all their digits, up to 1 / LEAST


@dataclass(frozen=True)
class Oracle(Component):
    """A norm on layers, by its linear minimization oracle over the ball of `radius`.

        LMO(G) = argmin <G, Z> over ||Z|| <= radius,   <G, LMO(G)> = -||G||_* with ||G||_* = max <G, Z> over that ball
        sharp(G) = argmax <G, Z> - ||Z||^2 / 2 = -||G||_* LMO(G), the norm being that of which this is the unit ball
    Layers g (..., *block.shape), many at once. A layer is a matrix (m, q), rows its outputs and columns its inputs: a
    kernel (c_out, c_in, k, k) is (c_out, c_in k^2), a table of embeddings (V, w) is (w, V), a vector (d,) is (d, 1).
    """

    radius: Finite = field(default=1.0, kw_only=True)

    @one_thread()
    def direction(self, g: Tensor, block: Block) -> Tensor:
        """-LMO(G) (..., *block.shape); 0 where G is."""
        return from_matrix(scaled(self._unit(as_matrix(g, block), block), self.radius), block)

    def lmo(self, g: Tensor, block: Block) -> Tensor:
        """LMO(G) (..., *block.shape)."""
        return -self.direction(g, block)

    @one_thread()
    def dual(self, g: Tensor, block: Block) -> Tensor:
        """||G||_* (...,), from its closed form."""
        return self.radius * self._dual(as_matrix(g, block), block)

    def sharp(self, g: Tensor, block: Block) -> Tensor:
        """The sharp operator of G (..., *block.shape): <G, -LMO(G)> times -LMO(G)."""
        way = self.direction(g, block)
        axes = tuple(range(-len(block.shape), 0))
        return (g * way).sum(axes, keepdim=True) * way if axes else g * way * way

    @abstractmethod
    def _unit(self, g: Tensor, block: Block) -> Tensor:
        """-LMO of matrices (..., m, q) over the unit ball."""

    @abstractmethod
    def _dual(self, g: Tensor, block: Block) -> Tensor:
        """The dual norm (...,) of matrices (..., m, q) for the unit ball."""


def scaled(t: Tensor, factor: float) -> Tensor:
    """factor t; t itself where that is 1."""
    return t if factor == 1 else factor * t


def as_matrix(g: Tensor, block: Block) -> Tensor:
    """Layers (..., *block.shape) as matrices (..., m, q)."""
    lead = g.shape[: g.dim() - len(block.shape)]
    if len(block.shape) < 2:
        return g.reshape(*lead, -1, 1)
    matrix = g.reshape(*lead, block.shape[0], -1)
    return matrix.mT if block.role == "embedding" else matrix


def from_matrix(matrix: Tensor, block: Block) -> Tensor:
    """The inverse of `as_matrix`."""
    matrix = matrix.mT if block.role == "embedding" and len(block.shape) > 1 else matrix
    return matrix.reshape(*matrix.shape[:-2], *block.shape)


def sides(block: Block) -> tuple[int, int, int]:
    """Outputs, inputs and the number of places (k^2 of a kernel, else 1) of a layer."""
    if len(block.shape) < 2:
        return block.size, 1, 1
    m, q = block.shape[:2] if block.role != "embedding" else block.shape[1::-1]
    return m, q, prod(block.shape[2:])


def unit(g: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """g over its L2 norm along some axes, 0 where that is 0."""
    norm = vector_norm(g, dim=axes, keepdim=True)
    made: Tensor = g / norm
    odd = ~((norm > LEAST) & (norm < 1 / LEAST))  # squares of small numbers underflow, of large ones overflow
    if odd.any():
        made = torch.where(odd, _odd_unit(g, axes), made)
    return made


def _odd_unit(g: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """The same at any length of g, by a power of two that brings it within reach: no digit is another for it."""
    _, exponent = torch.frexp(g.abs().amax(axes, keepdim=True))
    near = torch.ldexp(g, -exponent.clamp(-100, 100))
    norm = vector_norm(near, dim=axes, keepdim=True)
    made: Tensor = near / norm.masked_fill(norm == 0, 1)
    return made


def length(g: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """The L2 norm of g along some axes."""
    norm: Tensor = vector_norm(g, dim=axes)
    return norm
