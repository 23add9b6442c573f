"""The README keeps its word: its example runs, its commands exist, its files are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from fedsim.cli.app import app
from fedsim.config import catalog
from fedsim.experiments import recipes
from fedsim.runner import run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_example_runs() -> None:
    for code in blocks("python"):
        scope: dict[str, object] = {}
        exec(compile(code, "README.md", "exec"), scope)
        assert scope["result"].accuracy > 0.8  # type: ignore[attr-defined]


def test_each_part_of_the_quickstart_s_method_matters() -> None:
    """In its own table: the rule, and the outer clip, which shortens the messages."""
    comparison = recipes.quickstart()
    results = {label: run(e) for label, e in comparison.experiments().items()}
    main = results.pop(comparison.label)
    clean = results.pop("without the attack")
    assert set(results) == {"without the defence (mean)", "without the outer clip"}
    assert main.accuracy > 0.87
    assert main.summary["epsilon"] <= 8 + 1e-9
    assert all(main.accuracy > other.accuracy + 0.01 for other in results.values())
    assert clean.accuracy > 0.87
    assert main.frame["clipped"].mean() > 0.5
    assert results["without the outer clip"].frame.get("clipped") is None
    for words, result in (("accuracy of N", main), ("N without the clip", results["without the outer clip"])):
        said = re.search(words.replace("N", r"([\d.]+) %"), README)
        assert said
        assert float(said[1]) == pytest.approx(100 * result.accuracy, abs=0.6)  # two of the test's examples


def test_the_commands_exist() -> None:
    commands = getattr(get_command(app), "commands")  # noqa: B009 - a group, which the type does not say
    used = re.findall(r"^fedsim (\w+) ?(\w*)", "\n".join(blocks("")), re.MULTILINE)
    assert used
    for command, what in used:
        assert command in commands
        if command == "run":
            assert what in recipes.__all__


def test_the_table_names_kinds_and_options() -> None:
    table = README.partition("`fedsim list KIND` |\n")[2].partition("\n\n")[0]
    rows = [row.split("|")[1].strip() for row in table.splitlines()[1:]]
    kinds = [kind for row in rows for kind in row.split(", ") if not kind.startswith("`--")]
    assert {"methods", "rules", "attacks", "datasets"} <= set(kinds) <= set(catalog.KINDS)
    commands = getattr(get_command(app), "commands")  # noqa: B009 - a group, which the type does not say
    options = {option for parameter in commands["run"].params for option in parameter.opts}
    assert {row.strip("`") for row in rows if row.startswith("`")} <= options


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "check"} <= set(targets)
    assert re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
