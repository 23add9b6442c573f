"""Rows in column blocks that fit the cache: every pass over an (n, d) matrix goes through here.

Blocks are cut by the shape of the rows alone, each is the work of one thread (on a CPU as many work at a time as torch
may use), and results are used in order: so no answer depends on the number of threads.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import isfinite, prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.machine.mapped import ahead
from fedsim.machine.threads import allowed, each, one_thread
from fedsim.strategies.kernels.networks import exchange

T = TypeVar("T")
# What the first, third and fourth are worth shows `fedsim bench rules` on Krum and NNM + Median, on Mean and
# CenteredClipping, and on Median at n = 10 and 32, with other numbers here.
CACHED = 2**18  # numbers in a block on a CPU: with a copy, in the second-level cache of a core
ON_DEVICE = 2**21  # on an accelerator: large enough to fill it, 64 MB with the temporaries of a sort
STREAM = 2**17  # columns: long enough for the memory, short enough for the threads
NETWORK = 32  # up to so many rows minima and maxima of whole rows are quicker than sorting column by column


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
    def short(self) -> bool:
        """Whether columns are so short that a network of minima and maxima orders them, in whole rows."""
        return self.n <= NETWORK

    @property
    def cached(self) -> int:
        """Columns of a block that fits the cache."""
        room = CACHED if self.data.device.type == "cpu" else ON_DEVICE
        return max(64, room // self.n // 64 * 64)

    @property
    def wide(self) -> int:
        """Columns of a block whose rows are worked on as a whole: long rows are quicker, alone and beside others."""
        return (4 if self.data.device.type == "cpu" else 2) * self.cached

    @property
    def reduced(self) -> int:
        """Columns of a block whose columns are reduced each for itself."""
        return self.wide if self.short and self.data.device.type == "cpu" else self.cached

    @property
    def streamed(self) -> int:
        """Columns of a block that is read once and leaves one row, or less; not where picked rows must be copied."""
        return STREAM if self.ids is None else self.cached

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
    work = one_thread()(work)
    width = rows.d if rows.traced else width or rows.cached
    if width >= rows.d:
        yield work(slice(0, rows.d))
        return
    blocks = [slice(start, min(start + width, rows.d)) for start in range(0, rows.d, width)]
    threads = allowed()
    if threads == 1:
        yield from map(work, ahead(rows.data, blocks))
        return
    # by shares: each thread reads ahead in its own, and not a whole file is asked for before the first block
    size = -(-len(blocks) // (4 * threads))
    shares = [blocks[first : first + size] for first in range(0, len(blocks), size)]

    def done(share: list[slice]) -> list[T]:
        return [work(block) for block in ahead(rows.data, share)]

    for results in each(done, shares, rows.data.device.type):
        yield from results


class _Memory(threading.local):
    held = np.empty(0, np.uint8)


_memory = _Memory()


def scratch(like: Tensor, *shape: int) -> Tensor:
    """A tensor to be filled, like another in dtype and device; on a CPU this thread's own, until the next call."""
    return torch.from_numpy(_room(like, *shape)) if like.device.type == "cpu" else like.new_empty(shape)


def _room(like: Tensor, *shape: int) -> NDArray[Any]:
    """A fresh megabyte for every block would cost more, in pages that the kernel clears, than what is done to it.

    NumPy makes the views, since each call of torch lets go of Python's lock, for which other threads wait.
    """
    size = prod(shape) * like.element_size()
    if len(_memory.held) < size:
        _memory.held = torch.empty(size, dtype=torch.uint8).numpy()  # starts a vector register
    return _memory.held[:size].view(numpy_type(like)).reshape(shape)


def numpy_type(like: Tensor) -> type[np.floating[Any]]:
    return np.float32 if like.dtype == torch.float32 else np.float64


def copied(block: Tensor, short: bool) -> Tensor:
    """The block (n, b) as scratch that lies as `ordered` likes it: where rows are not `short`, column by column."""
    n, b = block.shape
    if short or block.device.type != "cpu":
        return scratch(block, n, b).copy_(block)
    columns = _room(block, b, n).T
    np.copyto(columns, block.numpy())  # twice as fast as torch's
    return torch.from_numpy(columns)


def mixed(weights: Tensor, block: Tensor, short: bool) -> Tensor:
    """weights (m, n) @ block (n, b) as scratch that lies as `ordered` likes it."""
    m, b = weights.shape[0], block.shape[1]
    if short or block.device.type != "cpu":
        return product(weights, block, scratch(block, m, b))
    if weights.is_sparse_csr:
        return copied(product(weights, block, block.new_empty(m, b)), short)
    return torch.mm(block.T, weights.T, out=torch.from_numpy(_room(block, b, m))).T


def product(weights: Tensor, block: Tensor, out: Tensor) -> Tensor:
    """weights (m, n), which may be `sparse`, @ block (n, b) in `out`."""
    if weights.is_sparse_csr:
        return torch.addmm(out, weights, block, beta=0, out=out)
    return torch.mm(weights, block, out=out)


def sparse(weights: Tensor) -> Tensor:
    """Weights (m, n) in the form that skips zeros, for `product`."""
    _announce()
    return weights.to_sparse_csr()


@cache
def _announce() -> None:
    """Have torch say once that the form is young where nobody needs to hear it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


def finite(z: Tensor) -> bool:
    """Whether the sum of a block (m, b) or of a row is finite: then all its numbers are."""
    return isfinite(z.detach().sum())


def ordered(block: Tensor, *wanted: tuple[int, int]) -> Tensor:
    """The block (m, b) with each column sorted upwards, in place where it is a CPU's scratch.

    Where only some ranks are `wanted`, the others hold anything; ranks that are wanted together, (first, behind the
    last), may stand in any order.
    """
    if block.device.type != "cpu" or block.requires_grad:
        return block.sort(dim=0).values
    m = block.shape[0]
    if m <= NETWORK and block.stride(1) == 1:
        exchange(block.numpy(), wanted or tuple((i, i + 1) for i in range(m)))
        return block
    if block.stride(0) != 1:
        block = copied(block.clone(), False)  # it may be scratch itself
    block.numpy().T.sort(axis=1)  # vectorised for short contiguous rows
    return block


def rowwise(z: Tensor) -> Tensor:
    """z (m, b) so that its rows are contiguous."""
    return z if z.stride(1) == 1 or z.device.type != "cpu" or z.requires_grad else z.contiguous()
