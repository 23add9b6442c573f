"""A report on the records of a folder: one page that needs nothing else, and its figures and table as files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from math import inf
from pathlib import Path
from string import Template
from xml.etree import ElementTree

import pandas as pd

from fedsim.experiments.load import expression
from fedsim.experiments.report import canvas, measured, sections
from fedsim.experiments.report.canvas import Plot
from fedsim.experiments.report.results import Results
from fedsim.experiments.report.sections import Section
from fedsim.machine.files import write_whole, writing
from fedsim.spec import Experiment
from fedsim.standing import OUTSIDE

MAIN = 4  # figures in a small report
STATEMENTS = 6  # of privacy, one by one
SETTINGS = (
    "task.data",
    "task.model",
    "method",
    "rule",
    "attack",
    "split",
    "batches",
    "clients",
    "byzantine",
    "rounds",
)
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
INKS = {
    canvas.INK: "var(--ink)",
    canvas.MUTED: "var(--muted)",
    canvas.RULE: "var(--rule)",
    canvas.PAPER: "var(--card)",
}


def report(
    folder: Path,
    out: Path | None = None,
    small: bool = False,
    png: bool = False,
    tell: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write OUT, by default FOLDER/report (index.html, figures, tables), and return the page.

    `small` leaves a few figures as SVG beside the page, which has them all: what is worth keeping under version
    control. With `png` each of these figures is a PNG as well, which takes as long again. Damaged records are left
    out, which the page says, and `tell` is told. Raises `Invalid` where there are no others.
    """
    results = Results.of(folder)
    for line in [*_damaged(results), *_diverged(results)]:
        tell(line)
    out = out or folder / "report"
    tell(f"{len(results.runs)} runs are read; their figures are made")
    found = [section for make in (*sections.ALL, measured.metrics) if (section := make(results))]
    content: dict[str, bytes] = {}
    drawn: dict[str, str] = {}
    titled = list(_titled(found))
    for number, (plot, title) in enumerate(titled):
        if number % 10 == 0:
            tell(f"figure {number + 1} of {len(titled)}")
        drawn[plot.name] = plot.svg(title)
        if not small or number < MAIN:
            content[f"{plot.name}.svg"] = drawn[plot.name].encode()
            content |= {f"{plot.name}.png": plot.png()} if png else {}
    table = results.table()
    content |= {
        "table.csv": table.to_csv(index=False, float_format="%.8g").encode(),
        "table.tex": latex(table).encode(),
    }
    page = out / "index.html"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            (out / name).write_bytes(text)
        write_whole(page, html(results, found, table, drawn, list(content)).encode())
    return page


def _titled(found: Sequence[Section]) -> Iterator[tuple[Plot, str]]:
    for section in found:
        for figure in section.figures:
            for name, plot in figure.plots.items():
                yield plot, f"{figure.title}: {name}" if name else figure.title


def html(
    results: Results,
    found: Sequence[Section],
    table: pd.DataFrame,
    drawn: Mapping[str, str],
    beside: Sequence[str],
) -> str:
    """The page; `drawn`: the SVG of each plot by its name, `beside`: the names of the files beside the page."""
    template = Template((files("fedsim.experiments.report") / "page.html").read_text())
    body = [
        _facts(results),
        _settings(results),
        _privacy(results),
        _notes(results),
        _section_table(table, results),
        *(_section(s, results, drawn, beside) for s in found),
    ]
    return template.substitute(
        title=escape(results.folder.absolute().name),
        lead=f"Test {results.metric}; means over seeds, bands from the lowest to the highest.",
        body="\n".join(body),
        footer=f"Made by <code>fedsim report {escape(str(results.folder))}</code> from the records there; "
        "each record's manifest.json holds its whole definition and the versions in use.",
    )


def _facts(results: Results) -> str:
    final = results.final
    facts = {"runs": len(final["experiment"].unique()), "seeds": final["seed"].nunique()}
    facts |= {axis: final[axis].nunique() for axis in results.axes}
    items = "".join(f"<li><b>{number}</b><span>{escape(name)}</span></li>" for name, number in facts.items())
    seconds = final.drop_duplicates("experiment")["seconds"].sum()
    total = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"
    return f'<ul class="facts">{items}<li><b>{total}</b><span>of computing</span></li></ul>'


