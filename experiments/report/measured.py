"""What a report shows of metrics beside accuracy and loss: over rounds, by class, by client, and of a backdoor."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from fedsim.experiments.report import plots
from fedsim.experiments.report.canvas import Plot
from fedsim.experiments.report.results import Results
from fedsim.experiments.report.sections import Figure, Section, over_rounds
from fedsim.metrics import TAKEN

OTHERS = {*TAKEN, "bytes"} - {"backdoor_success"}  # what has its own place in a report


def metrics(results: Results) -> Section | None:
    """The metrics that the tasks of these runs asked for, and a backdoor's success."""
    names = dict.fromkeys(name for run in results.runs for line in run.lines for name in line)
    known = [name for name in names if name not in OTHERS and results.frame[name].notna().any()]
    figures = [_figure(results, name) for name in known]
    found = [figure for figure in figures if figure is not None]
    text = "On the test examples; by client, those that a client's own training examples are like."
    return Section("Metrics", text, found) if found else None


def _figure(results: Results, name: str) -> Figure | None:
    """A metric of one number over rounds; at the end of a run where it is a list."""
    frame = results.frame[results.frame[name].notna()]
    first = frame[name].iloc[0]
    if not isinstance(first, list):
        if not frame[name].map(lambda value: isinstance(value, int | float)).all():
            return None
        return over_rounds(results, name, name, name.replace("_", " "), log=False)
    if name.endswith("_clients"):
        return _parts(results, name, "by client, from the worst on", plots.ordered)
    if first and isinstance(first[0], list):
        return _confusion(results, name)
    return _parts(results, name, "by class, in %", plots.by_class)


Draw = Callable[[str, pd.DataFrame, str], Plot]


def _parts(results: Results, name: str, how: str, draw: Draw) -> Figure:
    """A list at the end of a run: a row of numbers for each setting, the mean over its seeds."""
    last = results.final[results.final[name].notna()]
    parts = dict[str, Plot]()
    for number, (part, runs) in enumerate(results.panels((results.line_axis,), last)):
        rows = {
            title: pd.DataFrame(some[name].tolist()).mean()
            for title, some in results.lines(runs, results.line_axis)
        }
        parts[part] = draw(f"{name}-{number}", pd.DataFrame(rows).T, name)
    return Figure(f"{name.replace('_', ' ')} {how}", "The mean over seeds.", parts, list(last["experiment"]))


def _confusion(results: Results, name: str) -> Figure:
    """Tables of label and answer, of each setting, in % of the label's examples."""
    last = results.final[results.final[name].notna()]
    parts = dict[str, Plot]()
    for number, (part, runs) in enumerate(results.panels((), last)):
        total = sum(pd.DataFrame(table) for table in runs[name])
        assert isinstance(total, pd.DataFrame)
        shares = 100 * total.div(total.sum(axis=1).clip(lower=1), axis=0)
        parts[part] = plots.heat(f"{name}-{number}", shares, "label", "told to be", "")
    caption = "In % of the test examples of a label; the sum over seeds."
    return Figure(name, caption, parts, list(last["experiment"]))
