"""Compressors that know the layers: each by itself, or as a matrix of low rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fedsim.check import Count, Natural
from fedsim.layout import Block, Layout
from fedsim.messages.coder import Coder, Uniform
from fedsim.messages.compressor import Compressor, contraction
from fedsim.messages.floats import Float32
from fedsim.messages.payload import Fields, Payload


@dataclass(frozen=True)
class ByLayer(Compressor):
    """Each layer by the compressor `inner`, with its coder; alpha is the least, omega the largest of any layer."""

    inner: Compressor

    @property
    def coder(self) -> Coder:  # type: ignore[override]
        return self.inner.coder

    def __call__(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Tensor:
        parts = zip(v.split(layout.sizes, -1), self._alone(layout), strict=True)
        return torch.cat([self.inner(part, alone, uniform, places) for part, alone in parts], -1)

    def encode(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Payload:
        parts = zip(layout.blocks, v.split(layout.sizes, -1), self._alone(layout), strict=True)
        return {
            f"{block.name}/{name}": words
            for block, part, alone in parts
            for name, words in self.inner.encode(part, alone, uniform, places).items()
        }

    def decode(self, payload: Payload, layout: Layout, places: Uniform | None = None) -> Tensor:
        return torch.cat(
            [
                self.inner.decode(
                    {n: payload[f"{b.name}/{n}"] for n in self.inner.fields(alone)}, alone, places
                )
                for b, alone in zip(layout.blocks, self._alone(layout), strict=True)
            ]
        )

    def fields(self, layout: Layout) -> Fields:
        return {
            f"{block.name}/{name}": field
            for block, alone in zip(layout.blocks, self._alone(layout), strict=True)
            for name, field in self.inner.fields(alone).items()
        }

    def alpha(self, layout: Layout) -> float | None:
        each = [self.inner.alpha(alone) for alone in self._alone(layout)]
        known = [alpha for alpha in each if alpha is not None]
        return min(known) if len(known) == len(each) else None

    def omega(self, layout: Layout) -> float | None:
        each = [self.inner.omega(alone) for alone in self._alone(layout)]
        known = [omega for omega in each if omega is not None]
        return max(known) if len(known) == len(each) else None

    def _alone(self, layout: Layout) -> Iterator[Layout]:
        return (Layout((block,)) for block in layout.blocks)


@dataclass(frozen=True)
class LayersFrom(Compressor):
    """Every number of the layers from the one numbered `first` on; receivers know `first`, and read 0 before it."""

    first: Natural = 0
    coder: Coder = Float32()

    def __call__(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Tensor:
        left_out, sent = v.split(self._sizes(layout), -1)
        return torch.cat([torch.zeros_like(left_out), self.coder.round(sent, uniform)], -1)

    def encode(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Payload:
        return self.coder.write(v.split(self._sizes(layout), -1)[1], uniform)

    def decode(self, payload: Payload, layout: Layout, places: Uniform | None = None) -> Tensor:
        return torch.cat([torch.zeros(self._sizes(layout)[0]), self.coder.read(payload)])

    def fields(self, layout: Layout) -> Fields:
        return self.coder.fields(self._sizes(layout)[1])

    def alpha(self, layout: Layout) -> float | None:
        return contraction(1.0, self.coder, layout.width) if self.first == 0 else None

    def omega(self, layout: Layout) -> float | None:
        return None

    def _sizes(self, layout: Layout) -> list[int]:
        """How many numbers are left out, and sent."""
        return [sum(layout.sizes[: self.first]), sum(layout.sizes[self.first :])]


@dataclass(frozen=True)
class RankK(Compressor):
    """The nearest matrix of rank `rank` of each layer, as two factors of rank * (m + q) numbers; vectors whole.

    A kernel is a matrix of its output channels. Of each pair of factors the left one's largest entry is positive, so
    that what is sent does not hang on a library's choice of signs. alpha >= rank / min(m, q).
    """

    rank: Count = 1
    coder: Coder = Float32()

    def __call__(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Tensor:
        return self._product(self.coder.round(self._factors(v, layout), uniform), layout)

    def encode(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Payload:
        return self.coder.write(self._factors(v, layout), uniform)

    def decode(self, payload: Payload, layout: Layout, places: Uniform | None = None) -> Tensor:
        return self._product(self.coder.read(payload), layout)

    def fields(self, layout: Layout) -> Fields:
        return self.coder.fields(sum(sum(self._sizes(block)) for block in layout.blocks))

    def alpha(self, layout: Layout) -> float | None:
        # An error in a factor is none of its product: with a coder that is not exact no alpha is known.
        if self.coder.alpha(1) != 1:
            return None
        return contraction(min(self._kept(block) for block in layout.blocks), self.coder, 1)

    def omega(self, layout: Layout) -> float | None:
        return None

    def _matrix(self, block: Block) -> tuple[int, int] | None:
        """The sides (m, q) of a block as a matrix; None where it is sent whole."""
        if len(block.shape) < 2:
            return None
        m, q = block.shape[0], prod(block.shape[1:])
        return None if self.rank * (m + q) >= m * q else (m, q)

    def _sizes(self, block: Block) -> tuple[int, ...]:
        sides = self._matrix(block)
        return (block.size,) if sides is None else tuple(self.rank * side for side in sides)

    def _kept(self, block: Block) -> float:
        sides = self._matrix(block)
        return 1.0 if sides is None else self.rank / min(sides)

    def _factors(self, v: Tensor, layout: Layout) -> Tensor:
        parts = []
        for block, part in zip(layout.blocks, v.split(layout.sizes, -1), strict=True):
            sides = self._matrix(block)
            if sides is None:
                parts.append(part)
                continue
            u, s, vh = torch.linalg.svd(part.double().unflatten(-1, sides), full_matrices=False)
            u, s, vh = u[..., : self.rank], s[..., : self.rank], vh[..., : self.rank, :]
            sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
            both = (u * sign * s.unsqueeze(-2)).flatten(-2), (vh * sign.mT).flatten(-2)
            parts += [factor.to(v.dtype) for factor in both]
        return torch.cat(parts, -1)

    def _product(self, numbers: Tensor, layout: Layout) -> Tensor:
        sizes = [size for block in layout.blocks for size in self._sizes(block)]
        pieces, parts = iter(numbers.split(sizes, -1)), []
        for block in layout.blocks:
            sides = self._matrix(block)
            if sides is None:
                parts.append(next(pieces))
            else:
                u = next(pieces).unflatten(-1, (sides[0], self.rank))
                parts.append((u @ next(pieces).unflatten(-1, (self.rank, sides[1]))).flatten(-2))
        return torch.cat(parts, -1)