def _settings(results: Results) -> str:
    """What all runs have in common: data, model, method, split, clients."""
    told = []
    for name in SETTINGS:
        values = list(results.frame[name].dropna().astype(str).unique()) if name in results.frame else []
        if name not in results.axes and len(values) == 1:
            told.append(f"{name.removeprefix('task.')} <code>{escape(values[0])}</code>")
    return f'<p class="settings">In all runs: {", ".join(told)}.</p>' if told else ""


def _privacy(results: Results) -> str:
    """The whole statement of what was spent: of each run, or where they are many of the least and the most."""
    runs = [run for run in results.runs if run.record.finished]
    if not any(run.experiment.privacy for run in runs):
        return '<p class="privacy">Privacy: none; no noise was added and nothing is promised.</p>'
    said = {run.record.notes[0]: run for run in runs if run.experiment.privacy and run.record.notes}
    spent = sorted(said, key=lambda text: said[text].lines[-1].get("epsilon") or inf)
    shown = spent if len(spent) <= STATEMENTS else [spent[0], spent[-1]]
    items = [f"<li>{escape(text)}; {escape(_sampling(said[text].experiment))}</li>" for text in shown]
    if len(spent) > len(shown):
        items.insert(1, f"<li>and {len(spent) - 2} between these two, each in its record</li>")
    bare = sum(run.experiment.privacy is None for run in runs)
    items += [f"<li>{bare} runs without privacy</li>"] if bare else []
    old = sum(run.experiment.privacy is not None and not run.record.notes for run in runs)
    items += [f"<li>{old} runs of an earlier version, whose records hold no statement</li>"] if old else []
    return (
        f'<div class="privacy">Privacy<ul>{"".join(items)}</ul><p>{escape(OUTSIDE.capitalize())}.</p></div>'
    )


def _sampling(experiment: Experiment) -> str:
    cohort = f", {experiment.cohort} of {experiment.clients} clients a round" if experiment.cohort else ""
    return f"batches {expression(experiment.batches)}{cohort}"


def _notes(results: Results) -> str:
    notes = [str(note) for note in results.study.get("notes", [])]
    missing = sections.missing(results)
    if missing:
        notes.append(f"{missing} of {len(results.study['cells'])} cells have no finished run yet.")
    notes += _diverged(results)
    notes += _damaged(results)
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""


def _diverged(results: Results) -> list[str]:
    """The runs whose model was of no use at the end."""
    final = results.final.drop_duplicates("experiment")
    if "diverged" not in final:
        return []
    names = final["experiment"][final["diverged"].eq(True)].tolist()
    if not names:
        return []
    shown = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
    return [
        f"{len(names)} of {len(final)} runs diverged (a loss that is not finite, or far above that of a guess at "
        f"chance): {shown}."
    ]


def _damaged(results: Results) -> list[str]:
    return [f"left out: {error}" for error in results.damaged]


def _section(section: Section, results: Results, drawn: Mapping[str, str], beside: Sequence[str]) -> str:
    figures = "\n".join(_figure(figure, results, drawn, beside) for figure in section.figures)
    head = f"<h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>"
    return f'<section>{head}<div class="grid">{figures}</div></section>'


def _figure(
    figure: sections.Figure, results: Results, drawn: Mapping[str, str], beside: Sequence[str]
) -> str:
    names = list(figure.plots)
    choice = ""
    if len(names) > 1:
        options = "".join(f"<option>{escape(name)}</option>" for name in names)
        choice = f'<select aria-label="{escape(figure.title)}: which part">{options}</select>'
    panels = "".join(
        f"<div data-panel>{_keys(plot)}{inline(plot, drawn[plot.name])}</div>"
        for plot in figure.plots.values()
    )
    prints = ", ".join(dict.fromkeys(figure.experiments))
    commands = [results.command, f"fedsim report {results.folder}"]
    command = escape("\n".join(c for c in commands if c))
    names = [plot.name for plot in figure.plots.values()]
    links = ", ".join(f'<a href="{file}">{file}</a>' for file in beside if Path(file).stem in names)
    return (
        f"<figure><h3>{escape(figure.title)}</h3>{choice}{panels}<figcaption>{escape(figure.caption)}"
        f"<details><summary>{len(set(figure.experiments))} experiments, command, files</summary>"
        f"<pre><code>{command}</code></pre><code>{prints}</code><br>{links}</details>"
        "</figcaption></figure>"
    )


