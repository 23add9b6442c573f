"""How numbers are written: as integers of a few bits, exactly or by stochastic rounding.

Two forms of each coder are held to one another by a test: `write` and `read`, through the integers that travel, and
`round`, which makes what would be read in one pass over (..., k).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from fedsim.check import Component, Invalid
from fedsim.layout import PART, norms
from fedsim.messages.payload import Fields, Payload, Words

Uniform = Callable[[int], Tensor]  # k -> numbers in [0, 1), (..., k), from an address of each sender's own

MANTISSA = 2**23
Levels = Annotated[int, Ge(1), Le(2**16)]


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


# ---------------------------------------------------------------- floating point
@dataclass(frozen=True)
class Float32(Coder):
    """32 bits a number, exact."""

    unbiased: ClassVar[bool] = True

    def fields(self, k: int) -> Fields:
        return {"value": (k, 32)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        return {"value": _words(_bits(v))}

    def read(self, payload: Payload) -> Tensor:
        return _floats(payload["value"])

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        return v

    def alpha(self, k: int) -> float:
        return 1.0

    def omega(self, k: int) -> float:
        return 0.0


@dataclass(frozen=True)
class BFloat16(Coder):
    """16 bits a number: float32 rounded to 8 significant bits, ties to even; alpha = 1 - 2^-16 of normal numbers."""

    def fields(self, k: int) -> Fields:
        return {"value": (k, 16)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        return {"value": _words(v.to(torch.bfloat16).view(torch.int16)) & np.uint64(0xFFFF)}

    def read(self, payload: Payload) -> Tensor:
        return _floats(payload["value"] << np.uint64(16))

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        return v.to(torch.bfloat16).to(v.dtype)

    def alpha(self, k: int) -> float:
        return 1 - 2.0**-16


@dataclass(frozen=True)
class Float16(Coder):
    """16 bits a number: float16 beside one power of two, so that the largest lies in [1/2, 1).

    alpha >= 1 - 2^-22 - k 2^-48: 11 significant bits, and an absolute error of 2^-25 of the largest below 2^-14 of it.
    """

    def fields(self, k: int) -> Fields:
        return {"value": (k, 16), "exponent": (1, 9)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        scaled, exponent = self._scaled(v)
        return {
            "value": _words(scaled.view(torch.int16)) & np.uint64(0xFFFF),
            "exponent": _words(exponent + 160),
        }

    def read(self, payload: Payload) -> Tensor:
        half = torch.from_numpy(payload["value"].astype(np.uint16).view(np.float16)).float()
        return torch.ldexp(half, torch.tensor(int(payload["exponent"][0]) - 160))

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        scaled, exponent = self._scaled(v)
        return torch.ldexp(scaled.float(), exponent)

    def _scaled(self, v: Tensor) -> tuple[Tensor, Tensor]:
        exponent = torch.frexp(largest_magnitude(v)).exponent
        return torch.ldexp(v, -exponent).half(), exponent

    def alpha(self, k: int) -> float:
        return 1 - 2.0**-22 - k * 2.0**-48


@dataclass(frozen=True)
class NaturalCompression(Coder):
    """Natural compression (arXiv:1905.10988): up or down to a power of two at random; sign and exponent, 9 bits.

    Unbiased, omega = 1/8 (of normal numbers: a subnormal one is 0 or 2^-126). A number of the largest exponent is
    rounded down, so that it stays finite; what is not finite is read as infinite.
    """

    unbiased: ClassVar[bool] = True

    def fields(self, k: int) -> Fields:
        return {"power": (k, 9)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        return {"power": _words(self._rounded(v, uniform) >> 23) & np.uint64(0x1FF)}

    def read(self, payload: Payload) -> Tensor:
        return _floats(payload["power"] << np.uint64(23))

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        return self._rounded(v, uniform).view(torch.float32)

    def _rounded(self, v: Tensor, uniform: Uniform) -> Tensor:
        # A random number of 23 bits added to the mantissa carries into the exponent with the mantissa's own chance.
        bits = _bits(v)
        carry = uniform(v.shape[-1]).mul_(MANTISSA).to(torch.int32)
        top = (bits & 0x7F800000) >= 254 << 23
        if top.any():
            carry.masked_fill_(top, 0)
        return carry.add_(bits).bitwise_and_(-MANTISSA)

    def alpha(self, k: int) -> float:
        return 7 / 8

    def omega(self, k: int) -> float:
        return 1 / 8


# ---------------------------------------------------------------- signs and levels
@dataclass(frozen=True)
class Signs(Coder):
    """(||v||_1 / k) sign(v), one bit a number, 0 as plus and -0 as minus; alpha >= 1 / k (arXiv:1901.09847)."""

    def fields(self, k: int) -> Fields:
        return {"sign": (k, 1), "scale": (1, 32)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        return {"sign": _words(~v.signbit()), "scale": _words(_bits(self._scale(v)))}

    def read(self, payload: Payload) -> Tensor:
        return _signed(_floats(payload["scale"]), torch.from_numpy(payload["sign"] == 1))

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        return torch.copysign(self._scale(v), v)

    def _scale(self, v: Tensor) -> Tensor:
        return mean_magnitude(v)

    def alpha(self, k: int) -> float:
        return 1 / k


@dataclass(frozen=True)
class StochasticSigns(Coder):
    """s S(v / s), with S(u) = 1 with probability (1 + u) / 2, else -1: unbiased, one bit a number (arXiv:2406.00489).

    bound  s; None: the largest |v_j| of the message, which then is sent too: omega = k - 1. A number beyond a fixed
           bound is clipped to it.
    """

    unbiased: ClassVar[bool] = True

    bound: Annotated[float, Ge(1e-6), Le(1e6)] | None = None

    def fields(self, k: int) -> Fields:
        return {"sign": (k, 1)} | ({"scale": (1, 32)} if self.bound is None else {})

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        scale = self._scale(v)
        sign = {"sign": _words(self._below(v, scale, uniform) < 0)}
        return sign if self.bound is not None else sign | {"scale": _words(_bits(scale))}

    def read(self, payload: Payload) -> Tensor:
        scale = _floats(payload["scale"]) if self.bound is None else torch.tensor([self.bound])
        return _signed(scale, torch.from_numpy(payload["sign"] == 1))

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        scale = self._scale(v)
        return torch.copysign(scale, self._below(v, scale, uniform).neg_())

    def _scale(self, v: Tensor) -> Tensor:
        return largest_magnitude(v) if self.bound is None else v.new_tensor([self.bound])

    def _below(self, v: Tensor, scale: Tensor, uniform: Uniform) -> Tensor:
        """Negative with the chance of a plus: u < (1 + v / s) / 2, without a quotient of two zeros."""
        return uniform(v.shape[-1]).mul_(2).sub_(1).mul_(scale).sub_(v)

    def omega(self, k: int) -> float | None:
        return k - 1.0 if self.bound is None else None


@dataclass(frozen=True)
class QSGD(Coder):
    """Stochastic rounding to `levels` levels of |v_j| / ||v||_2, beside a sign (arXiv:1610.02132).

    Unbiased, omega = min(k / levels^2, sqrt(k) / levels); 1 + log2(levels + 1) bits a number, rounded up, and 32.
    """

    unbiased: ClassVar[bool] = True

    levels: Levels = 15

    @property
    def width(self) -> int:
        return ceil(log2(self.levels + 1))

    def fields(self, k: int) -> Fields:
        return {"sign": (k, 1), "level": (k, self.width), "scale": (1, 32)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        scale = self._scale(v)
        level = self._level(v, scale, uniform)
        return {"sign": _words(v < 0), "level": _words(level.int()), "scale": _words(_bits(scale))}

    def read(self, payload: Payload) -> Tensor:
        level = payload["level"].astype(np.int64)
        if len(level) and level.max() > self.levels:
            raise Invalid(f"payload.level: {level.max()} of {self.levels} levels")
        value = torch.from_numpy(level).float() * (_floats(payload["scale"]) / self.levels)
        return torch.where(torch.from_numpy(payload["sign"] == 1), -value, value)

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        scale = self._scale(v)
        value = self._level(v, scale, uniform) * (scale / self.levels)
        return torch.where(v < 0, -value, value)

    def _scale(self, v: Tensor) -> Tensor:
        return norms(v).unsqueeze(-1)

    def _level(self, v: Tensor, scale: Tensor, uniform: Uniform) -> Tensor:
        share = v.abs() / scale.clamp_min(torch.finfo(v.dtype).tiny)
        return share.mul_(self.levels).add_(uniform(v.shape[-1])).floor_().clamp_(max=self.levels)

    def omega(self, k: int) -> float:
        return min(k / self.levels**2, sqrt(k) / self.levels)


@dataclass(frozen=True)
class Ternary(Coder):
    """s sign(v_j) with probability |v_j| / s, else 0, with s the largest |v_j| (arXiv:1705.07878); 2 bits a number.

    Unbiased, omega = sqrt(k) - 1.
    """

    unbiased: ClassVar[bool] = True

    def fields(self, k: int) -> Fields:
        return {"trit": (k, 2), "scale": (1, 32)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        scale = largest_magnitude(v)
        return {"trit": _words(self._trit(v, scale, uniform) + 1), "scale": _words(_bits(scale))}

    def read(self, payload: Payload) -> Tensor:
        trit = payload["trit"].astype(np.int64)
        if len(trit) and trit.max() > 2:
            raise Invalid("payload.trit: 3, allowed are 0, 1 and 2")
        return torch.from_numpy(trit - 1).float() * _floats(payload["scale"])

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        scale = largest_magnitude(v)
        return self._trit(v, scale, uniform) * scale

    def _trit(self, v: Tensor, scale: Tensor, uniform: Uniform) -> Tensor:
        return v.sign() * (uniform(v.shape[-1]) * scale < v.abs())

    def omega(self, k: int) -> float:
        return sqrt(k) - 1


def mean_magnitude(v: Tensor) -> Tensor:
    """||v||_1 / k (..., 1), by parts as in `norms`."""
    size = v.abs()
    whole = size.shape[-1] // PART * PART
    parts = size[..., :whole].unflatten(-1, (-1, PART)).sum(-1)
    rest = size[..., whole:].sum(-1, keepdim=True)
    return torch.cat([parts, rest], -1).sum(-1, keepdim=True) / v.shape[-1]


def largest_magnitude(v: Tensor) -> Tensor:
    """max_j |v_j| (..., 1)."""
    least, most = torch.aminmax(v, dim=-1, keepdim=True)
    return torch.maximum(-least, most)


# ---------------------------------------------------------------- between floats and integers
def _bits(v: Tensor) -> Tensor:
    """The 32 bits of float32 numbers, as int32."""
    return v.float().contiguous().view(torch.int32)


def _words(t: Tensor) -> Words:
    return t.cpu().numpy().astype(np.int64).astype(np.uint64) & np.uint64(0xFFFFFFFF)


def _floats(words: Words) -> Tensor:
    return torch.from_numpy(words.astype(np.uint32).view(np.float32).copy())


def _signed(scale: Tensor, up: Tensor) -> Tensor:
    return torch.where(up, scale, -scale)
