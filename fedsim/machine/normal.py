"""Standard normal numbers whose tails go on where torch's end."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

GROUP = 16  # torch makes numbers j and j + 8 of such a group from one radius and one angle
STEPS = 2.0**24  # that radius is sqrt(-2 log u), with u a multiple of 1 / STEPS: 5.77 at the most
FAR = 80  # u up to so many steps, radii from 4.95 on, are drawn anew within their step
CANDIDATE = np.float32(3.49)  # one number of a pair of such a radius is larger
BLOCK = 2**15  # numbers looked at a time: they stay in the cache


def normal_(z: Tensor, generator: Generator) -> Tensor:
    """Fill z (d,), float32, with standard normal numbers, a function of the generator alone.

    On a CPU torch's numbers, with tails to 10 deviations: the uniform number u behind a large radius becomes
    u - V / STEPS, with V uniform in float64, so that the radius has the exact law. On a GPU from 53 bits.
    """
    if z.device.type != "cpu":
        return z.copy_(torch.empty_like(z, dtype=torch.float64).normal_(generator=generator))
    d = len(z)
    # whole groups: torch makes the last numbers in another way where they are no group
    whole = z if d % GROUP == 0 else z.new_empty(d + GROUP - d % GROUP)
    whole.normal_(generator=generator)
    numbers = whole.numpy()
    if len(first := _candidates(numbers)):
        _stretch(numbers, first, generator)
    return z if whole is z else z.copy_(whole[:d])


def _stretch(numbers: NDArray[np.float32], first: NDArray[np.int64], generator: Generator) -> None:
    """Draw the far radii among those of the pairs that begin at `first` anew, within their step."""
    square = numbers[first].astype(np.float64) ** 2 + numbers[first + GROUP // 2].astype(np.float64) ** 2
    u = np.round(np.exp(-square / 2) * STEPS)
    far = u <= FAR
    if far.any():
        first, square, u = first[far], square[far], u[far]
        u -= torch.rand(len(u), dtype=torch.float64, generator=generator).numpy()
        longer = np.sqrt(-2 * np.log(u / STEPS) / square)
        for half in (first, first + GROUP // 2):
            numbers[half] = numbers[half] * longer


def _candidates(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """The first of each pair in which a number is large enough for its radius to be far, in order."""
    size = np.empty(min(len(numbers), BLOCK), np.float32)
    found = []
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        large = np.abs(block, out=size[: len(block)]) > CANDIDATE
        found.append(large.nonzero()[0] + start)
    places = np.concatenate(found)
    if not len(places):
        return places
    return np.unique(places - places % GROUP + places % (GROUP // 2))
