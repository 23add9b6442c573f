"""Normal numbers from the operating system's cryptographic generator, safe against attacks on floating-point noise."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUMMANDS = 4  # 2n with n = 2, as in Opacus' secure mode: inverting the sum then takes 2^159 steps


def normal(count: int) -> Tensor:
    """Standard normal numbers (count,), float32, that nobody can derive: every one uses fresh bytes of `os.urandom`.

    Each is the sum of 2n independent normal numbers over sqrt(2n). Which floats a single transformed uniform number can
    become tells what was added to it; a sum of several hides that (Holohan and Braghin, arXiv:2107.10138).
    """
    total = np.zeros(count)
    for _ in range(SUMMANDS):
        total += _box_muller(count)
    return torch.from_numpy((total / np.sqrt(SUMMANDS)).astype(np.float32))


def uniform(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in [0, 1), (count,), of 24 fresh bits each; as int32 these bits."""
    bits = torch.from_numpy((np.frombuffer(os.urandom(4 * count), np.uint32) >> np.uint32(8)).view(np.int32))
    return bits if dtype == torch.int32 else bits * 2.0**-24


def _box_muller(count: int) -> NDArray[np.float64]:
    half = -(-count // 2)
    uniform = _uniform(2 * half)
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _uniform(count: int) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1): the middles of 2^52 intervals."""
    bits = np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(12)
    return np.asarray((bits.astype(np.float64) + 0.5) * 2.0**-52)
