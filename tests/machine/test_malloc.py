"""Large blocks in a run: asked for again they cost no page faults."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
from contextlib import suppress

import pytest

from fedsim.machine import malloc as heap

FAULTS = """
import ctypes
import resource
import torch
from fedsim.machine import malloc as heap

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        blocks = [torch.ones(2**22) for _ in range(8)]  # 16 MB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ctypes.CDLL(None).mallopt(-3, 2**17)  # as the library begins: every large block is a mapping, given back when freed
usual = faults()
with heap.kept():
    faults()  # the heap grows to its size
    print(usual, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_blocks_that_are_asked_for_again_are_the_same_pages() -> None:
    fresh = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    usual, kept = map(int, fresh.stdout.split())
    assert usual > 20 * 1024 * 4  # pages of 4 KB: nearly all 24 blocks
    assert kept < usual / 8  # the heap may still grow by a block


def test_it_wraps_a_function() -> None:
    @heap.kept()
    def double(x: int) -> int:
        return 2 * x

    assert double(3) == double(x=3) == 6


def test_cycles_are_looked_for_again_after_a_body_without() -> None:
    for failed in (False, True):
        with suppress(KeyError), heap.uncollected():
            assert not gc.isenabled()
            if failed:
                raise KeyError
        assert gc.isenabled()
