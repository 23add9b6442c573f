"""Rounds over the link, on a small scale: every line is there, and every byte was counted."""

from __future__ import annotations

import pytest

from fedsim.check import Invalid
from fedsim.experiments.bench.devices import bench_devices


def test_rounds_of_messages_are_timed_and_counted() -> None:
    (line,) = bench_devices([3], [1000], rounds=2)
    assert (line["system"], line["devices"], line["parameters"]) == ("fedsim", 3, 1000)
    assert 2 * 3 * 4000 < line["bytes_a_round"] < 2 * 3 * 5000
    assert 0 < line["fastest"] <= line["seconds_a_round"] <= line["slowest"] < 10


def test_what_no_memory_holds_is_left_out() -> None:
    lines = list(bench_devices([200], [10_000_000], rounds=1, against=["flower"]))
    assert [line["left_out"] for line in lines] == ["about 23 GiB, beyond 8", "about 85 GiB, beyond 8"]
    with pytest.raises(Invalid, match="allowed are flower and nvflare"):
        list(bench_devices([1], [1], rounds=1, against=["nobody"]))
