"""The documentation keeps its word: snippets run in order, every component and study has a page."""

from __future__ import annotations

import importlib.util
import json
import posixpath
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app
from fedsim.config import catalog
from fedsim.experiments import recipes
from fedsim.experiments.study import Study

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [
    "index.md",
    "tutorial.md",
    "methods.md",
    *(f"how-to/{file.name}" for file in sorted((DOCS / "how-to").glob("*.md"))),
]
BENCH = DOCS / "results" / "bench"
SYSTEMS = {"pfl": "pfl-research", "byzfl": "ByzFL", "flower": "Flower on Ray", "opacus hooks": "Opacus, hooks",
           "opacus ghost": "Opacus, ghost"}  # fmt: skip
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    scope: dict[str, object] = {}
    snippets = FENCE.findall((DOCS / page).read_text())
    assert snippets
    for language, title, text in snippets:
        if title:
            Path(title).write_text(text)
        elif language == "python":
            exec(compile(text, page, "exec"), scope)
        elif language == "bash":
            for line in text.strip().splitlines():
                done = CliRunner().invoke(app, shlex.split(line)[1:])
                assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What the site makes of the code."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[str, str] = module.pages()
    return made


def links(text: str) -> set[str]:
    return set(re.findall(r"\]\((?!http|#)([^)#]+)\)", FENCE.sub("", text)))


def test_links_lead_somewhere(pages: dict[str, str]) -> None:
    """In the repository, of its own pages; on the site, also of and to those that it makes."""
    made = {posixpath.normpath(DOCS / path) for path in pages}
    own = [page for page in sorted(DOCS.rglob("*.md")) if page != DOCS / "index.md"]
    for page in own:
        for target in links(page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
    for path, text in {"index.md": (DOCS / "index.md").read_text(), **pages}.items():
        for target in links(text):
            place = posixpath.normpath((DOCS / path).parent / target)
            assert place in made or Path(place).exists(), f"{path}: {target}"


def test_every_component_has_a_page(pages: dict[str, str]) -> None:
    for kind in catalog.KINDS:
        for name in catalog.names(kind):
            page = pages[f"components/{kind}/{name}.md"]
            assert page.startswith(f"# {name}\n")
            assert f"[{name}]({name}.md)" in pages[f"components/{kind}/index.md"]
    assert (
        r"v\_i" in pages["components/methods/ByzClip21SGD2M.md"]
        or "v_i" in pages["components/methods/ByzClip21SGD2M.md"]
    )
    assert "(https://arxiv.org/abs/2603.23472)" in pages["components/methods/ByzClip21SGD2M.md"]
    for name in recipes.__all__:
        if isinstance(getattr(recipes, name)(), Study):
            assert pages[f"studies/{name}.md"].startswith(f"# {name}\n")
            assert f"(studies/{name}.md)" in pages["studies.md"]
            pictured = list((DOCS / "results").glob(f"{name}*/*.svg"))
            assert (f"![{name}](results/{name}" in pages["gallery.md"]) == bool(pictured)


def test_the_page_of_methods_names_what_there_is() -> None:
    page = (DOCS / "methods.md").read_text()
    tables = {
        name
        for line in page.splitlines()
        if line[:3] == "| `"
        for name in re.findall(r"`(\w+)`", line[: line.index("|", 2)])
    }
    assert tables == set(catalog.names("methods"))


def measured(file: str) -> dict[tuple[str, str], dict[str, float]]:
    lines = map(json.loads, (BENCH / file).read_text().splitlines())
    return {(SYSTEMS.get(line["system"], line["system"]), line["workload"]): line for line in lines}


@pytest.mark.parametrize(("heading", "file"), [("One thread", "one-thread"), ("Two threads", "two-threads")])
def test_the_tables_of_rounds_are_what_was_measured(heading: str, file: str) -> None:
    page = (DOCS / "performance.md").read_text()
    section = page[page.index("\n| |", page.index(f"\n## {heading}\n")) :].strip().split("\n\n")[0]
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()]
    found, checked = measured(f"{file}.jsonl"), 0
    for system, *cells in rows:
        for workload, cell in zip(header[1:], cells, strict=True):
            line = found.get((system, workload), {})
            expected = (
                f"{line['over_floor']:.3g} ({line['seconds_per_round']:.3g} s)"
                if "over_floor" in line
                else ""
            )
            assert cell == expected, (system, workload)
            checked += cell != ""
    assert checked == sum("over_floor" in line for line in found.values())


def test_the_readme_says_what_was_measured_on_two_cores() -> None:
    w1 = {
        system: line for (system, workload), line in measured("two-threads.jsonl").items() if workload == "W1"
    }
    ours, peers = w1["fedsim vector"], (w1[name] for name in ("ByzFL", "pfl-research", "Flower on Ray"))
    times = [ours["over_floor"], *(peer["seconds_per_round"] / ours["seconds_per_round"] for peer in peers)]
    words = (
        "as long as {:.2g} plain passes over their batches; with ByzFL {:.2g} times as long, "
        "with pfl-research {:.2g}, with Flower {:.2g} ("
    )
    assert words.format(*times) in " ".join((DOCS.parent / "README.md").read_text().split())
