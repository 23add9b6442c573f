"""Rows in column blocks that fit the cache: every pass over an (n, d) matrix goes through here.

Blocks are cut by the shape of the rows alone and their results used in order, so an answer does not depend on
the number of threads. On a CPU a block is the work of one thread; as many run as torch may use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from torch import Tensor

from fedsim.threads import each

T = TypeVar("T")
CACHED = 2**18  # numbers in a block on a CPU: with a copy, in the second-level cache of a core
ON_DEVICE = 2**21  # on an accelerator: large enough to fill it, 64 MB with the temporaries of a sort
STREAM = 2**17  # columns: long enough for the memory, short enough for the threads
FEW = 16  # below so many rows minima and maxima of whole rows are far quicker than sorting column by column
NETWORK = 32  # up to so many rows they are quicker still, on one thread: for matrices of
LITTLE = 2**23  # numbers at the most, which leave little to do for more threads
SYMMETRIC = 128  # rows from which NumPy's product, which knows that it is symmetric, beats torch's
REGISTER = 16  # numbers in a vector register
PAGES = 32  # rows that are read side by side: a place in each is a page that the processor must find


@dataclass(frozen=True)
class Rows:
    """The rows (n, d) in use: all of `data`, or those with the given ids; `finite`: known to be so."""

    data: Tensor
    ids: Tensor | None = None
    finite: bool = False

    @property
    def n(self) -> int:
        return (self.data if self.ids is None else self.ids).shape[0]

    @property
    def d(self) -> int:
        return self.data.shape[1]

    @property
    def traced(self) -> bool:
        """Whether a gradient is wanted: then one block, and no operation in place."""
        return torch.is_grad_enabled() and self.data.requires_grad

    @property
    def cached(self) -> int:
        """Columns of a block that fits the cache."""
        room = CACHED if self.data.device.type == "cpu" else ON_DEVICE
        return max(64, room // self.n // 64 * 64)

    @property
    def short(self) -> bool:
        """Whether whole rows are worked on, one thread after the other: threads would wait for Python's lock."""
        return self.n < FEW or (self.n <= NETWORK and self.n * self.d <= LITTLE)

    @property
    def streamed(self) -> int:
        """Columns of a block that is read once and leaves one row, or less; not where picked rows must be copied."""
        return STREAM if self.ids is None else self.cached

    @property
    def multiplied(self) -> int:
        """Columns of a block whose rows are multiplied: long products are quicker."""
        return (8 if self.data.device.type == "cpu" else 2) * self.cached

    def block(self, columns: slice) -> Tensor:
        """The rows at some columns (n, b): a view where it can be."""
        part = self.data[:, columns]
        return part if self.ids is None else part[self.ids]

    def row(self, i: int, columns: slice) -> Tensor:
        return self.data[i if self.ids is None else int(self.ids[i]), columns]

    def take(self, members: Tensor) -> Rows:
        return Rows(self.data, members if self.ids is None else self.ids[members], self.finite)

    def without_broken(self) -> Rows:
        """The rows without NaN, Inf, and float64 numbers whose square is none."""
        most = min(torch.finfo(self.data.dtype).max, 1e150)
        good = torch.ones(len(self.data), dtype=torch.bool, device=self.data.device)
        for part in each_block(self, lambda columns: (self.data[:, columns].abs() <= most).all(1)):
            good &= part
        return Rows(self.data, None if good.all() else good.nonzero()[:, 0], finite=True)


def each_block(rows: Rows, work: Callable[[slice], T], width: int | None = None) -> Iterator[T]:
    """`work` of every column block, in order; blocks of some width, or as wide as fits the cache."""
    width = rows.d if rows.traced else width or rows.cached
    blocks = [slice(start, min(start + width, rows.d)) for start in range(0, rows.d, width)]
    if rows.short:
        yield from map(work, blocks)
    else:
        yield from each(work, blocks, rows.data.device.type)


class _Memory(threading.local):
    held: Tensor | None = None


_memory = _Memory()


