"""Numbers as floats of fewer bits, and as powers of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.layout import between
from fedsim.messages.coder import Coder, Uniform, bits_of, floats, largest_magnitude, words
from fedsim.messages.payload import Fields, Payload

MANTISSA = 2**23


@dataclass(frozen=True)
class Float32(Coder):
    """32 bits a number, exact."""

    unbiased: ClassVar[bool] = True

    def fields(self, k: int) -> Fields:
        return {"value": (k, 32)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        return {"value": words(bits_of(v))}

    def read(self, payload: Payload) -> Tensor:
        return floats(payload["value"])

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
        return {"value": words(v.to(torch.bfloat16).view(torch.int16)) & np.uint64(0xFFFF)}

    def read(self, payload: Payload) -> Tensor:
        return floats(payload["value"] << np.uint64(16))

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
            "value": words(scaled.view(torch.int16)) & np.uint64(0xFFFF),
            "exponent": words(exponent + 160),
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
        return {"power": words(self._rounded(v, uniform) >> 23) & np.uint64(0x1FF)}

    def read(self, payload: Payload) -> Tensor:
        return floats(payload["power"] << np.uint64(23))

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        return self._rounded(v, uniform).view(torch.float32)

    def _rounded(self, v: Tensor, uniform: Uniform) -> Tensor:
        # A random number of 23 bits added to the mantissa carries into the exponent with the mantissa's own chance.
        bits = bits_of(v)
        carry = uniform(v.shape[-1], torch.int32).bitwise_right_shift_(1)
        if not between(v, -(2.0**127), 2.0**127):
            carry.masked_fill_((bits & 0x7F800000) >= 254 << 23, 0)
        return carry.add_(bits).bitwise_and_(-MANTISSA)

    def alpha(self, k: int) -> float:
        return 7 / 8

    def omega(self, k: int) -> float:
        return 1 / 8
