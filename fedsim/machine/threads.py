"""Work in pieces on as many threads as torch may use; a piece runs torch on one core. Results come in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], pieces: Sequence[T], device: str = "cpu") -> Iterator[R]:
    """`work` of every piece, in order; one after the other on an accelerator. None is at work once it has ended."""
    threads = torch.get_num_threads() if device == "cpu" else 1
    if min(threads, len(pieces)) <= 1:
        yield from map(work, pieces)
        return
    pool = _pool(threads, os.getpid())
    running = deque(pool.submit(work, piece) for piece in pieces)
    try:
        while running:
            yield running.popleft().result()  # which nothing here keeps
    finally:
        wait([future for future in running if not future.cancel()])


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay, since to start them takes as long as many a piece; a forked process has none of them."""
    pool = ThreadPoolExecutor(threads, initializer=_alone)
    together = Barrier(threads)
    for _ in pool.map(lambda _: together.wait(), range(threads)):
        pass
    torch.set_num_threads(threads)  # the number for threads to come is global: put it back
    return pool


def _alone() -> None:
    torch.get_num_threads()  # a thread takes the number that is set for all when it is first asked
    torch.set_num_threads(1)
