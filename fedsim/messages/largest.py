"""The indices of the k largest |v_j|, exactly and quickly: most numbers are told apart by a threshold from a sample."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.machine.threads import each

MAGNITUDE = np.int32(0x7FFFFFFF)
SAMPLE = 2048  # numbers whose order statistics bound the threshold from below


def largest(v: Tensor, k: int) -> Tensor:
    """The indices (..., k) of the k largest |v_j| of each v (..., d), float32, in order; of equal ones the lowest.

    NaN counts as larger than all numbers.
    """
    if v.device.type != "cpu":
        size = _magnitude(v)
        mask = _by_threshold(size, size.topk(k, dim=-1).values[..., -1:], k)
        return mask.nonzero()[:, -1].view(*v.shape[:-1], k)
    rows = v.reshape(-1, v.shape[-1]).contiguous().numpy()
    index = torch.empty(*v.shape[:-1], k, dtype=torch.int64)
    places = index.view(-1, k).numpy()

    def work(i: int) -> None:
        places[i] = _places(rows[i].view(np.int32) & MAGNITUDE, k)

    for _ in each(work, range(len(rows)), "cpu"):
        pass
    return index


def _magnitude(v: Tensor) -> Tensor:
    """|v_j| as integers of the same order: the bits of a float without its sign."""
    return v.contiguous().view(torch.int32) & int(MAGNITUDE)


def _by_threshold(size: Tensor, least: Tensor, k: int) -> Tensor:
    """The mask from the k-th largest: all above it, and as many of those equal to it as are lacking."""
    above, equal = size > least, size == least
    lacking = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= lacking))


def _places(size: NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """The indices of the k largest of size (d,), in order."""
    d, share = len(size), k / len(size)
    there = np.zeros(0, np.int64)
    if d > 8 * SAMPLE:
        # Four deviations below the k-th of d in a sample: nearly always all k, and few more, are no smaller.
        sample = size[:: d // SAMPLE]
        margin = 4 * sqrt(share * (1 - share) * len(sample)) + 2
        at = int(len(sample) * (1 - share) - margin)
        if at > 0:
            there = np.flatnonzero(size >= np.partition(sample, at)[at])
    if len(there) < k:
        there = np.arange(d)
    size = size[there]
    least = np.partition(size, len(size) - k)[len(size) - k]
    among = size >= least
    if (surplus := np.count_nonzero(among) - k) > 0:  # of those equal to the k-th, the last ones
        among[np.flatnonzero(size == least)[-surplus:]] = False
    found: NDArray[np.int64] = there[among]
    return found