def scratch(like: Tensor, *shape: int) -> Tensor:
    """A tensor to be filled, of the dtype and device of another; on a CPU this thread's own, good until the next call.

    A fresh megabyte for every block would cost more, in pages that the kernel clears, than what is done to it.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    size = prod(shape) * like.element_size()
    if _memory.held is None or _memory.held.shape[0] < size:
        _memory.held = torch.empty(size, dtype=torch.uint8)
    return _memory.held[:size].view(like.dtype).view(shape)


def copied(block: Tensor, short: bool) -> Tensor:
    """The block (n, b) as scratch that lies as `ordered` likes it: where rows are not `short`, column by column."""
    n, b = block.shape
    if short or block.device.type != "cpu":
        return scratch(block, n, b).copy_(block)
    columns = _columns(block, n, b).T
    to, source = columns.numpy(), block.numpy()  # twice as fast as torch's
    for i in range(0, n, PAGES):
        np.copyto(to[i : i + PAGES], source[i : i + PAGES])
    return columns


def mixed(weights: Tensor, block: Tensor, short: bool) -> Tensor:
    """weights (m, n) @ block (n, b) as scratch that lies as `ordered` likes it."""
    m, b = weights.shape[0], block.shape[1]
    if short or block.device.type != "cpu":
        return torch.mm(weights, block, out=scratch(block, m, b))
    return torch.mm(block.T, weights.T, out=_columns(block, m, b)).T


def _columns(like: Tensor, n: int, b: int) -> Tensor:
    """Scratch (b, n) for columns of n numbers, each of which starts a vector register: sorted in 2/3 of the time."""
    return scratch(like, b, -(-n // REGISTER) * REGISTER)[:, :n]


def gram_of(z: Tensor) -> Tensor:
    """z z' of a block (k, b)."""
    if z.device.type != "cpu" or z.requires_grad or z.shape[0] < SYMMETRIC:
        return z @ z.T
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(z.numpy() @ z.numpy().T)


def one_blas_thread() -> AbstractContextManager[None]:
    """For a pass with `gram_of`: NumPy's library would start threads of its own in each of ours."""
    context: AbstractContextManager[None] = _libraries().limit(limits=1, user_api="blas")
    return context


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def ordered(block: Tensor, *wanted: tuple[int, int]) -> Tensor:
    """The block (m, b) with each column sorted upwards, in place where it is a CPU's scratch.

    Where only some ranks are `wanted`, the others hold anything; ranks that are wanted together, (first, behind the
    last), may stand in any order.
    """
    if block.device.type != "cpu" or block.requires_grad:
        return block.sort(dim=0).values
    m = block.shape[0]
    if m <= NETWORK and block.stride(1) == 1:
        _exchange(block.numpy(), wanted or tuple((i, i + 1) for i in range(m)))
        return block
    if block.stride(0) != 1:
        block = copied(block.clone(), False)  # it may be scratch itself
    block.numpy().T.sort(axis=1)  # vectorised for short contiguous rows
    return block


def rowwise(z: Tensor) -> Tensor:
    """z (m, b) so that its rows are contiguous."""
    if z.stride(1) == 1 or z.device.type != "cpu" or z.requires_grad:
        return z
    return torch.from_numpy(np.ascontiguousarray(z.numpy()))


def _exchange(z: np.ndarray, wanted: tuple[tuple[int, int], ...]) -> None:
    """Bring the wanted ranks of the columns of z (m, b) to their places by minima and maxima of whole rows."""
    rows = [*z, np.empty_like(z[0])]
    for smaller, a, b, to in _steps(len(z), wanted):
        (np.minimum if smaller else np.maximum)(rows[a], rows[b], out=rows[to])


@cache
def _steps(m: int, wanted: tuple[tuple[int, int], ...]) -> list[tuple[bool, int, int, int]]:
    """What `_exchange` does, as (minimum or maximum, row a, row b, row for the result); row m is there to spare.

    A comparator is left out where both its results go on unchanged to ranks that are wanted together, or to none; and
    half of it where one does. A minimum goes to the row to spare, and its own row is the next to spare; in the end the
    rows are named so that each wanted rank is in its place.
    """
    group = {rank: start for start, stop in wanted for rank in range(start, stop)}
    ends = [group.get(rank, -1 - sum(rank >= stop for _, stop in wanted)) for rank in range(m)]
    goal: list[int | None] = list(ends)
    live = [rank in group for rank in range(m)]
    kept: list[tuple[int, int, bool, bool]] = []
    for i, j in reversed(_network(m)):
        if (goal[i] is None or goal[i] != goal[j]) and (live[i] or live[j]):
            kept.append((i, j, live[i], live[j]))
            goal[i] = goal[j] = None
            live[i] = live[j] = True
    place, spare, steps = list(range(m)), m, list[tuple[bool, int, int, int]]()
    for i, j, low, high in reversed(kept):
        a, b = place[i], place[j]
        if low and high:
            steps += [(True, a, b, spare), (False, a, b, b)]
            place[i], spare = spare, a
        else:
            steps.append((low, a, b, a if low else b))
    if spare != m:
        steps.append((True, m, m, spare))
        place[place.index(m)] = spare
    name = {row: rank for rank, row in enumerate(place)} | {m: m}
    return [(smaller, name[a], name[b], name[to]) for smaller, a, b, to in steps]


@cache
def _network(m: int) -> list[tuple[int, int]]:
    """Comparators of Batcher's odd-even merge sort (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    pairs, p = [], 1
    while p < m:
        k = p
        while k >= 1:
            for j in range(k % p, m - k, 2 * k):
                for i in range(j, min(j + k, m - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        pairs.append((i, i + k))
            k //= 2
        p *= 2
    return pairs
