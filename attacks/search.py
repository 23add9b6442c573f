"""The strongest factor on a line, for a damage that may jump."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BETWEEN = 4
PEAKS = (3, 2, 1)
TIED = 1e-5  # a relative difference of damages that may be rounding: engines and processors choose alike


def strongest(damage: Callable[[Tensor], Tensor], factors: Tensor) -> float:
    """The factor with the largest damage; `damage` takes factors (k,) and gives (k,), float64, where NaN is none.

    First the factors of a sorted grid; then 4 new ones in each gap beside the 3 highest peaks, once more beside the
    highest 2, and the highest. A peak may be the edge of a cliff: where a rule stops being fooled, the best factor is
    the last one before. Of damages that are as good as the same the lowest factor counts.
    """
    values = known(damage(factors))
    inner = torch.linspace(0, 1, BETWEEN + 2, dtype=torch.float64)[1:-1]
    for count in PEAKS:
        peaks = _peaks(values, count)
        gaps = torch.cat([peaks - 1, peaks]).unique()
        gaps = gaps[(gaps >= 0) & (gaps < len(factors) - 1)]
        if len(gaps) == 0:
            break
        new = torch.lerp(factors[gaps, None], factors[gaps + 1, None], inner).flatten()
        factors, values = torch.cat([factors, new]), torch.cat([values, known(damage(new))])
        order = factors.argsort()
        factors, values = factors[order], values[order]
    return first_best(factors, values)


def first_best(factors: Tensor, values: Tensor) -> float:
    """The first of the factors whose values are as good as the highest."""
    best = values.max()
    tied = (values == best) | (values >= best - TIED * best.abs())
    return float(factors[tied.nonzero()[0, 0]])


def known(values: Tensor) -> Tensor:
    """With what is no number the lowest."""
    return values.nan_to_num(-torch.inf, torch.inf, -torch.inf)


def _peaks(values: Tensor, count: int) -> Tensor:
    """Where the highest values stand that are below no neighbour and above one: the inside of a plateau is none."""
    edge = values.new_full((1,), -torch.inf)
    left, right = torch.cat([edge, values[:-1]]), torch.cat([values[1:], edge])
    top = (values >= left) & (values >= right) & ((values > left) | (values > right))
    return torch.where(top, values, -torch.inf).topk(min(count, int(top.sum()))).indices
