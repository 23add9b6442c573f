"""Large blocks in a run: asked for again they cost no page faults, and in the end they go back."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from fedsim import heap

ROWS = 2**24  # 64 MB, which the C library always maps on its own


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_block_that_is_asked_for_again_is_the_same_pages() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(ROWS)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    usual = faults()
    with heap.kept():
        faults()  # the heap grows to its size
        assert faults() < usual / 4
        held = resident()
    assert resident() <= held - 2 * ROWS  # half of it at least


def test_it_wraps_a_function() -> None:
    @heap.kept()
    def double(x: int) -> int:
        return 2 * x

    assert double(3) == double(x=3) == 6
