"""Standard normal numbers whose tails go on where torch's end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import exp, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fedsim.machine.threads import each

GROUP, PARTNER = 16, 8  # torch makes numbers j and j + 8 of such a group from one radius and one angle
STEPS = 2.0**24  # that radius is sqrt(-2 log u), with u a multiple of 1 / STEPS: 5.77 at the most
FAR = 4.949  # radii from here on, those of u up to 80 steps, are drawn anew within their step
CANDIDATE = np.float32(3.49)  # one number of a pair of such a radius is larger
BLOCK = 2**15  # numbers made at a time where rows are short: they stay in the cache
PIECE = 2**17  # numbers added in one piece of work
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
        large = (squares > CANDIDATE * CANDIDATE).nonzero()[0]
        far = large[squares[large] + squares[large ^ PARTNER] > FAR * FAR]
        for i in np.unique(far & ~PARTNER).tolist() if len(far) else ():
            pair = block[i : i + GROUP : PARTNER]
            square = float(pair[0]) ** 2 + float(pair[1]) ** 2
            steps = round(exp(-square / 2) * STEPS)  # exact: rounding moves it by far less than a half
            v = torch.rand((), dtype=torch.float64, generator=generators[(start + i) // width])
            pair *= sqrt(-2 * log((steps - float(v)) / STEPS) / square)


def add_normal(
    rows: Tensor,
    deviations: Sequence[float],
    keys: NDArray[np.uint64],
    draw: Callable[[Tensor, NDArray[np.uint64]], Tensor],
    out: Tensor,
) -> Tensor:
    """`rows` (k, d), or their sum (1, d), plus normal numbers of k deviations, a stream each; `out` may be `rows`.

    draw  fills (m, w), w = whole(d), with standard normal numbers of m keys
    """
    d, device = rows.shape[1], rows.device.type
    size = max(4, PIECE // d)  # not by the number of threads: sums would differ
    pieces = [slice(start, start + size) for start in range(0, len(keys), size)]

    def drawn(part: slice) -> Iterator[Tensor]:
        own, several = keys[part], max(1, BLOCK // whole(d))
        z = rows.new_empty(several, whole(d))  # stays in the cache
        for start in range(0, len(own), several):
            some = own[start : start + several]
            yield from draw(z[: len(some)], some)[:, :d]

    def total(part: slice) -> Tensor:
        noise = torch.empty_like(rows[0])
        for i, (z, by) in enumerate(zip(drawn(part), deviations[part], strict=True)):
            noise = torch.add(noise, z, alpha=by, out=noise) if i else torch.mul(z, by, out=noise)
        return noise

    def add(part: slice) -> None:
        for row, z, by, to in zip(rows[part], drawn(part), deviations[part], out[part], strict=True):
            torch.add(row, z, alpha=by, out=to)

    if len(rows) < len(keys):
        noise = torch.zeros_like(rows)
        for part in each(total, pieces, device):
            noise += part
        return torch.add(rows, noise, out=out)
    for _ in each(add, pieces, device):
        pass
    return out
