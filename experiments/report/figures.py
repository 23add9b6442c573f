"""Pictures of runs and of splits."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.experiments.report import plots
from fedsim.machine.files import writing
from fedsim.result import Result

COLOURS = ("#0b6e4f", "#c1121f", "#3a6ea5", "#8a5a00", "#6a4c93", "#444444")


def curves(results: Mapping[str, Result], path: Path, title: str) -> None:
    """Accuracy over rounds for each run, or the loss where labels are numbers; below it the epsilon spent, if any."""
    metric = "accuracy" if any("accuracy" in result.frame for result in results.values()) else "loss"
    private = any("epsilon" in result.frame for result in results.values())
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.2, 5.6 if private else 4.0), layout="constrained")
        axes = figure.subplots(
            2 if private else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1.3] if private else None
        )
        for colour, (label, result) in zip(COLOURS * len(results), results.items(), strict=False):
            _line(axes[0, 0], result.frame, metric, label, colour)
        shown = (
            {"ylabel": "test accuracy, %", "ylim": (0, 102)}
            if metric == "accuracy"
            else {"ylabel": "test loss"}
        )
        axes[0, 0].set(**shown, title=title)
        axes[0, 0].legend(loc="center right", frameon=False)
        if private:
            _epsilon(axes[1, 0], results)
        axes[-1, 0].set_xlabel("round")
        _write(figure, path)


def _line(axes: Axes, frame: pd.DataFrame, metric: str, label: str, colour: str) -> None:
    scale, form = (100, ".1%") if metric == "accuracy" else (1, ".4g")
    values = frame[metric].astype(float)  # None where it was not finite
    last = f"{values.iloc[-1]:{form}}" if isfinite(values.iloc[-1]) else "not finite"
    axes.plot(frame["round"], scale * values, color=colour, label=f"{label}: {last}")


def _epsilon(axes: Axes, results: Mapping[str, Result]) -> None:
    result = next(r for r in results.values() if "epsilon" in r.frame)
    axes.plot(result.frame["round"], result.frame["epsilon"], color="#444444")
    axes.set(ylabel="epsilon spent", ylim=(0, None))
    axes.set_title(result.notes[0], fontsize=8.5, loc="left", color="#444444")


def split(counts: pd.DataFrame, path: Path, title: str) -> None:
    """Examples by client and class, as bars that lie on one another."""
    _write(plots.split("split", counts, title).figure, path)


def _write(figure: Figure, path: Path) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
