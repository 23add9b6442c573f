"""docs/findings.md: three sentences a study, and each figure is that of the committed table.

A figure is followed by a comment that names its cell: the file where it is not table.csv, the column where it is
not the accuracy, and column=value for each condition; or min or max over the rows that are left.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "findings.md").read_text()
SECTION = re.compile(
    r"^## \[(\w+)\]\(results/([\w-]+)/text\.md\), (\w+), (\w+) seeds?\n\n(.*?)(?=\n## |\Z)", re.M | re.S
)
FIGURE = re.compile(r"(\d[\d.]*)<!--(.*?)-->")
SETTING = re.compile(
    r"(?:Dirichlet|epsilon|momentum|at|of|loss of) \d+\.\d+(?! ?<)|\d+\.\d+ bits|above \d+\.\d+"
)
SECTIONS = {match[2]: match for match in SECTION.finditer(PAGE)}


def value(folder: str, where: str) -> float:
    """The number that a comment names."""
    file, column, over = "table.csv", "accuracy", ""
    given: dict[str, str] = {}
    for word in where.split("; "):
        name, equals, wanted = word.partition("=")
        if equals:
            given[name] = wanted
        elif word.endswith(".csv"):
            file = word
        elif word in ("min", "max"):
            over = word
        else:
            column = word
    table = pd.read_csv(DOCS / "results" / folder / file)
    for name, wanted in given.items():
        held = table[name]
        table = table[held == (float(wanted) if pd.api.types.is_numeric_dtype(held) else wanted)]
    assert len(table) == 1 or (over and len(table)), f"{folder}: {where}: {len(table)} rows"
    return float(getattr(table[column], over or "max")())


@pytest.mark.parametrize("folder", SECTIONS)
def test_the_figures_are_those_of_the_tables(folder: str) -> None:
    text = SECTIONS[folder][5]
    for said, where in FIGURE.findall(text):
        digits = len(said.partition(".")[2])
        assert abs(value(folder, where) - float(said)) <= 0.5 * 10**-digits + 1e-6, f"{said}: {where}"
    left = SETTING.sub("", FIGURE.sub("", text))
    assert not re.findall(r"\d+\.\d+", left), "a figure without the cell that it comes from"


@pytest.mark.parametrize("folder", SECTIONS)
def test_a_study_has_three_sentences_and_says_how_large_it_was(folder: str) -> None:
    name, _, size, seeds, text = SECTIONS[folder].groups()
    assert folder == (name if size == "whole" else f"{name}-reduced")
    table = pd.read_csv(DOCS / "results" / folder / "table.csv")
    assert set(table["seeds"]) == {{"one": 1, "three": 3, "five": 5}[seeds]}
    lines = text.strip().splitlines()
    assert [re.match(r"- \*\*(.+?)\.\*\* [A-Z]", line) and line[4:].partition(".")[0] for line in lines] == [
        "Holds",
        "Does not",
        "New",
    ]
    for line in lines:
        sentence = FIGURE.sub("0", line.partition(".** ")[2])
        assert sentence.endswith(".")
        assert not re.search(r"[.?!] [A-Z]", sentence), f"one sentence: {sentence}"


def test_every_committed_study_is_there_or_says_itself_what_it_measured() -> None:
    studies = {path.parent.name for path in (DOCS / "results").glob("*/table.csv")}
    assert set(SECTIONS) <= studies
    assert len(SECTIONS) == PAGE.count("\n## "), "a heading that is not of the form that is checked"
    for folder in studies - set(SECTIONS):
        assert "**Measured.**" in (DOCS / "results" / folder / "text.md").read_text(), folder
