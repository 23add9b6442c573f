"""The figures of a report, each from a frame of runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogFormatter, MaxNLocator

from fedsim.experiments.report.canvas import INK, MUTED, PALETTE, Plot, canvas, inked, look, short

WIDEST = 12  # columns of cells whose numbers can be read


def over_rounds(
    name: str,
    lines: list[tuple[str, pd.DataFrame]],
    metric: str,
    label: str,
    log: bool = True,
    along: str = "round",
) -> Plot:
    """A metric over rounds, or along another column: the mean over seeds, in a band from the lowest to the highest."""
    with inked():
        figure, (axes,) = canvas()
        plot = Plot(name, figure)
        for number, (title, runs) in enumerate(lines):
            held = runs[metric].astype(float)  # a run whose every value is none has objects
            shown = held.groupby(runs[along]).agg(["mean", "min", "max"])
            scale = 100 if metric == "accuracy" else 1
            gid, style = f"s-{name}-{number}", look(number)
            axes.plot(shown.index, scale * shown["mean"], gid=gid, linewidth=1.8, **style)
            axes.fill_between(
                shown.index, scale * shown["min"], scale * shown["max"], color=style["color"], alpha=0.18,
                linewidth=0, gid=f"{gid}-band",
            )  # fmt: skip
            plot.lines.append((gid, title, style["color"]))
        axes.set(xlabel=along, ylabel=label, xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if metric == "accuracy":
            _percent([axes], [runs["accuracy"] for _, runs in lines])
        elif (
            log
            and (known := pd.concat([runs[metric].dropna() for _, runs in lines])).size
            and (known > 0).all()
        ):
            axes.set_yscale("log")
            _plain(axes.yaxis)
        return plot


def over_bits(name: str, lines: list[tuple[str, pd.DataFrame]], metric: str, label: str) -> Plot:
    """A metric against the bits of a client, those that it sent and those of both ways: means over seeds."""
    with inked():
        figure, panels = canvas(1, 2, height=2.9)
        plot = Plot(name, figure)
        for number, (title, runs) in enumerate(lines):
            shown = (
                runs[["round", "uplink_bits", "downlink_bits", metric]].astype(float).groupby("round").mean()
            )
            gid, style, up = f"s-{name}-{number}", look(number), shown["uplink_bits"]
            values = (100 if metric == "accuracy" else 1) * shown[metric]
            panels[0].plot(up, values, gid=gid, linewidth=1.8, **style)
            panels[1].plot(up + shown["downlink_bits"], values, gid=f"{gid}-band", linewidth=1.8, **style)
            plot.lines.append((gid, title, style["color"]))
        for axes, bits in zip(panels, ("bits sent", "bits both ways"), strict=True):
            axes.set(xlabel=bits, xscale="log")
            _plain(axes.xaxis)
        if metric == "accuracy":
            _percent(panels, [runs["accuracy"] for _, runs in lines])
        panels[0].set_ylabel(label)
        panels[1].tick_params(labelleft=False)
        return plot


def over_seconds(name: str, lines: list[tuple[str, pd.DataFrame]], metric: str, label: str) -> Plot:
    """A metric over simulated seconds: the median over runs, in a band from the lower to the upper quartile.

    A run counts from its first evaluation to its last one; between two of them it is what it was.
    """
    with inked():
        figure, (axes,) = canvas()
        plot = Plot(name, figure)
        scale = 100 if metric == "accuracy" else 1
        for number, (title, runs) in enumerate(lines):
            at = np.linspace(0, runs["simulated_seconds"].max(), 201)
            held = np.array([_held(at, run, metric) for _, run in runs.groupby("experiment")])
            known = ~np.isnan(held).all(0)
            low, middle, high = scale * np.nanquantile(held[:, known], (0.25, 0.5, 0.75), axis=0)
            gid, style = f"s-{name}-{number}", look(number)
            axes.plot(at[known], middle, gid=gid, linewidth=1.8, **style)
            axes.fill_between(
                at[known], low, high, color=style["color"], alpha=0.18, linewidth=0, gid=f"{gid}-band"
            )
            plot.lines.append((gid, title, style["color"]))
        axes.set(xlabel="simulated seconds", ylabel=label, xlim=(0, None))
        if metric == "accuracy":
            _percent([axes], [runs["accuracy"] for _, runs in lines])
        elif all((runs[metric].dropna() > 0).all() for _, runs in lines):
            axes.set_yscale("log")
        return plot


def _held(at: np.ndarray, run: pd.DataFrame, metric: str) -> np.ndarray:
    """A run's metric at these seconds: that of the evaluation before, nan before the first and after the last."""
    seconds, values = run["simulated_seconds"].to_numpy(float), run[metric].to_numpy(float)
    place = np.searchsorted(seconds, at, side="right") - 1
    return np.where((place >= 0) & (at <= seconds[-1]), values[place.clip(0)], np.nan)


