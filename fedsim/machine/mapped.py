"""The large matrices of a round: in memory where they fit the budget, otherwise in files, which give way page by page.

A matrix is written row by row and then read by a few columns of all rows at a time. The kernel, left to itself, would
read far ahead in every row, and throw out what is next; it is told which columns come next.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.machine.malloc import MEMORY

FEW = 2**20  # bytes that stay in memory whatever there is
AHEAD = 2**26  # bytes that are read ahead at a time, a page of each row at least

_files: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by where their memory starts


@dataclass(frozen=True)
class Space:
    """Memory for what a run keeps, in GiB, and the folder of files beyond it (None: the system's for such files).

    taken  GiB by the matrices of a round; where that is more than there is, they lie in files
    """

    memory: float = MEMORY
    folder: Path | None = None
    taken: float = 0.0

    def beside(self, size: int) -> Space:
        """The space of a run whose rounds need matrices of `size` bytes together."""
        return replace(self, taken=size / 2**30)

    @property
    def left(self) -> float:
        """GiB of memory for other things."""
        return self.memory - (0 if self.taken > self.memory else self.taken)

    @property
    def crowded(self) -> bool:
        """Whether the matrices of a round lie in files."""
        return self.taken > self.memory

    def housed(self, value: Tensor) -> Tensor:
        """The same numbers where matrices of a round lie: in a file, unless they are few, or fit the memory."""
        if not self.crowded or value.device.type != "cpu" or value.dim() < 2 or value.nbytes < FEW:
            return value
        found = self.empty(value, *value.shape)
        for row, old in zip(found, value, strict=True):
            if old.any():  # a new file holds zeros, and no pages
                row.copy_(old)
        return found

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """A tensor to be filled, like another in dtype and device; raises `Invalid` where the disk is full."""
        size = prod(shape) * like.element_size()
        if like.device.type != "cpu" or not size or max(self.taken, size / 2**30) <= self.memory:
            return like.new_empty(shape)
        memory = self._mapped(size)
        found = torch.frombuffer(memory, dtype=like.dtype).view(shape)
        _files[found.data_ptr()] = memory
        return found

    def _mapped(self, size: int) -> mmap.mmap:
        try:
            with TemporaryFile(dir=self.folder) as file:  # without a name; gone once nobody reads it
                if hasattr(os, "posix_fallocate"):  # on a full disk an error, where else a signal would kill
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    os.ftruncate(file.fileno(), size)
                memory = mmap.mmap(file.fileno(), size)
        except OSError as error:
            where, size_gib = self.folder or gettempdir(), size / 2**30
            raise Invalid(
                f"{where}: no room for {size_gib:.1f} GiB of clients' rows beside memory ({error.strerror})"
            ) from None
        memory.madvise(mmap.MADV_RANDOM)
        return memory


def ahead(rows: Tensor, blocks: Sequence[slice]) -> Iterator[slice]:
    """The blocks of columns, in order; of rows (n, d) in a file those to come are read while one is worked on."""
    start = rows.untyped_storage().data_ptr() if _files else 0
    memory = _files.get(start)
    if memory is None or not rows.stride(0):
        yield from blocks
        return
    size, (n, _) = rows.element_size(), rows.shape
    first, step = rows.data_ptr() - start, rows.stride(0) * size
    width = max(mmap.PAGESIZE, AHEAD // n) // size
    reach, end = blocks[0].start, blocks[-1].stop
    for block in blocks:
        while reach < min(block.stop + width, end):
            until = min(reach + width, end)
            for begin in range(first + reach * size, first + reach * size + n * step, step):
                page = begin // mmap.PAGESIZE * mmap.PAGESIZE
                memory.madvise(mmap.MADV_WILLNEED, page, begin + (until - reach) * size - page)
            reach = until
        yield block
