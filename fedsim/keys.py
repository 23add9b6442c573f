"""Randomness with an address: every draw is named by (seed, purpose, round, client) and by nothing else.

So a result does not depend on the engine, on the order of work or on a restart, and resuming needs no saved generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

U32, U64 = np.uint32, np.uint64
GOLDEN, MIXING = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # SplitMix64
BLOCK = 2**14  # words made at a time
SHARED = 0  # the client of a draw that belongs to the whole round


@dataclass(frozen=True)
class Keys:
    """The addresses of one experiment with `clients` clients."""

    seed: int
    clients: int

    def of(
        self, purpose: str, round: NDArray[np.int64] | int = 0, ids: NDArray[np.int64] | int = SHARED
    ) -> NDArray[np.uint64]:
        """64-bit keys (k,), one a client, all of one round or each of its own.

        torch seeds its CPU generator with the low 32 bits alone, so these are a bijection of (round, client): within
        2^32 addresses of a purpose no two streams are the same. The high bits carry 32 more for other generators.
        """
        low, high = _salt(self.seed, purpose)
        place = np.atleast_1d(np.asarray(ids, U64) + np.asarray(round * self.clients, U64))
        bits = _mix32((place + U64(low & 0xFFFFFFFF)).astype(U32)).astype(U64)
        return (_mix64(place + U64(high)) << U64(32)) | bits

    def generator(self, purpose: str, round: int = 0, client: int = SHARED, device: str = "cpu") -> Generator:
        return Generator(device).manual_seed(torch_seed(self.of(purpose, round, client)[0]))

    def numpy(self, purpose: str, round: int = 0, client: int = SHARED) -> np.random.Generator:
        return np.random.default_rng(int(self.of(purpose, round, client)[0]))

    def uniform(
        self, purpose: str, round: NDArray[np.int64] | int, ids: NDArray[np.int64] | int, count: int
    ) -> NDArray[np.float64]:
        """Numbers in [0, 1), (k, count), of counter-based streams: cheap for many clients at once."""
        counter = np.arange(1, count + 1, dtype=U64) * U64(GOLDEN)
        bits = _mix64(_mix64(self.of(purpose, round, ids)[:, None]) + counter)
        return np.asarray((bits >> U64(11)) * 2.0**-53)


def uniform(
    keys: NDArray[np.uint64],
    start: int,
    count: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Numbers in [0, 1), (k, count), the same on any device: of each key's stream those from `start` on.

    Each word of 64 bits makes two numbers of 24 bits; as int32 they are these 24 bits.
    """
    first, words = start // 2, (start + count + 1) // 2 - start // 2
    fill = _fill_by_blocks if device == "cpu" else _fill
    out = torch.empty(len(keys), 2 * words, device=device, dtype=dtype)
    fill(out, _mix64(keys)[:, None], first)
    return out[:, start - 2 * first :][:, :count]


def _fill_by_blocks(out: Tensor, stream: NDArray[np.uint64], first: int) -> None:
    """On a CPU: NumPy has unsigned words, and the integers stay in the cache."""
    numbers, words = out.numpy(), out.shape[1] // 2
    width = max(1, min(words, BLOCK))  # long rows: they are worked on one by one
    height = BLOCK // width
    for at in range(0, words, width):
        counter = np.arange(first + at + 1, first + min(at + width, words) + 1, dtype=U64)
        counter *= U64(GOLDEN)
        for top in range(0, len(stream), height):
            z = stream[top : top + height] + counter
            shifted = np.empty_like(z)
            for shift, factor in MIXING:
                z ^= np.right_shift(z, U64(shift), out=shifted)
                z *= U64(factor)
            z ^= np.right_shift(z, U64(31), out=shifted)
            halves = z.view(U32)  # the lower one first
            part = numbers[top : top + height, 2 * at : 2 * at + halves.shape[1]]
            if out.dtype == torch.int32:
                np.right_shift(halves, U32(8), out=part.view(U32))
                continue
            halves >>= U32(8)
            np.copyto(part, halves.view(np.int32), casting="unsafe")
            part *= np.float32(2.0**-24)


def _fill(out: Tensor, stream: NDArray[np.uint64], first: int) -> None:
    """The same by torch, whose words have a sign, on any device."""
    z = torch.arange(first + 1, first + 1 + out.shape[1] // 2, device=out.device)
    z = z.mul_(_signed(GOLDEN)) + torch.from_numpy(stream.view(np.int64)).to(out.device)
    for shift, factor in MIXING:
        z.bitwise_xor_((z >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(_signed(factor))
    z.bitwise_xor_((z >> 31).bitwise_and_(2**33 - 1))
    out.copy_((z.view(torch.int32) >> 8).bitwise_and_(2**24 - 1))
    if out.dtype != torch.int32:
        out.mul_(2.0**-24)


def _signed(word: int) -> int:
    """A 64-bit word as torch's integers have it."""
    return word - 2**64 if word >= 2**63 else word


@lru_cache(maxsize=2**10)
def _salt(seed: int, purpose: str) -> tuple[int, int]:
    """Two words that name a seed and a purpose."""
    salt = blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    return int.from_bytes(salt[:8], "little"), int.from_bytes(salt[8:], "little")


def torch_seed(key: np.uint64) -> int:
    """A key as torch takes it: non-negative, the low 32 bits untouched."""
    return int(key) & 0x7FFFFFFFFFFFFFFF


def _mix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bijection of 64-bit words (the finaliser of SplitMix64)."""
    for shift, factor in MIXING:
        z = (z ^ (z >> U64(shift))) * U64(factor)
    return z ^ (z >> U64(31))


def _mix32(z: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Bijection of 32-bit words (the finaliser of MurmurHash3)."""
    z = (z ^ (z >> U32(16))) * U32(0x85EBCA6B)
    z = (z ^ (z >> U32(13))) * U32(0xC2B2AE35)
    return z ^ (z >> U32(16))
