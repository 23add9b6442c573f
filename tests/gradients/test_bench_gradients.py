"""The benchmark measures ways that agree."""

from __future__ import annotations

import pytest

from fedsim.experiments.bench.gradients import WORKLOADS, bench_gradients


@pytest.mark.parametrize("name", ["W1", "W5", "logistic", "frozen"])
def test_one_line_a_way_and_the_same_gradients(name: str) -> None:
    lines = {line["way"]: line for line in bench_gradients(name, repeats=1)}
    peers = ["vmap", "loop"] if WORKLOADS[name].clip is None else ["opacus hooks", "opacus ghost"]
    assert list(lines) == ["floor", "layers", *peers]
    assert lines["floor"]["over_floor"] == 1.0
    assert all(line["seconds"] > 0 for line in lines.values())
    assert lines["layers"]["error"] < 1e-5