def _keys(plot: Plot) -> str:
    keys = [
        f'<button type="button" aria-pressed="true" data-line="{line}"><i style="background:{colour}"></i>'
        f"{escape(title)}</button>"
        for line, title, colour in plot.lines
    ]
    return f'<div class="keys">{"".join(keys)}</div>' if len(keys) > 1 else ""


def inline(plot: Plot, svg: str) -> str:
    """The figure as a part of the page: without its ground, title and legend, in the inks of the page.

    Its ids are those of its lines alone.
    """
    tree = ElementTree.fromstring(svg)
    for parent in list(tree.iter()):
        for child in list(parent):
            if child.tag.endswith("metadata") or child.get("id") in ("ground", "title", "legend"):
                parent.remove(child)
    tree.attrib.pop("width")
    tree.attrib.pop("height")
    tree.set("viewBox", " ".join(f"{number:.1f}" for number in plot.middle()))
    tree.set("role", "img")
    svg = ElementTree.tostring(tree, encoding="unicode")
    svg = re.sub(r' id="(?!s-|[pmhC][0-9a-f]{8})[^"]*"', "", svg)
    for ink, variable in INKS.items():
        svg = svg.replace(ink, variable)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)  # half the size
    return re.sub(r"\n\s*", "\n", svg)


def _section_table(table: pd.DataFrame, results: Results) -> str:
    title = (
        f"Accuracy</h2><p>In %, {escape(results.scored)}" if results.of_classes else "Loss</h2><p>At the end"
    )
    heads = "".join(
        f'<th tabindex="0" class="{_kind(table[c])}">{escape(str(c))}</th>' for c in table if c != "std"
    )
    rows = "\n".join(f"<tr>{''.join(_cells(table, row))}</tr>" for row in range(len(table)))
    return (
        f"<section><h2>{title}: mean ± standard deviation over seeds. A click on "
        'a head sorts. Also as <a href="table.csv">CSV</a> and <a href="table.tex">LaTeX</a>.</p>'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div></section>'
    )


def _cells(table: pd.DataFrame, row: int) -> Iterator[str]:
    for column in table:
        if column != "std":
            value = table[column].iloc[row]
            kind = _kind(table[column])
            raw = f' data-v="{value}"' if kind and pd.notna(value) else ""
            yield f'<td class="{kind}"{raw}>{escape(shown(table, str(column), row))}</td>'


def shown(table: pd.DataFrame, column: str, row: int) -> str:
    """A value as it is printed."""
    value = table[column].iloc[row]
    if pd.isna(value):
        return ""
    if (
        column == table.columns[list(table.columns).index("std") - 1]
    ):  # the mean that stands before its deviation
        form, spread = ".2f" if column == "accuracy" else ".4g", table["std"].iloc[row]
        return f"{value:{form}}" + (f" ± {spread:{form}}" if pd.notna(spread) else "")
    if column == "difference":
        return f"{value:+.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _kind(values: pd.Series) -> str:
    return "n" if pd.api.types.is_numeric_dtype(values) else ""


def latex(table: pd.DataFrame) -> str:
    """The table for a paper, with booktabs."""
    columns = [str(c) for c in table if c != "std"]
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }

    def safe(text: str) -> str:
        return "".join(special.get(c, c) for c in text).replace("±", r"$\pm$")

    align = "".join("r" if _kind(table[c]) else "l" for c in columns)
    rows = [" & ".join(safe(shown(table, c, row)) for c in columns) for row in range(len(table))]
    lines = [
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(map(safe, columns)) + r" \\",
        r"\midrule",
    ]
    return "\n".join([*lines, *(rf"{row} \\" for row in rows), r"\bottomrule", r"\end{tabular}", ""])
