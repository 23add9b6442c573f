"""Which numbers of a vector are sent: all, the largest, a random share."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.check import Invalid, Share
from fedsim.layout import Layout
from fedsim.messages.coder import Coder, Uniform
from fedsim.messages.compressor import Compressor, contraction
from fedsim.messages.floats import Float32
from fedsim.messages.largest import largest
from fedsim.messages.payload import Fields, Payload, Words


@dataclass(frozen=True)
class All(Compressor):
    """Every number, as its coder writes it."""

    coder: Coder = Float32()

    def __call__(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Tensor:
        return self.coder.round(v, uniform)

    def encode(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Payload:
        return self.coder.write(v, uniform)

    def decode(self, payload: Payload, layout: Layout, places: Uniform | None = None) -> Tensor:
        return self.coder.read(payload)

    def fields(self, layout: Layout) -> Fields:
        return self.coder.fields(layout.width)

    def alpha(self, layout: Layout) -> float | None:
        return contraction(1.0, self.coder, layout.width)

    def omega(self, layout: Layout) -> float | None:
        return self.coder.omega(layout.width) if self.coder.unbiased else None


@dataclass(frozen=True)
class TopK(Compressor):
    """The largest |v_j|, a share of d of them, one at least; of equal ones those of the lowest index. alpha >= k / d.

    Their places travel as indices or as a mask of d bits, whichever is shorter.
    """

    share: Share = 0.1
    coder: Coder = Float32()

    def k(self, layout: Layout) -> int:
        return max(1, round(self.share * layout.width))

    def __call__(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Tensor:
        index = largest(v, self.k(layout))
        return torch.zeros_like(v).scatter_(-1, index, self.coder.round(v.gather(-1, index), uniform))

    def encode(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Payload:
        index = largest(v, self.k(layout))
        return self.coder.write(v[index], uniform) | self._write(index.cpu().numpy(), layout)

    def decode(self, payload: Payload, layout: Layout, places: Uniform | None = None) -> Tensor:
        index = self._read(payload, layout)
        return torch.zeros(layout.width).index_copy_(-1, index, self.coder.read(payload))

    def fields(self, layout: Layout) -> Fields:
        d, k = layout.width, self.k(layout)
        width = max(1, ceil(log2(d)))
        where = {"index": (k, width)} if k * width < d else {"mask": (d, 1)}
        return {**self.coder.fields(k), **where}

    def alpha(self, layout: Layout) -> float | None:
        return contraction(self.k(layout) / layout.width, self.coder, self.k(layout))

    def omega(self, layout: Layout) -> float | None:
        return None

    def _write(self, index: NDArray[np.int64], layout: Layout) -> dict[str, Words]:
        if "index" in self.fields(layout):
            return {"index": index.astype(np.uint64)}
        mask = np.zeros(layout.width, np.uint64)
        mask[index] = 1
        return {"mask": mask}

    def _read(self, payload: Payload, layout: Layout) -> Tensor:
        d, k = layout.width, self.k(layout)
        if "mask" in payload:
            mask = payload["mask"] == 1
            if mask.sum() != k:
                raise Invalid(f"payload.mask: {int(mask.sum())} places, must be {k}")
            return torch.from_numpy(np.flatnonzero(mask))
        index = payload["index"].astype(np.int64)
        if index[-1] >= d or (np.diff(index) <= 0).any():
            raise Invalid(f"payload.index: must rise, and be below {d}")
        return torch.from_numpy(index)


@dataclass(frozen=True)
class RandK(Compressor):
    """A share of v at random. The places come from an address that both ends know, one for all senders of a round.

    unbiased  times d / k: omega = d / k - 1 before the coder; False: as they are, alpha = k / d
    """

    share: Share = 0.1
    unbiased: bool = True
    coder: Coder = Float32()

    def k(self, layout: Layout) -> int:
        return max(1, round(self.share * layout.width))

    def __call__(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Tensor:
        index = self._places(layout, places).to(v.device)
        kept = self.coder.round(v[..., index] * self._factor(layout), uniform)
        return torch.zeros_like(v).index_copy_(-1, index, kept)

    def encode(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Payload:
        return self.coder.write(v[self._places(layout, places).to(v.device)] * self._factor(layout), uniform)

    def decode(self, payload: Payload, layout: Layout, places: Uniform | None = None) -> Tensor:
        out = torch.zeros(layout.width)
        return out.index_copy_(-1, self._places(layout, places).cpu(), self.coder.read(payload))

    def fields(self, layout: Layout) -> Fields:
        return self.coder.fields(self.k(layout))

    def alpha(self, layout: Layout) -> float | None:
        k, d = self.k(layout), layout.width
        return None if self.unbiased and k < d else contraction(k / d, self.coder, k)

    def omega(self, layout: Layout) -> float | None:
        k, own = self.k(layout), self.coder.omega(self.k(layout))
        if not (self.unbiased and self.coder.unbiased) or own is None:
            return None
        return layout.width / k * (1 + own) - 1

    def _factor(self, layout: Layout) -> float:
        return layout.width / self.k(layout) if self.unbiased else 1.0

    def _places(self, layout: Layout, places: Uniform | None) -> Tensor:
        assert places is not None, "RandK: its places come from a shared address"
        chance = places(layout.width)
        return chance.argsort(stable=True)[: self.k(layout)].sort().values


@dataclass(frozen=True)
class Threshold(Compressor):
    """The numbers of |v_j| >= level, the largest share `most` of them: ||C(v) - v||^2 <= d level^2 where these are all.

    A message always has the room of `most`: what does not fill it is sent as zeros. No alpha or omega.
    """

    level: Share = 0.01
    most: Share = 0.5
    coder: Coder = Float32()

    def _top(self) -> TopK:
        return TopK(self.most, self.coder)

    def _cut(self, v: Tensor) -> Tensor:
        return torch.where(v.abs() >= self.level, v, 0)

    def __call__(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Tensor:
        return self._top()(self._cut(v), layout, uniform)

    def encode(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Payload:
        return self._top().encode(self._cut(v), layout, uniform)

    def decode(self, payload: Payload, layout: Layout, places: Uniform | None = None) -> Tensor:
        return self._top().decode(payload, layout)

    def fields(self, layout: Layout) -> Fields:
        return self._top().fields(layout)

    def alpha(self, layout: Layout) -> float | None:
        return None

    def omega(self, layout: Layout) -> float | None:
        return None
