"""Rounds with absent clients, on a small scale: every line is there and says what was measured."""

from __future__ import annotations

import pytest

from fedsim.experiments.bench.absent import bench_absent


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_twenty_times_as_many_registered_clients_take_no_longer(memory: float) -> None:
    """A round that did something for every client would take far longer; the bound is for a busy machine.

    Most of those who take part in a round were not in the one before, in both: their rows come from the shelf.
    """
    few, many = bench_absent([400, 8000], rounds=5, memory=memory, threads=1)
    assert (few["registered"], many["registered"], many["active"]) == (400, 8000, 100)
    assert few["over_first"] == 1
    assert many["over_first"] < 3
    assert 100 < many["peak_mb"] < many["all_states_mb"] + 600
