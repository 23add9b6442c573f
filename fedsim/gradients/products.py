"""Layers that multiply: linear and convolution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from fedsim.gradients.layers import (
    CANCELLED,
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


class Product(Layer):
    """A layer with weight gradient h' u: what went in, u (t, k), and what came back, h (t, o), over t places.

    Its squared norm is <u u', h h'>, without the gradient (Li et al., 2022: ghost norm), or is read from the
    gradient, which then serves `write`: whichever costs less.
    """

    @abstractmethod
    def matrices(self, kept: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, t, k) and h (N, t, o)."""

    @abstractmethod
    def write_weight(self, kept: Tensor, g: Tensor, rows: Rows, n: int) -> None:
        """Put the sum of each client's weight gradients."""

    @abstractmethod
    def shaped(self, gradients: Tensor) -> Tensor:
        """Weight gradients (n, o, k) in the shape of the weight."""

    @abstractmethod
    def over_places(self, g: Tensor) -> Tensor:
        """The bias gradient (N, o) of each example."""

    def square_norms(self, kept: Tensor, g: Tensor) -> Norms:
        biases = square(self.over_places(g)) if "bias" in self.trained else g.new_zeros(len(g)).double()
        if "weight" not in self.trained:
            return Norms(biases, self._kept_digits(biases, kept, g))
        o, k = self.module.weight.flatten(1).shape
        t = g[0].numel() // o
        if t == 1:
            u, h = (norms(m[:, 0]).double() for m in self.matrices(kept, g))
            return Norms((u * h).square() + biases, torch.maximum(u, h) <= LARGE)
        if 2 * t * (k + o) > k * o or t > CANCELLED:
            return self._from_gradients(kept, g, biases)
        squares = biases
        for block in self._blocks(g, t * k):
            u, h = (m.double() for m in self.matrices(kept[block], g[block]))
            squares[block] += ((u @ u.mT) * (h @ h.mT)).sum((1, 2))
        return Norms(squares, self._kept_digits(squares, kept, g))

    def _from_gradients(self, kept: Tensor, g: Tensor, biases: Tensor) -> Norms:
        o, k = self.module.weight.flatten(1).shape
        each, squares = g.new_empty(len(g), o, k), biases
        for block in self._blocks(g, g[0].numel() // o * k):
            u, h = self.matrices(kept[block], g[block])
            squares[block] += square(torch.bmm(h.mT, u, out=each[block]))
        return Norms(squares, squares <= LARGE**2, each)

    def _kept_digits(self, squares: Tensor, kept: Tensor, g: Tensor) -> Tensor:
        """Whether the sum over places h' u, biases being inputs of 1, is not much shorter than its terms."""
        lengths, (o, k) = squares.new_empty(len(g)), self.module.weight.flatten(1).shape
        for block in self._blocks(g, g[0].numel() // o * k):
            u, h = self.matrices(kept[block], g[block])
            sides = torch.linalg.vector_norm(u, dim=-1).double().square() if "weight" in self.trained else 0.0
            ones = 1.0 if "bias" in self.trained else 0.0
            lengths[block] = ((sides + ones) ** 0.5 * torch.linalg.vector_norm(h, dim=-1)).sum(1)
        return uncancelled(squares, lengths)

    def _blocks(self, g: Tensor, numbers: int) -> Iterator[slice]:
        """Some of the N examples at a time, whose inputs of so many numbers fit a block."""
        size = max(1, block_of(g) // numbers)
        return (slice(start, start + size) for start in range(0, len(g), size))

    def write(
        self, kept: Tensor, g: Tensor, weight: Tensor | None, each: Tensor | None, rows: Rows, n: int
    ) -> None:
        if each is None or weight is None:
            g, weight = weighed(g, weight), None
            if "weight" in self.trained:
                self.write_weight(kept, g, rows, n)
        else:
            sums: Tensor = weight.unsqueeze(1) @ each.view(n, -1, each[0].numel())
            rows.put("weight", self.shaped(sums.view(n, *each.shape[1:])))
        if "bias" in self.trained:
            rows.put("bias", total(self.over_places(g), weight, n))


class Linear(Product):
    """y = x W' + b over the last axis; the axes between are the places."""

    def forward(self, x: Tensor, at: Parameters) -> tuple[Tensor, Tensor]:
        weight, bias = at["weight"], at.get("bias")
        if weight.dim() == 2:
            return x, F.linear(x, weight, bias)
        tokens = x.reshape(len(weight), -1, x.shape[-1])
        y = tokens @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), tokens, weight.mT)
        return x, y.view(*x.shape[:-1], -1)

    def matrices(self, kept: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return kept.reshape(len(kept), -1, kept.shape[-1]), g.reshape(len(g), -1, g.shape[-1])

    def sum_norms(self, kept: Tensor, g: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The squared norm (n,), float64, of each client's sum, and the length of its terms, of lengths |u||h|.

        By products in float64: float32 loses the digits of a norm where inputs are long, or the terms pull apart.
        """
        u, h = kept.reshape(n, -1, kept.shape[-1]), g.reshape(n, -1, g.shape[-1])
        squares, lengths = (g.new_empty(n, dtype=torch.float64) for _ in range(2))
        size = min(n, max(1, block_of(g) // (u.shape[1] * max(u.shape[1], u.shape[2], h.shape[2]))))
        inputs, outputs = (t.new_empty(size, *t.shape[1:], dtype=torch.float64) for t in (u, h))
        for start in range(0, n, size):
            some = slice(start, start + size)
            a, b = (to[: n - start].copy_(t[some]) for to, t in ((inputs, u), (outputs, h)))
            inner = a @ a.mT if "weight" in self.trained else a.new_zeros(len(a), a.shape[1], a.shape[1])
            inner = inner.add_(1.0) if "bias" in self.trained else inner  # a bias is an input of 1
            back = b @ b.mT
            lengths[some] = (inner.diagonal(dim1=1, dim2=2) * back.diagonal(dim1=1, dim2=2)).sqrt().sum(1)
            squares[some] = inner.mul_(back).sum((1, 2))
        return squares, lengths

    def write_weight(self, kept: Tensor, g: Tensor, rows: Rows, n: int) -> None:
        rows.product("weight", g.reshape(n, -1, g.shape[-1]).mT, kept.reshape(n, -1, kept.shape[-1]))

    def over_places(self, g: Tensor) -> Tensor:
        return g if g.dim() == 2 else g.flatten(1, -2).sum(1)

    def shaped(self, gradients: Tensor) -> Tensor:
        return gradients


class Conv2d(Product):
    """A convolution. An output pixel is a place; u has its window, in the order (row, column, channel)."""

    @staticmethod
    def fits(module: nn.Conv2d) -> bool:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)

    def forward(self, x: Tensor, at: Parameters) -> tuple[Tensor, Tensor]:
        m, weight, bias = self.module, at["weight"], at.get("bias")
        if weight.dim() == 4:
            return x, F.conv2d(x, weight, bias, m.stride, m.padding, m.dilation)
        own = zip(x.chunk(len(weight)), weight, [None] * len(weight) if bias is None else bias, strict=True)
        return x, torch.cat([F.conv2d(part, w, b, m.stride, m.padding, m.dilation) for part, w, b in own])

    def matrices(self, kept: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        m = self.module
        x = F.pad(kept, (m.padding[1], m.padding[1], m.padding[0], m.padding[0])) if any(m.padding) else kept
        image, channel, row, column = x.stride()
        steps = (m.stride[0] * row, m.stride[1] * column, m.dilation[0] * row, m.dilation[1] * column)
        shape = (len(x), *g.shape[2:], *m.kernel_size, x.shape[1])
        windows = x.as_strided(shape, (image, *steps, channel), x.storage_offset())
        return windows.reshape(len(x), g[0, 0].numel(), -1), g.flatten(2).mT

    def over_places(self, g: Tensor) -> Tensor:
        return g.sum((2, 3))

    def write_weight(self, kept: Tensor, g: Tensor, rows: Rows, n: int) -> None:
        # n convolutions are fastest on a CPU; on a GPU they are too small, and one product serves many clients
        sums = self.convolved(kept, g, n) if g.device.type == "cpu" else self.unfolded(kept, g, n)
        rows.put("weight", sums)

    def convolved(self, kept: Tensor, g: Tensor, n: int) -> Tensor:
        """The sum of each client's weight gradients, (n, *shape), a convolution for each client."""
        m = self.module
        pairs = zip(kept.chunk(n), g.chunk(n), strict=True)
        shape, options = m.weight.shape, (m.stride, m.padding, m.dilation)
        return torch.stack([conv2d_weight(x, shape, h, *options) for x, h in pairs])

    def unfolded(self, kept: Tensor, g: Tensor, n: int) -> Tensor:
        """The same by products, of as many clients at a time as a block holds."""
        (o, k), b = self.module.weight.flatten(1).shape, len(g) // n
        size = max(1, block_of(g) // (b * k * (g[0].numel() // o))) * b
        sums = []
        for x, back in zip(kept.split(size), g.split(size), strict=True):
            u, h = self.matrices(x, back)
            clients = len(x) // b
            sums.append(h.reshape(clients, -1, o).mT @ u.reshape(clients, -1, k))
        return self.shaped(torch.cat(sums))

    def shaped(self, gradients: Tensor) -> Tensor:
        outputs, channels, *window = self.module.weight.shape
        return gradients.view(-1, outputs, *window, channels).permute(0, 1, 4, 2, 3)
