"""Figures stay legible with many lines and many columns."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from fedsim.experiments.report.plots import heat, over_rounds


@pytest.mark.parametrize("count", [2, 8, 22])
def test_a_legend_takes_nothing_from_the_axes(count: int) -> None:
    frame = pd.DataFrame({"round": [0, 1], "loss": [2.0, 1.0]})
    plot = over_rounds("lines", [(f"line {i}", frame) for i in range(count)], "loss", "loss")
    plot.svg("A title")
    (axes,) = plot.figure.axes
    assert 72 / plot.figure.dpi * axes.get_window_extent().height > 1.5 * 72


@pytest.mark.parametrize("shape", [(2, 17), (7, 17), (17, 7), (7, 10), (20, 20)])
def test_numbers_of_cells_do_not_overlap(shape: tuple[int, int]) -> None:
    rows, columns = (
        [f"{name} {i}" for i in range(n)] for name, n in zip(("rule", "attack"), shape, strict=True)
    )
    table = pd.DataFrame(np.full(shape, 85.5), rows, columns)
    plot = heat("cells", table, "rule", "attack", "accuracy")
    plot.svg("A title")
    (axes,) = plot.figure.axes
    assert (axes.get_xlabel() == "rule") == (shape[1] > 12 and shape[1] > shape[0])
    if min(shape) <= 12:
        boxes = [text.get_window_extent() for text in axes.texts[: len(axes.get_xticks())]]
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
