"""How much memory a run takes, and what it does with memory that is free.

Memory that a round gives back and the next one asks for again stays with the process. The C library hands free memory
back to the kernel, which clears every page anew when it is asked for again: an operation on twenty megabytes then takes
three times as long.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MEMORY = 4.0  # GiB that clients' states and a round's rows may take, unless said otherwise
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGE = 2**25  # the most that may be set: from here on a block has a mapping of its own
KEPT = {MMAP_THRESHOLD: LARGE, TRIM_THRESHOLD: 2**31 - 1}
USUAL = {MMAP_THRESHOLD: LARGE, TRIM_THRESHOLD: 2 * LARGE}  # where the library ends up when left alone


@contextmanager
def kept() -> Iterator[None]:
    """In the body freed blocks below 32 MB are kept, afterwards they go back; of no effect without glibc."""
    _set(KEPT)
    try:
        yield
    finally:
        _set(USUAL)


@contextmanager
def uncollected() -> Iterator[None]:
    """In the body no search for cycles: an eighth of the time where many small objects stay, as in figures."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _set(options: dict[int, int]) -> None:
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in options.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
