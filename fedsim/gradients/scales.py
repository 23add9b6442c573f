"""Layers whose gradient of one example is no larger than what they put out: norms and embeddings."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.gradients.layers import (
    Layer,
    Norms,
    Parameters,
    Rows,
    block_of,
    square,
    total,
    uncancelled,
    weighed,
)
from fedsim.layout import LARGE, norms


class Norm(Layer):
    """y = z w + b, with z the normalised input."""

    @abstractmethod
    def normalise(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """y for parameters that all examples share; z without any."""

    @abstractmethod
    def beside(self, parameter: Tensor, dims: int) -> Tensor:
        """A parameter of each example (N, *shape), so that it broadcasts over z of `dims` axes."""

    @abstractmethod
    def over_places(self, t: Tensor) -> Tensor:
        """The sum (N, *shape) of t over the places of an example that share a parameter."""

    def forward(self, x: Tensor, at: Parameters) -> tuple[Tensor, Tensor]:
        if at["weight"].dim() == self.module.weight.dim():
            return x, self.normalise(x, at["weight"], at.get("bias"))
        z = self.normalise(x)
        own = {name: value.repeat_interleave(len(z) // len(value), 0) for name, value in at.items()}
        y = z * self.beside(own["weight"], z.dim())
        return x, y + self.beside(own["bias"], z.dim()) if "bias" in own else y

    def square_norms(self, kept: Tensor, g: Tensor) -> Norms:
        each = self.over_places(self.normalise(kept) * g) if "weight" in self.trained else None
        squares = g.new_zeros(len(g)).double() if each is None else square(each)
        squares = squares + square(self.over_places(g)) if "bias" in self.trained else squares
        return Norms(squares, squares <= LARGE**2, each)

    def write(
        self, kept: Tensor, g: Tensor, weight: Tensor | None, each: Tensor | None, rows: Rows, n: int
    ) -> None:
        if "weight" in self.trained:
            each = self.over_places(self.normalise(kept) * g) if each is None else each
            rows.put("weight", total(each, weight, n))
        if "bias" in self.trained:
            rows.put("bias", total(self.over_places(g), weight, n))


class GroupNorm(Norm):
    """Statistics over the pixels of a group of channels; a parameter for each channel."""

    def normalise(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return F.group_norm(x, self.module.num_groups, weight, bias, self.module.eps)

    def beside(self, parameter: Tensor, dims: int) -> Tensor:
        return parameter[(..., *[None] * (dims - 2))]

    def over_places(self, t: Tensor) -> Tensor:
        return t.flatten(2).sum(2) if t.dim() > 2 else t


class LayerNorm(Norm):
    """Statistics over the last axes; a parameter for each of their elements."""

    def normalise(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, self.module.normalized_shape, weight, bias, self.module.eps)

    def beside(self, parameter: Tensor, dims: int) -> Tensor:
        return parameter[(slice(None), *[None] * (dims - parameter.dim()))]

    def over_places(self, t: Tensor) -> Tensor:
        places = range(1, t.dim() - len(self.module.normalized_shape))
        return t.sum(tuple(places)) if places else t


class Embedding(Layer):
    """y = W[x] for indices x; the gradient adds up what came back at each index."""

    @staticmethod
    def fits(module: nn.Embedding) -> bool:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse

    def forward(self, x: Tensor, at: Parameters) -> tuple[Tensor, Tensor]:
        weight = at["weight"]
        if weight.dim() == 2:
            return x, F.embedding(x, weight)
        return x, weight[self._client(x, len(weight)), x]

    def _client(self, x: Tensor, n: int) -> Tensor:
        """The client of each index, in a shape that broadcasts with x (N, ...)."""
        client = torch.arange(n, device=x.device).repeat_interleave(len(x) // n)
        return client[(..., *[None] * (x.dim() - 1))]

    def _without_padding(self, kept: Tensor, g: Tensor) -> Tensor:
        padding = self.module.padding_idx
        return g if padding is None else g.masked_fill((kept == padding).unsqueeze(-1), 0.0)

    def square_norms(self, kept: Tensor, g: Tensor) -> Norms:
        """From the sums over the places of an example that have the same index."""
        x, g = kept.flatten(1), self._without_padding(kept, g).reshape(len(g), -1, g.shape[-1])
        squares, (n, t, width) = g.new_empty(len(g), dtype=torch.float64), g.shape
        size = max(1, block_of(g) // (t * width))
        for start in range(0, n, size):
            some = g[start : start + size].double()
            sums = torch.zeros_like(some).flatten(0, 1)
            sums.index_add_(0, _groups(x[start : start + size]).flatten(), some.flatten(0, 1))
            squares[start : start + size] = sums.view(len(some), -1).square().sum(1)
        return Norms(squares, uncancelled(squares, norms(g).double().sum(1)))

    def write(
        self, kept: Tensor, g: Tensor, weight: Tensor | None, each: Tensor | None, rows: Rows, n: int
    ) -> None:
        view = rows.views["weight"]
        if not rows.added:
            view.zero_()
        client = self._client(kept, n).expand_as(kept)
        view.index_put_((client, kept), weighed(self._without_padding(kept, g), weight), accumulate=True)


def _groups(x: Tensor) -> Tensor:
    """Where each of the indices x (N, t) belongs, (N, t): the same number below N t for equal indices of a row."""
    ordered, order = x.sort(1)
    rank = torch.zeros_like(x)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    first = torch.arange(0, x.numel(), x.shape[1], device=x.device).unsqueeze(1)
    return torch.empty_like(x).scatter_(1, order, rank + first)
