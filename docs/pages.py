"""Pages that the site makes of the code itself: one for each component from its docstring, one for each study."""

from __future__ import annotations

import dataclasses
import inspect
import posixpath
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fedsim.check import Component
from fedsim.config import catalog
from fedsim.experiments import recipes
from fedsim.experiments.load import expression
from fedsim.experiments.recipes.median_mean import toy
from fedsim.experiments.recipes.sign_votes import probabilities
from fedsim.experiments.study import Study

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file by its path
from docstrings import paragraphs, prose

FIRST = ("surface", "privacy", "attack-rule", "f-split", "accuracy", "")  # the order of pictures
RESULTS = Path(__file__).parent / "results"  # of `fedsim report --small`, each with a text.md
LINK = re.compile(r"\]\((?!http|#)([^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs before it builds."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """All generated pages by path."""
    found = {"studies.md": studies(), "gallery.md": gallery(), "components/index.md": overview()}
    found |= {f"studies/{name}.md": study(name, recipe) for name, recipe in recipes_of_studies().items()}
    for kind in catalog.KINDS:
        members = catalog.names(kind)
        lines = [f"| [{name}]({name}.md) | {prose(first_line(c))} |" for name, c in members.items()]
        head = f"# {kind.capitalize()}\n\nWhat the code itself says; `fedsim list {kind}` prints the same."
        found[f"components/{kind}/index.md"] = "\n".join(
            [head, "", "| name | |", "| --- | --- |", *lines, ""]
        )
        found |= {f"components/{kind}/{name}.md": component(kind, name, c) for name, c in members.items()}
    return found


def overview() -> str:
    lines = [f"| [{kind}]({kind}/index.md) | {', '.join(catalog.names(kind))} |" for kind in catalog.KINDS]
    return "\n".join(["# Components by kind", "", "| kind | |", "| --- | --- |", *lines, ""])


def component(kind: str, name: str, cls: type[Component]) -> str:
    """A page from a component's docstring and fields."""
    parts = [f"# {name}", *paragraphs(inspect.getdoc(cls) or "")]
    fields = dataclasses.fields(cls)
    if fields:
        rows = [f"| `{f.name}` | `{str(f.type).replace('|', 'or')}` | {default(f)} |" for f in fields]
        parts.append("\n".join(["| field | type | default |", "| --- | --- | --- |", *rows]))
    parts.append(f"Kind: [{kind}](index.md). Source: `{cls.__module__}`.")
    return "\n\n".join(parts) + "\n"


def studies() -> str:
    """All recipes that are studies, and what can be said in closed form."""
    rows = [
        f"| [{name}](studies/{name}.md) | {prose(first_line(function))} | {'yes' if measured(name) else ''} |"
        for name, function in recipes_of_studies().items()
    ]
    parts = [
        "# Studies",
        "Published settings as functions of `fedsim.experiments.recipes`; each also has a reduced setting.",
        "\n".join(["| study | | measured |", "| --- | --- | --- |", *rows]),
        "## In closed form",
        "Computed as this page was built, by `recipes.median_mean.toy`:",
        markdown(toy()),
        "By `recipes.sign_votes.probabilities`, for 25 clients:",
        markdown(probabilities()),
    ]
    return "\n\n".join(parts) + "\n"


def gallery() -> str:
    """The first figure of each study that was measured, with the command that makes it."""
    parts = [
        "# Gallery",
        "What each recipe's report begins with. Its page has the protocol, the table and what is missing.",
    ]
    for name, function in recipes_of_studies().items():
        for folder, option in ((RESULTS / name, ""), (RESULTS / f"{name}-reduced", " --reduced")):
            if pictures := figures(folder):
                parts += [
                    f"## [{name}](studies/{name}.md)",
                    prose(first_line(function)),
                    f"![{name}](results/{folder.name}/{pictures[0]})",
                    f"```text\nfedsim sweep {name}{option} && fedsim report sweeps/{folder.name}\n```",
                ]
                break
    return "\n\n".join(parts) + "\n"


def figures(folder: Path) -> list[str]:
    """The names of a study's pictures, those that say most first."""
    return list(dict.fromkeys(file.name for start in FIRST for file in sorted(folder.glob(f"{start}*.svg"))))


def recipes_of_studies() -> dict[str, Callable[..., Study]]:
    found = {name: getattr(recipes, name) for name in recipes.__all__}
    return {name: function for name, function in found.items() if isinstance(function(), Study)}


def study(name: str, function: Callable[..., Study]) -> str:
    """A recipe: protocol, notes, cells, command, and the results that are committed."""
    whole, small = function(), function(reduced=True)
    parts = [f"# {name}", *paragraphs(inspect.getdoc(function) or "")]
    parts.append("\n".join(f"- {prose(note)}" for note in dict.fromkeys((*whole.notes, *small.notes))))
    cells, fewer = (len(s.cells()[0]) for s in (whole, small))
    commands = f"fedsim sweep {name}  # {cells} cells\nfedsim sweep {name} --reduced  # {fewer} cells"
    parts.append(f"```text\n{commands}\n```")
    parts += measured(name) or ["No results are committed yet."]
    return "\n\n".join(parts) + "\n"


def measured(name: str) -> list[str]:
    """What was measured, in the whole and in the reduced setting, where it is committed."""
    parts = []
    for title, folder in (
        ("Measured", RESULTS / name),
        ("Measured in the reduced setting", RESULTS / f"{name}-reduced"),
    ):
        if (folder / "table.csv").exists():
            table, place = pd.read_csv(folder / "table.csv"), f"../results/{folder.name}"
            parts += [f"## {title}", facts(table)]
            parts += [moved(folder / "text.md")] if (folder / "text.md").exists() else []
            parts += [f"![{name}]({place}/{picture})" for picture in figures(folder)]
            for file in sorted(folder.glob("*.csv")):
                if file.stem != "table":
                    parts += [f"By `{file.stem}` of the recipe's module:", markdown(pd.read_csv(file))]
            parts += ['??? note "All cells"', textwrap.indent(markdown(table), "    ")]
    return parts


def moved(text: Path) -> str:
    """A text of results as part of its study's page: links from where it lies become links from there."""

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(f"results/{text.parent.name}/{match[1]}")
        target = re.sub(r"^results/(.+?)(-reduced)?/text\.md$", r"studies/\1.md", target)
        return f"]({posixpath.relpath(target, 'studies')})"

    return LINK.sub(link, text.read_text().strip())


def facts(table: pd.DataFrame) -> str:
    """What went into a table, and how far it is from what the paper reports."""
    minutes = (table["seconds"] * table["seeds"]).sum() / 60
    text = f"{table['seeds'].sum()} runs, {minutes:.0f} minutes of computing in all, on two shared cores."
    if "difference" in table and (known := table[table["difference"].notna()]).size:
        near = known["difference"].abs()
        text += (
            f" {len(known)} cells have a published accuracy: the difference is {known['difference'].median():+.1f} "
            f"points in the median, {(near <= 5).sum()} are within 5 points, {(near <= 15).sum()} within 15; rank "
            f"correlation {known['accuracy'].corr(known['reported'], method='spearman'):.2f}."
        )
    return text


def markdown(table: pd.DataFrame) -> str:
    """A table with numbers to four digits."""
    shown = table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)).replace(
        "nan", ""
    )
    rows = [table.columns, ["---"] * len(table.columns), *shown.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{expression(field.default)}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{expression(field.default_factory())}`"
    return ""


def first_line(of: object) -> str:
    return (inspect.getdoc(of) or "").partition("\n")[0]
