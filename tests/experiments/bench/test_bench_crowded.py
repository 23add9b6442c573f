"""Tables of an asynchronous run beyond the memory: what the process takes, and that no bit changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.experiments.bench.crowded import MODULE
from fedsim.experiments.bench.process import in_fresh_process


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not say what memory is taken"
)
def test_tables_beyond_the_memory_take_none_of_the_process_and_change_no_bit() -> None:
    here, there = (
        in_fresh_process(MODULE, 500, 64, memory, threads=1, what=f"{memory} GiB") for memory in (4.0, 0.05)
    )
    assert there["tables_mb"] > 5 * there["memory_mb"]
    assert here["peak_mb"] > here["tables_mb"]
    assert there["peak_mb"] < there["tables_mb"] * 0.7
    assert there["model"] == here["model"]
