"""Points of the growth benchmark: memory is measured in a process of its own, and at least what the rows take."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedsim.check import Invalid
from fedsim.experiments.bench.growth import bench_growth, growth_figure, save_growth


def test_points_and_their_picture(data_folder: Path, tmp_path: Path) -> None:
    lines = list(bench_growth([20], [1_000_000], rounds=1, threads=1))
    points = [(line["axis"], line["n"], line["rule"]) for line in lines]
    assert points == [("n", 20, "Mean"), ("n", 20, "Median"), ("d", 100, "Mean"), ("d", 100, "Median")]
    assert lines[0]["d"] == 79_510
    assert lines[2]["d"] == pytest.approx(1_000_000, rel=0.01)
    for line in lines:
        assert line["threads"] == 1
        assert line["seconds_per_round"] > 0
        assert line["rows_mb"] == 4 * line["n"] * line["d"] / 2**20
        if line["peak_mb"] is not None and line["rule"] == "Median":
            assert line["rows_mb"] < line["peak_mb"] < 3 * line["rows_mb"] + 100
        elif line["peak_mb"] is not None:  # rows that are added up take no memory
            assert line["peak_mb"] < line["rows_mb"] / 3 + 100
    save_growth(lines, tmp_path / "new")
    table = pd.read_csv(tmp_path / "new" / "growth.csv")
    assert table["seconds_per_round"].tolist() == [line["seconds_per_round"] for line in lines]
    assert "<svg" in (tmp_path / "new" / "growth.svg").read_text()


def test_the_picture_of_one_axis() -> None:
    both = {"axis": "n", "d": 79_510, "rule": "Median"}
    frame = pd.DataFrame(
        [both | {"n": n, "seconds_per_round": n / 10, "peak_mb": 2.0 * n} for n in (100, 10)]
    )
    figure = growth_figure(frame)
    seconds, memory = figure.axes
    measured, dotted = seconds.get_lines()
    assert list(measured.get_xdata()) == [10, 100]  # in order
    assert list(dotted.get_ydata()) == pytest.approx([1, 10])
    assert list(memory.get_lines()[0].get_ydata()) == [20, 200]


def test_a_point_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    with pytest.raises(Invalid, match=r"Mean, n = 7, d = 79510: it failed: .*FEDSIM_DATA"):
        list(bench_growth([7], [], rounds=1))
