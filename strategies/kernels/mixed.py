"""Mixed rows: combinations of the rows of a matrix that are formed at one column block at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from fedsim.strategies.kernels.columns import Rows, copied, each_block, finite, mixed, numpy_type, product
from fedsim.strategies.kernels.gram import BrokenRows

LARGE = 2**22  # bytes


@dataclass(frozen=True)
class Mixed:
    """weights (m, n), maybe `sparse`, @ rows; weights (n,) are factors of the rows, None leaves them as they are."""

    rows: Rows
    weights: Tensor | None
    seed: int  # of what is drawn behind the weights
    previous: tuple[Tensor, Tensor] | None = None  # weights (m, 1) of one more row, and that row (d,)

    @property
    def m(self) -> int:
        return self.rows.n if self.weights is None else self.weights.shape[0]

    def block(self, columns: slice) -> Tensor:
        """The mixed rows (m, b), which belong to the caller; raises `BrokenRows`."""
        part = self.rows.block(columns)
        if self.weights is None:
            block = part if self.rows.traced else copied(part, self.rows.short)
        elif self.weights.dim() == 1:
            factors = self.weights[:, None]
            block = part * factors if self.rows.traced else copied(part, self.rows.short).mul_(factors)
        else:
            block = self.weights @ part if self.rows.traced else mixed(self.weights, part, self.rows.short)
        if self.previous is not None:
            block = block + self.previous[0] * self.previous[1][columns]
        return self._checked(block)

    def common(self, count: int) -> Mixed | None:
        """The one row that `count` or more of the mixed rows are; None where their weights do not show it."""
        weights = self.weights
        if weights is None or weights.dim() == 1 or weights.is_sparse_csr or weights.device.type != "cpu":
            return None
        if self.previous is not None or self.rows.traced or not self.rows.finite:
            return None
        rows = [row.tobytes() for row in weights.detach().numpy()]
        most, times = Counter(rows).most_common(1)[0]
        return replace(self, weights=weights[rows.index(most)][None]) if times >= count else None

    def vector(self, reduce: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """The answers (b,) of `reduce` to all blocks and their columns, side by side: (d,)."""
        if self.rows.traced:
            every = slice(0, self.rows.d)
            return reduce(self.block(every), every)
        out = empty(self.rows.data, self.rows.d)

        def fill(columns: slice) -> None:
            out[columns] = reduce(self.block(columns), columns)

        for _ in each_block(self.rows, fill, self.rows.reduced):
            pass
        return out

    def row(self) -> Tensor:
        """The one mixed row (d,) there is."""
        if self.rows.traced or self.weights is None or self.weights.dim() == 1:
            return self.block(slice(0, self.rows.d))[0].clone()
        weights, out = self.weights[0], empty(self.rows.data, self.rows.d)

        def fill(columns: slice) -> None:
            place = out[columns]
            torch.mv(self.rows.block(columns).T, weights, out=place)
            if self.previous is not None:
                place += self.previous[0][0] * self.previous[1][columns]
            self._checked(place)

        for _ in each_block(self.rows, fill, self.rows.streamed):
            pass
        return out

    def matrix(self) -> Tensor:
        """All mixed rows (m, d)."""
        if self.rows.traced or self.weights is None:
            return self.block(slice(0, self.rows.d)).clone()
        weights, out = self.weights, empty(self.rows.data, self.m, self.rows.d)

        def fill(columns: slice) -> None:
            part, place = self.rows.block(columns), out[:, columns]
            if weights.dim() == 1:
                torch.mul(part, weights[:, None], out=place)
            else:
                product(weights, part, place)
            self._checked(place)

        dense = weights.dim() == 2 and not weights.is_sparse_csr
        for _ in each_block(self.rows, fill, None if dense else self.rows.streamed):
            pass
        return out

    def _checked(self, block: Tensor) -> Tensor:
        if not self.rows.finite and not finite(block):
            raise BrokenRows
        return block


def empty(like: Tensor, *shape: int) -> Tensor:
    """A tensor to be filled; on the CPU from NumPy, which asks for LARGE pages: half the time of a first write."""
    if like.device.type != "cpu" or prod(shape) * like.element_size() < LARGE:
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, numpy_type(like)))
