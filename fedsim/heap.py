"""Memory that a round gives back and the next one asks for again stays with the process.

The C library hands large blocks back to the kernel, which clears every page anew when they are asked for again: an
operation on twenty megabytes then takes three times as long.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of mallopt(3)
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
USUAL = {MMAP_MAX: 2**16, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # where it ends up when left alone


@contextmanager
def kept() -> Iterator[None]:
    """In the body freed memory is kept, afterwards it goes back; without effect where the C library is not glibc."""
    _set(KEPT)
    try:
        yield
    finally:
        _set(USUAL)


def _set(options: dict[int, int]) -> None:
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in options.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
