"""A layer with parameters, and what it must know to give the gradients of n clients at once.

N = n * b examples run through a layer as one batch, client after client. A parameter is the same for all
clients, of its own shape, or one for each, (n, *shape). `kept` is what a layer keeps of its input, g (N, ...)
the gradient of the N losses with respect to its output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.layout import LARGE, SMALL, between, norms_by_parts

Parameters = dict[str, Tensor]
CANCELLED = 400.0  # a sum may be 20 times shorter than its terms: their rounding is then some 1e-6 of it


class Ready(Protocol):
    """The gradients of n clients, of which all is known but the numbers themselves."""

    def write(self, clients: slice, out: Tensor, scale: Tensor | None = None, added: bool = False) -> None:
        """Put, or add, those of some clients (k, d) or their sum (1, d), each times its `scale` (k,); in any thread."""

    def norms(self) -> Tensor:
        """Their L2 norms (n,), to five digits, where the route tells them from less than the gradients; else NaN."""


@dataclass(frozen=True)
class Rows:
    """Where n gradients go, or what they are `added` to: a view (n, *shape) for each parameter of a layer."""

    views: Parameters
    added: bool = False

    def product(self, name: str, a: Tensor, b: Tensor) -> None:
        """Put a @ b, of (n, p, q) and (n, q, r)."""
        if self.added:
            self.views[name].baddbmm_(a, b)
        else:
            torch.bmm(a, b, out=self.views[name])

    def put(self, name: str, value: Tensor) -> None:
        """Put a value; nothing where the layer has no such parameter."""
        if name in self.views and self.added:
            self.views[name].add_(value)
        elif name in self.views:
            self.views[name].copy_(value)


class Layer(ABC):
    """A module, in the form that serves n clients; `trained` names those of its parameters that gradients are of."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.trained = {name for name, p in module.named_parameters(recurse=False) if p.requires_grad}

    @staticmethod
    def fits(module: Any) -> bool:
        """Whether this is the arithmetic of the module with all its options."""
        return True

    @abstractmethod
    def forward(self, x: Tensor, at: Parameters) -> tuple[Tensor, Tensor]:
        """What to keep, and the output."""

    @abstractmethod
    def square_norms(self, kept: Tensor, g: Tensor) -> Norms:
        """The squared norm of each example's gradient, as `write` will put it."""

    @abstractmethod
    def write(
        self, kept: Tensor, g: Tensor, weight: Tensor | None, each: Tensor | None, rows: Rows, n: int
    ) -> None:
        """Put sum_j weight_ij grad_ij of each client i; weight (n, b), or None where g has it already."""


@dataclass(frozen=True)
class Norms:
    """What a layer knows of the gradients of N examples.

    squares  (N,), float64, their squared norms
    sure     (N,), whether what `write` puts has that norm to five digits: not so where its terms cancel
    each     (N, ...), the gradients themselves, where they came about
    """

    squares: Tensor
    sure: Tensor
    each: Tensor | None = None


def square(t: Tensor) -> Tensor:
    """||t_j||^2 (N,), float64, of t (N, ...) of any size."""
    if t.device.type != "cpu":
        whole: Tensor = torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64)
        return whole.square()
    squares = norms_by_parts(t).double().square().reshape(len(t), -1).sum(1)
    if not between(squares, SMALL**2, LARGE**2):
        odd = ~((squares > SMALL**2) & (squares < LARGE**2))
        squares[odd] = t[odd].double().flatten(1).square().sum(1)
    return squares


def uncancelled(squares: Tensor, lengths: Tensor) -> Tensor:
    """Whether float32 sums of squared norms (N,) have kept five digits, their terms being so long in all (N,)."""
    return lengths.square() <= CANCELLED * squares


def block_of(t: Tensor) -> int:
    """Numbers in a block of inputs: on a CPU one megabyte, which the cache of a core holds."""
    return 2**18 if t.device.type == "cpu" else 2**26


def weighed(t: Tensor, weight: Tensor | None) -> Tensor:
    """weight_j t_j of t (N, ...)."""
    return t if weight is None else t * weight.reshape(-1, *[1] * (t.dim() - 1))


def total(t: Tensor, weight: Tensor | None, n: int) -> Tensor:
    """sum_j weight_ij t_ij (n, ...) of t (N, ...)."""
    sums: Tensor = weighed(t, weight).reshape(n, -1, *t.shape[1:]).sum(1)
    return sums
