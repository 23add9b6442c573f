"""What a figure is drawn on: its inks, which a page can turn for light and dark, and how it is written to a file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from math import ceil
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER = "#1f2329", "#667079", "#d7dde3", "#fdfdfc"  # the page replaces them by its own
PALETTE = ("#2f7fd1", "#d1495b", "#2a9d6f", "#c98a1b", "#8a63d2", "#3aa6b9", "#b0623a", "#7d8597")
STYLES = ("-", "--", ":", "-.")
LEGEND, LINE = 4, 0.165  # lines of a legend that a figure has room for; inches that each further one adds
WIDTH, HEIGHT = 5.4, 3.3  # inches: letters stay readable where a phone shows it at 360 pixels


@dataclass
class Plot:
    """A figure with the lines that a reader may switch off: (id, label, colour)."""

    name: str
    figure: Figure
    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def svg(self, title: str = "") -> str:
        """The figure as it stands alone, on white; parts that a page drops have the ids ground, title and legend."""
        if title:
            self._head(title)
        self._settle()
        buffer = BytesIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            FigureCanvasSVG(self.figure).print_svg(buffer, metadata={"Date": None})
        return buffer.getvalue().decode()

    def png(self) -> bytes:
        self._settle()
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=200)
        return buffer.getvalue()

    def middle(self) -> tuple[float, float, float, float]:
        """The box (x, y, width, height), in points from the top left, between the title and the legend."""
        width, height = 72 * self.figure.get_size_inches()
        points = 72 / self.figure.dpi
        above = [points * text.get_window_extent().y0 for text in self.figure.texts if text.get_gid()]
        below = [points * legend.get_window_extent().y1 for legend in self.figure.legends]
        top, bottom = height - min(above, default=height), height - max(below, default=0.0)
        return 0.0, float(top), float(width), float(bottom - top)

    def _head(self, title: str) -> None:
        text = textwrap.fill(title, 70)
        self.figure.suptitle(text, x=0.02, ha="left", fontsize=9.5, color=INK, gid="title")
        if len(self.lines) > 1:
            columns = 1 if any(len(label) > 40 for _, label, _ in self.lines) else 2
            longer = ceil(len(self.lines) / columns) - LEGEND
            self.figure.set_figheight(self.figure.get_figheight() + LINE * max(0, longer))
            parts = {
                part.get_gid(): part for axes in self.figure.axes for part in (*axes.lines, *axes.collections)
            }
            legend = self.figure.legend(
                [parts[line] for line, _, _ in self.lines], [short(label, 60) for _, label, _ in self.lines],
                loc="outside lower left", fontsize=8, frameon=False, labelcolor=INK,
                ncols=columns,
            )  # fmt: skip
            legend.set_gid("legend")

    def _settle(self) -> None:
        """Lay the parts out once: `savefig` would do so, and draw, twice for each file."""
        self.figure.patch.set(gid="ground", facecolor="white")
        if engine := self.figure.get_layout_engine():
            engine.execute(self.figure)
            self.figure.set_layout_engine("none")


@contextmanager
def inked() -> Iterator[None]:
    style: dict[Any, Any] = {
        "font.size": 9.5,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
    }
    with mpl.rc_context(style):
        yield


def canvas(rows: int = 1, columns: int = 1, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def look(number: int) -> dict[str, Any]:
    """Colour and dashes of a line, different for the first 32."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": STYLES[number // len(PALETTE) % len(STYLES)],
    }


def short(value: object, most: int = 26) -> str:
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "…"
