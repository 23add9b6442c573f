"""Pages for users of other libraries: both programs run and come to the same, and their lines were counted."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import catalog

PAGES = Path(__file__).resolve().parents[1] / "docs" / "coming-from"
NAMES = sorted(path.stem for path in PAGES.glob("*.md"))
LONG = pytest.mark.skipif(
    "FEDSIM_LONG" not in os.environ, reason="programs of other libraries: FEDSIM_LONG=1"
)
MODULES = {"byzfl": "byzfl", "flower": "flwr", "opacus": "opacus", "pfl-research": "pfl"}
LEAST = 0.7
NEAR = 0.1  # data are dealt and drawn in another way


def programs(name: str) -> tuple[str, str]:
    """Theirs, ours."""
    theirs, ours = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{name}.md").read_text(), re.M | re.S)
    return theirs, ours


def lines(code: str) -> int:
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in code.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_were_counted(name: str) -> None:
    said = re.search(r"^Lines of code: (\d+) there, (\d+) here\.$", (PAGES / f"{name}.md").read_text(), re.M)
    assert said
    assert tuple(map(int, said.groups())) == tuple(map(lines, programs(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_names_on_our_side_exist(name: str) -> None:
    known = set(catalog.everything()) | {"run"}
    rows = [line for line in (PAGES / f"{name}.md").read_text().splitlines() if line.startswith("| ")]
    used = {word for row in rows for word in re.findall(r"\b([A-Z]\w+)\(", row.split(" | ")[1])}
    assert used <= known, used - known


@pytest.mark.parametrize("name", NAMES)
def test_our_program_runs(name: str, request: pytest.FixtureRequest) -> None:
    assert ours(name, request)["accuracy"] > LEAST


def ours(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    if name == "byzfl":
        request.getfixturevalue("data_folder")
    scope: dict[str, Any] = {}
    exec(compile(programs(name)[1], f"{name}, here", "exec"), scope)
    return scope


@LONG
@pytest.mark.parametrize("name", NAMES)
def test_their_program_comes_to_the_same(name: str, request: pytest.FixtureRequest) -> None:
    with warnings.catch_warnings():  # theirs are not ours to mend
        warnings.simplefilter("ignore")
        pytest.importorskip(MODULES[name], reason=f"{MODULES[name]} is not installed")
        scope: dict[str, Any] = {"__name__": name}
        if name == "byzfl":
            scope["FOLDER"] = request.getfixturevalue("data_folder")
        exec(compile(programs(name)[0], f"{name}, there", "exec"), scope)
        if name == "flower":  # as `flwr run` would, without waiting
            from fedsim.flower import InProcessGrid

            grid = InProcessGrid(scope["client_app"], nodes=10)
            scope["server_app"](grid=grid, context=grid.server_context)
            scope["accuracy"] = scope["found"]["accuracy"]
    here = ours(name, request)["accuracy"]
    print(f"{name}: {scope['accuracy']:.3f} there, {here:.3f} here")
    assert abs(scope["accuracy"] - here) < NEAR
    if "epsilon" in scope:
        assert scope["epsilon"] == pytest.approx(4, abs=0.1)
