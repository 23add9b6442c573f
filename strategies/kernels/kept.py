"""Sums of a table of which one row changes at a time: only the group which that row is in is added up again."""

from __future__ import annotations

from math import ceil, sqrt

import torch
from torch import Tensor

from fedsim.types import Kept


def summed(rows: Tensor, kept: Kept) -> Tensor:
    """The sum (d,) of rows (n, d): that of the sums of about sqrt(n) groups.

    A group's sum is the same whether all groups are added up or one, and so is the whole, to the bit.
    """
    n, d = rows.shape
    size = ceil(sqrt(n))
    count = ceil(n / size)
    sums, groups = kept.of("sums", count, d), range(count)
    if sums is None or kept.changed is None:
        sums = rows.new_empty(count, d)
    else:
        groups = range(kept.changed // size, kept.changed // size + 1)
    for group in groups:
        torch.sum(rows[group * size : (group + 1) * size], 0, out=sums[group])
    kept.new["sums"] = sums
    return sums.sum(0)
