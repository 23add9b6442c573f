"""Work in pieces on as many threads as torch may use, torch on one core in each piece. Results come in order.

What torch spreads over k threads is cut into k parts: the last bits of a product or a sum then depend on k. So here
arithmetic runs on one thread (`one_thread`), and what is spread is cut by the shape of the work alone.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class _Here(threading.local):
    spare = 0  # threads that torch leaves to `each` while it runs on one; 0 outside of `one_thread`


_here = _Here()


def allowed() -> int:
    """The number of threads that `each` may use: torch's, or what that was outside of `one_thread`."""
    return _here.spare or torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """In the body, or the decorated function, torch runs on one thread; `each` has as many as before."""
    if _here.spare or torch.get_num_threads() == 1:
        yield
        return
    _here.spare = threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _here.spare = 0
        torch.set_num_threads(threads)


def each(work: Callable[[T], R], pieces: Sequence[T], device: str = "cpu") -> Iterator[R]:
    """`work` of every piece, in order; one after the other on an accelerator. None is at work once it has ended.

    The answers are those of one thread where the pieces do not depend on the number of threads.
    """
    threads = allowed() if device == "cpu" else 1
    if min(threads, len(pieces)) <= 1:
        yield from map(one_thread()(work), pieces)
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
    mine = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=_alone)
    together = Barrier(threads)
    for _ in pool.map(lambda _: together.wait(), range(threads)):
        pass
    torch.set_num_threads(mine)  # the number for threads to come is global: put it back
    return pool


def _alone() -> None:
    torch.get_num_threads()  # a thread takes the number that is set for all when it is first asked
    torch.set_num_threads(1)
