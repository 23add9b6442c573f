"""How numbers are written: as integers of a few bits, exactly or by stochastic rounding.

Two forms of each coder are held to one another by a test: `write` and `read`, through the integers that travel, and
`round`, which makes what would be read in one pass over (..., k).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Component
from fedsim.messages.payload import Fields, Payload, Words


class Uniform(Protocol):
    """Random numbers (..., count) from an address of each sender's own; each call draws further ones."""

    def __call__(self, count: int, dtype: torch.dtype = torch.float32, /) -> Tensor:
        """In [0, 1), multiples of 2^-24; as int32 in units of these."""


class Coder(Component):
    """k numbers, float32, as integers.

    unbiased  E[read(write(v))] = v
    """

    unbiased: ClassVar[bool] = False

    @abstractmethod
    def fields(self, k: int) -> Fields:
        """How many integers of how many bits k numbers take, by name."""

    @abstractmethod
    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        """The integers of v (k,)."""

    @abstractmethod
    def read(self, payload: Payload) -> Tensor:
        """The numbers (k,) of a payload of this coder's fields; raises `Invalid` where one is out of range."""

    @abstractmethod
    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        """read(write(v)) of each of v (..., k)."""

    def alpha(self, k: int) -> float | None:
        """E||C(v) - v||^2 <= (1 - alpha) ||v||^2 for all v (k,); None where no such alpha > 0 is known."""
        return None

    def omega(self, k: int) -> float | None:
        """E||C(v) - v||^2 <= omega ||v||^2 where the coder is unbiased."""
        return None


def bits_of(v: Tensor) -> Tensor:
    """The 32 bits of float32 numbers, as int32."""
    return v.float().contiguous().view(torch.int32)


def words(t: Tensor) -> Words:
    return t.cpu().numpy().astype(np.int64).astype(np.uint64) & np.uint64(0xFFFFFFFF)


def floats(words: Words) -> Tensor:
    return torch.from_numpy(words.astype(np.uint32).view(np.float32).copy())


def signed(scale: Tensor, up: Tensor) -> Tensor:
    return torch.where(up, scale, -scale)


def largest_magnitude(v: Tensor) -> Tensor:
    """max_j |v_j| (..., 1)."""
    # `aminmax` of a dimension takes five times as long; `abs`, since the larger of 0 and -0 may be either
    return torch.maximum(-v.amin(-1, keepdim=True), v.amax(-1, keepdim=True)).abs_()
