"""Standard normal numbers whose tails go on where torch's end."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

GROUP, PARTNER = 16, 8  # torch makes numbers j and j + 8 of such a group from one radius and one angle
STEPS = 2.0**24  # that radius is sqrt(-2 log u), with u a multiple of 1 / STEPS: 5.77 at the most
FAR = 24.4926  # squares of radii from here on, those of u up to 80 steps, are drawn anew within their step
CANDIDATE = np.float32(12.18)  # the square of one number of a pair of such a radius is larger
BLOCK = 2**15  # numbers made at a time where rows are short: they stay in the cache
LOOKED = 2**17  # numbers looked at a time: what comes out does not depend on it


def whole(d: int) -> int:
    """How many numbers hold d in whole groups: torch makes the last ones in another way where they are no group."""
    return d if d < GROUP else -(-d // GROUP) * GROUP


def normal_(z: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Fill z (k, w), contiguous, w = whole(w), with standard normal numbers, a row from each of k generators alone.

    On a CPU torch's numbers, with tails to 10 deviations: the uniform number u behind a large radius becomes
    u - V / STEPS, with V uniform in float64, so that the radius has the exact law. Fewer than a group torch makes
    from 53 bits, to 8.5 deviations, and those of a GPU are made so here.
    """
    for row, generator in zip(z, generators, strict=True):
        if z.device.type == "cpu":
            row.normal_(generator=generator)
        else:
            row.copy_(torch.empty_like(row, dtype=torch.float64).normal_(generator=generator))
    if z.device.type == "cpu" and z.shape[1] >= GROUP:
        _stretch(z.view(-1).numpy(), generators)
    return z


def _stretch(numbers: NDArray[np.float32], generators: Sequence[Generator]) -> None:
    """Draw far radii anew within their step, in order."""
    width = len(numbers) // len(generators)
    room = np.empty(min(len(numbers), LOOKED), np.float32)
    for start in range(0, len(numbers), LOOKED):
        block = numbers[start : start + LOOKED]
        squares = np.square(block, out=room[: len(block)])
        large = (squares > CANDIDATE).nonzero()[0]
        far = large[squares[large] + squares[large ^ PARTNER] > FAR]
        for i in np.unique(far & ~PARTNER).tolist() if len(far) else ():
            pair = block[i : i + GROUP : PARTNER]
            square = float(pair[0]) ** 2 + float(pair[1]) ** 2
            steps = round(exp(-square / 2) * STEPS)  # exact: rounding moves it by far less than a half
            v = torch.rand((), dtype=torch.float64, generator=generators[(start + i) // width])
            pair *= sqrt(-2 * log((steps - float(v)) / STEPS) / square)
