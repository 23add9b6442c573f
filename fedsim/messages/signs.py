"""Numbers as signs, or as a few levels, beside a scale that all of a message share."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from fedsim.check import Invalid
from fedsim.layout import PART, norms
from fedsim.messages.coder import Coder, Uniform, bits_of, floats, largest_magnitude, signed, words
from fedsim.messages.payload import Fields, Payload

PLACES = np.array([1, 3, 9, 27, 81], np.uint64)
Levels = Annotated[int, Ge(1), Le(2**16)]


@dataclass(frozen=True)
class Signs(Coder):
    """(||v||_1 / k) sign(v), one bit a number, 0 as plus and -0 as minus; alpha >= 1 / k (arXiv:1901.09847)."""

    def fields(self, k: int) -> Fields:
        return {"sign": (k, 1), "scale": (1, 32)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        return {"sign": words(~v.signbit()), "scale": words(bits_of(self._scale(v)))}

    def read(self, payload: Payload) -> Tensor:
        return signed(floats(payload["scale"]), torch.from_numpy(payload["sign"] == 1))

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
        sign = {"sign": words(self._below(v, scale, uniform).signbit())}
        return sign if self.bound is not None else sign | {"scale": words(bits_of(scale))}

    def read(self, payload: Payload) -> Tensor:
        scale = floats(payload["scale"]) if self.bound is None else torch.tensor([self.bound])
        return signed(scale, torch.from_numpy(payload["sign"] == 1))

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
        return {"sign": words(v.signbit()), "level": words(level.int()), "scale": words(bits_of(scale))}

    def read(self, payload: Payload) -> Tensor:
        level = payload["level"].astype(np.int64)
        if len(level) and level.max() > self.levels:
            raise Invalid(f"payload.level: {level.max()} of {self.levels} levels")
        value = torch.from_numpy(level).float() * (floats(payload["scale"]) / self.levels)
        return torch.where(torch.from_numpy(payload["sign"] == 1), -value, value)

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        scale = self._scale(v)
        value = self._level(v, scale, uniform) * (scale / self.levels)
        return torch.copysign(value, v)

    def _scale(self, v: Tensor) -> Tensor:
        return norms(v).unsqueeze(-1)

    def _level(self, v: Tensor, scale: Tensor, uniform: Uniform) -> Tensor:
        share = v.abs() / scale.clamp_min(torch.finfo(v.dtype).tiny)
        return share.mul_(self.levels).add_(uniform(v.shape[-1])).floor_().clamp_(max=self.levels)

    def omega(self, k: int) -> float:
        return min(k / self.levels**2, sqrt(k) / self.levels)


@dataclass(frozen=True)
class Votes(Coder):
    """sign(v_j), 0 as such; NaN is no vote, and so 0. 1.6 bits a number: five of them in a byte."""

    def fields(self, k: int) -> Fields:
        return _trit_fields(k)

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        return _trits(v.sign())

    def read(self, payload: Payload) -> Tensor:
        return _signs_of_trits(payload)

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        return v.sign()


@dataclass(frozen=True)
class Ternary(Coder):
    """s sign(v_j) with probability |v_j| / s, else 0, with s the largest |v_j| (arXiv:1705.07878); 1.6 bits a number.

    Unbiased, omega = sqrt(k) - 1.
    """

    unbiased: ClassVar[bool] = True

    def fields(self, k: int) -> Fields:
        return _trit_fields(k) | {"scale": (1, 32)}

    def write(self, v: Tensor, uniform: Uniform) -> Payload:
        scale = largest_magnitude(v)
        return _trits(self._trit(v, scale, uniform)) | {"scale": words(bits_of(scale))}

    def read(self, payload: Payload) -> Tensor:
        return _signs_of_trits(payload) * floats(payload["scale"])

    def round(self, v: Tensor, uniform: Uniform) -> Tensor:
        scale = largest_magnitude(v)
        return self._trit(v, scale, uniform).mul_(scale)

    def _trit(self, v: Tensor, scale: Tensor, uniform: Uniform) -> Tensor:
        taken = uniform(v.shape[-1]).mul_(scale) < v.abs()
        return torch.copysign(taken.to(v.dtype), v).add_(0.0)  # -0 is 0

    def omega(self, k: int) -> float:
        return sqrt(k) - 1


def _trit_fields(k: int) -> dict[str, tuple[int, int]]:
    """Five of three values in a byte, 3^5 = 243 <= 256; what is left over by two bits each."""
    return {"fives": (k // 5, 8), "trit": (k % 5, 2)}


def _trits(signs: Tensor) -> Payload:
    trits, whole = words(signs + 1), len(signs) // 5 * 5
    return {"fives": trits[:whole].reshape(-1, 5) @ PLACES, "trit": trits[whole:]}


def _signs_of_trits(payload: Payload) -> Tensor:
    for name, most in (("fives", 242), ("trit", 2)):
        if (payload[name] > most).any():
            raise Invalid(f"payload.{name}: {payload[name].max()}, allowed is 0 to {most}")
    fives = payload["fives"][:, None] // PLACES % np.uint64(3)
    trits = np.concatenate([fives.reshape(-1), payload["trit"]])
    return torch.from_numpy(trits.astype(np.float32)) - 1


def mean_magnitude(v: Tensor) -> Tensor:
    """||v||_1 / k (..., 1), by parts as in `norms`."""
    size = v.abs()
    whole = size.shape[-1] // PART * PART
    parts = size[..., :whole].unflatten(-1, (-1, PART)).sum(-1)
    rest = size[..., whole:].sum(-1, keepdim=True)
    return torch.cat([parts, rest], -1).sum(-1, keepdim=True) / v.shape[-1]