def privacy_utility(name: str, lines: list[tuple[str, pd.DataFrame]]) -> Plot:
    """Final accuracy against the accounted epsilon, bars from seed to seed; on top the nominal one where it differs."""
    with inked():
        figure, (axes,) = canvas()
        plot = Plot(name, figure)
        pairs: dict[float, float] = {}
        for number, (title, runs) in enumerate(lines):
            groups = runs.groupby("privacy.epsilon")
            spent, reached = groups["epsilon"].mean(), 100 * groups["accuracy"].agg(["mean", "min", "max"])
            gid, style = f"s-{name}-{number}", look(number)
            axes.plot(spent, reached["mean"], marker="o", markersize=4, gid=gid, linewidth=1.8, **style)
            axes.vlines(spent, reached["min"], reached["max"], color=style["color"], gid=f"{gid}-band")
            plot.lines.append((gid, title, style["color"]))
            pairs |= dict(zip(spent, spent.index, strict=True))
        axes.set(xlabel="accounted epsilon", ylabel="test accuracy, %", xscale="log")
        _percent([axes], [runs["accuracy"] for _, runs in lines])
        ticks = sorted(pairs)
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
        if any(abs(spent - asked) > 0.01 * asked for spent, asked in pairs.items()):
            top = axes.secondary_xaxis("top")
            top.set_xticks(ticks, [f"{pairs[tick]:g}" for tick in ticks])
            top.minorticks_off()
            top.set_xlabel("nominal epsilon")
        return plot


def heat(name: str, table: pd.DataFrame, rows: str, columns: str, label: str) -> Plot:
    """A value in % for every pair (row, column), printed in its cell; on its side where it is too wide for that."""
    if table.shape[1] > max(WIDEST, len(table)):
        table, rows, columns = table.T, columns, rows
    with inked():
        figure, (axes,) = canvas(height=max(1.6, 0.9 + 0.36 * len(table)))
        values = table.to_numpy(float)
        shades = mpl.colormaps["cividis"]
        axes.pcolormesh(np.ma.masked_invalid(values), cmap=shades, vmin=0, vmax=100, edgecolors="none")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "#000000" if value > 55 else "#ffffff"
                axes.text(
                    j + 0.5, i + 0.5, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8.5
                )
        axes.set_xticks(np.arange(values.shape[1]) + 0.5, [short(c) for c in table.columns])
        axes.set_yticks(np.arange(values.shape[0]) + 0.5, [short(r) for r in table.index])
        if values.shape[1] > 5 or max(len(short(c)) for c in table.columns) > 12:
            axes.tick_params(axis="x", rotation=30)
            for tick in axes.get_xticklabels():
                tick.set_horizontalalignment("right")
        axes.invert_yaxis()
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel=columns, ylabel=rows)
        axes.set_title(label, fontsize=9, loc="left", color=MUTED)
        return Plot(name, figure)


def by_class(name: str, table: pd.DataFrame, label: str) -> Plot:
    """Shares by setting (row) and class (column), in %."""
    return heat(name, 100 * table, "", "class", label)


