"""A regression is told from noise, on files that are made up."""

from __future__ import annotations

import json
import math
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsim.check import Invalid
from fedsim.cli.app import app
from fedsim.experiments.bench.compare import bench_compare, interval


def written(path: Path, seed: int, times: float = 1.0, noise: float = 0.1, **more: Any) -> Path:
    """A file of bench lines: ratios around 2 with log-normal noise; fedsim's are `times` as much."""
    chance = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = [{"workload": "W4", "system": "pfl", "left_out": "no robust aggregation"}]
    for workload in ("W1", "W2", "W3"):
        for system in ("pfl", "fedsim vector"):
            scale = 2 * (times if system == "fedsim vector" else 1)
            ratios = (scale * np.exp(noise * chance.normal(size=20))).tolist()
            line = {"workload": workload, "system": system, "over_floor": float(np.median(ratios))}
            lines.append(line | {"threads": 2, "device": "cpu", "cores": 2, "ratios": ratios} | more)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_noise_is_no_regression(tmp_path: Path) -> None:
    verdicts = []
    for seed in range(30):
        old, new = (written(tmp_path / name, 2 * seed + k) for k, name in enumerate(("old", "new")))
        verdicts += [line["verdict"] for line in bench_compare(old, new)]
    assert len(verdicts) == 30 * 6
    assert not {"slower", "faster"} & set(verdicts)
    assert "unclear" in verdicts


def test_a_regression_is_found_and_ends_the_command_with_1(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old", 0), written(tmp_path / "new", 1, times=1.4)
    lines = {(line["workload"], line["system"]): line for line in bench_compare(old, new)}
    assert len(lines) == 6
    for (_, system), line in lines.items():
        assert line["low"] <= line["times"] <= line["high"]
        assert (line["verdict"] == "slower") == (system == "fedsim vector")
    assert CliRunner().invoke(app, ["bench", "compare", str(old), str(new)]).exit_code == 1
    done = CliRunner().invoke(app, ["bench", "compare", str(new), str(old), "--json"])
    assert done.exit_code == 0, done.output
    verdicts = [json.loads(line)["verdict"] for line in done.stdout.splitlines()]
    assert verdicts.count("faster") == 3
    assert CliRunner().invoke(app, ["bench", "compare", str(old), str(new), "--margin", "0.9"]).exit_code == 0


def test_a_peer_that_became_slower_is_not_our_regression(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old", 0, noise=0.01), written(tmp_path / "new", 1, noise=0.01)
    text = new.read_text().splitlines()
    changed = [json.loads(line) for line in text]
    for line in changed:
        if line["system"] == "pfl" and "ratios" in line:
            line["ratios"] = [2 * ratio for ratio in line["ratios"]]
    new.write_text("\n".join(map(json.dumps, changed)))
    assert {line["verdict"] for line in bench_compare(old, new)} == {"slower", "same"}
    assert CliRunner().invoke(app, ["bench", "compare", str(old), str(new)]).exit_code == 0


@pytest.mark.parametrize(("n", "likeness"), [(20, 0.0), (20, 0.5), (50, 0.5)])
def test_the_interval_holds_the_median_of_rounds_that_are_alike(n: int, likeness: float) -> None:
    """Of autoregressive logarithms, in 98 % of cases at least; nor does it hold everything."""
    chance = np.random.default_rng(1)
    logs = chance.normal(size=(n, 1000))
    for i in range(1, n):
        logs[i] = likeness * logs[i - 1] + math.sqrt(1 - likeness**2) * logs[i]
    ends = np.array([interval(column.tolist()) for column in np.exp(0.1 * logs).T])
    assert ((ends[:, 0] <= 1) & (ends[:, 1] >= 1)).mean() >= 0.98
    assert np.median(ends[:, 1] / ends[:, 0]) < (1.5 if n == 20 else 1.25)


def test_the_ends_of_an_interval() -> None:
    assert interval([1.0] * 7) == (0.0, inf)
    assert interval([2.0] * 8) == pytest.approx((2.0, 2.0))
    values = np.exp(np.random.default_rng(0).normal(size=20)).tolist()
    assert interval(values) == interval(values)
    low, high = interval([3 * value for value in values])
    assert (low, high) == pytest.approx(tuple(3 * end for end in interval(values)))


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    old = written(tmp_path / "old", 0)
    with pytest.raises(Invalid, match=r"threads = 1, in .* 2: measure both alike"):
        list(bench_compare(old, written(tmp_path / "new", 0, threads=1)))
    with pytest.raises(Invalid, match="no workload and system in common"):
        list(bench_compare(old, written(tmp_path / "new", 0, system="other")))
    (tmp_path / "text").write_text("not JSON")
    for path in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(Invalid, match="not the output of fedsim bench rounds"):
            list(bench_compare(old, path))