def ordered(name: str, table: pd.DataFrame, label: str) -> Plot:
    """The values of the clients (columns) of each setting (row), in order: how far apart the best and the worst are."""
    with inked():
        figure, (axes,) = canvas()
        plot = Plot(name, figure)
        for number, (title, row) in enumerate(table.iterrows()):
            values = np.sort(row.dropna().to_numpy(float))
            gid, style = f"s-{name}-{number}", look(number)
            axes.plot(np.arange(1, len(values) + 1), values, gid=gid, linewidth=1.8, **style)
            plot.lines.append((gid, str(title), style["color"]))
        axes.set(xlabel="clients, in order", ylabel=label.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return plot


def surface(name: str, tables: Mapping[tuple[str, str], pd.DataFrame]) -> Plot:
    """Heat maps in %, side by side by the second part of their titles and one below the other by the first."""
    down, across = (list(dict.fromkeys(titles)) for titles in zip(*tables, strict=True))
    with inked():
        rows = len(next(iter(tables.values())))
        figure, panels = canvas(len(down), len(across), height=0.9 + len(down) * (0.4 + 0.3 * rows))
        for axes, (one, other) in zip(panels, itertools.product(down, across), strict=True):
            table = tables[one, other]
            values = table.to_numpy(float)
            axes.pcolormesh(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=100)
            for (i, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    colour = "#000000" if value > 55 else "#ffffff"
                    axes.text(
                        j + 0.5, i + 0.5, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8
                    )
            axes.set_xticks(np.arange(values.shape[1]) + 0.5, [short(c) for c in table.columns])
            axes.set_yticks(np.arange(values.shape[0]) + 0.5, [short(r) for r in table.index])
            axes.set_title(f"{one}\n{other}", fontsize=8, color=MUTED)
            axes.invert_yaxis()
            axes.grid(False)
            axes.tick_params(length=0, labelsize=8)
            axes.spines[:].set_visible(False)
            axes.label_outer()
        figure.supxlabel(str(table.columns.name), fontsize=9, color=INK)
        figure.supylabel(str(table.index.name), fontsize=9, color=INK)
        return Plot(name, figure)


def weights(name: str, table: pd.DataFrame, honest: Sequence[int]) -> Plot:
    """The weight of each client (column) in each setting (row), times their number: 1 is as in the plain mean.

    `honest` of each row's clients are honest: the first ones, up to a line.
    """
    with inked():
        figure, (axes,) = canvas(height=max(1.8, 1.1 + 0.3 * len(table)))
        values = table.to_numpy(float)
        n = np.isfinite(values).sum(1, keepdims=True)
        mesh = axes.pcolormesh(np.ma.masked_invalid(values * n), cmap="cividis", vmin=0, vmax=3)
        for row, count in enumerate(honest):
            axes.plot([count, count], [row, row + 1], color="#ffffff", linewidth=1.6)
        axes.set_yticks(np.arange(len(table)) + 0.5, [short(r) for r in table.index])
        axes.set(xlabel="client; Byzantine ones right of the line", ylabel=table.index.name)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, extend="max", shrink=0.9)
        bar.outline.set_visible(False)
        bar.set_label("weight x n")
        return Plot(name, figure)


def cost(name: str, lines: list[tuple[str, pd.DataFrame]]) -> Plot:
    """Final accuracy against the seconds of a run and the bytes that its clients send and receive."""
    with inked():
        figure, panels = canvas(1, 2, height=2.9)
        plot = Plot(name, figure)
        for number, (title, runs) in enumerate(lines):
            gid, colour = f"s-{name}-{number}", PALETTE[number % len(PALETTE)]
            for side, (axes, metric) in enumerate(zip(panels, ("seconds", "megabytes"), strict=True)):
                axes.scatter(
                    runs[metric], 100 * runs["accuracy"], s=18, color=colour, alpha=0.8, linewidth=0,
                    gid=gid if side == 0 else f"{gid}-band",
                )  # fmt: skip
            plot.lines.append((gid, title, colour))
        for axes, label in zip(panels, ("seconds", "megabytes sent, both ways"), strict=True):
            axes.set(xlabel=label)
        _percent(panels, [runs["accuracy"] for _, runs in lines])
        if all((runs["seconds"] > 0).all() for _, runs in lines):
            panels[0].set_xscale("log")
            _plain(panels[0].xaxis)
        panels[0].set_ylabel("test accuracy, %")
        panels[1].tick_params(labelleft=False)
        return plot


def _plain(axis: Axis) -> None:
    """Numbers as 0.001 and 2e+04: setting powers of ten by TeX's rules takes longer than the rest of a figure."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def _percent(panels: Sequence[Axes], shares: Sequence[pd.Series]) -> None:
    """From 0 to 100 %, or from where the lowest lies if that is high up."""
    lowest = 100 * min(values.min() for values in shares)
    for axes in panels:
        axes.set_ylim(10 * ((lowest - 2) // 10) if lowest > 60 else 0, 101)


def split(name: str, counts: pd.DataFrame, title: str = "") -> Plot:
    """Examples by client and class, as bars that lie on one another; a client without examples is Byzantine."""
    with inked():
        figure, (axes,) = canvas(height=max(2.2, 0.8 + 0.11 * len(counts)))
        classes = len(counts.columns)
        palette = mpl.colormaps["tab20" if classes > 10 else "tab10"]
        left = pd.Series(0, index=counts.index)
        for number, label in enumerate(counts.columns):
            axes.barh(
                counts.index,
                counts[label],
                left=left,
                color=palette(number % palette.N),
                label=str(label),
                height=0.9,
            )
            left = left + counts[label]
        axes.set(xlabel="training examples", ylabel="client", title=title)
        axes.invert_yaxis()
        axes.grid(False)
        axes.legend(title="class", bbox_to_anchor=(1.0, 1), loc="upper left", frameon=False, fontsize=7.5)
        return Plot(name, figure)
