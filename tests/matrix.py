"""Python, Flower and torch in the versions that are to be had here: `python tests/matrix.py [--whole] [--again]`.

Each Python gets an environment of its own for each torch, and in it one Flower after another: what users of Flower
need (RobustStrategy, Adversary, the grid, all methods on it) and the rules are tested there, with --whole everything.
CPU builds of torch alone are taken (a CUDA build is gigabytes), from wherever pip looks. What was run, and what was not
and why, is written into docs/compatibility.md after each cell. The same command again goes on where one was stopped,
and tries again what was not run; --again begins anew. One cell at a time, in one process that gives way to others.
The exit code is 1 where a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
PLACE = ROOT / "build" / "matrix"
DONE = ROOT / "build" / "matrix.jsonl"  # cells that were run, a line each
NEWEST = "newest"
PYTHONS = ("3.11", "3.12", "3.13")
FLOWERS = ("oldest", "1.39.0", NEWEST)
TORCHES = ("2.11.0", "2.13.0", NEWEST)
TESTS = [
    "tests/flower/test_robust_strategy.py",
    "tests/flower/test_strategy.py",
    "tests/flower/test_messages.py",
    "tests/flower/test_quickstart.py",
    "tests/engines/test_grid.py",
    "tests/strategies/test_rules.py",
]
HEADER = ["| Python | Flower | torch | result |", "| --- | --- | --- | --- |"]


@dataclass(frozen=True)
class Cell:
    """One row of the table: versions, and pytest's last line, or why nothing was run."""

    python: str
    flower: str
    torch: str
    result: str

    @property
    def failed(self) -> bool:
        return not self.result.startswith("not run") and (
            " passed" not in self.result or bool(re.search("failed|error", self.result))
        )

    def line(self) -> str:
        return f"| {self.python} | {self.flower} | {self.torch} | {self.result} |"


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {r.name: r for r in map(Requirement, project["dependencies"])}


def oldest(name: str) -> str:
    """The lower bound of a dependency."""
    (bound,) = (s.version for s in requirements()[name].specifier if s.operator == ">=")
    return bound


def output(*words: object) -> str | None:
    """What a command prints; None where it fails."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout if done.returncode == 0 else None


def newest(name: str) -> str | None:
    """What the index has last, by pip."""
    said = output(sys.executable, "-m", "pip", "index", "versions", name)
    found = re.match(rf"{name} \(([^)+]+)", said or "")
    return found[1] if found else None


def interpreter(version: str) -> str | None:
    """A Python of this version that starts; pyenv's own names start only where it was told to."""
    pyenv = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for candidate in (sys.executable, shutil.which(f"python{version}"), *map(str, pyenv)):
        says = candidate and output(candidate, "-c", "import platform; print(platform.python_version())")
        if says and says.startswith(f"{version}."):
            return candidate
    return None


def vision(torch: str) -> str:
    """torchvision's version for a torch: 0.26 goes with 2.11, and so on."""
    return f"torchvision==0.{int(torch.split('.')[1]) + 15}.*"


def no_build(python: str, torch: str) -> str:
    """Why torch cannot be installed as a CPU build; empty where it can."""
    words = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--target", PLACE / "none"]
    said = output(sys.executable, "-m", "pip", *words, "--python-version", python, "--only-binary=:all:",
                  f"torch=={torch}+cpu")  # fmt: skip
    return "" if said else f"no CPU build of torch {torch} for Python {python} was to be had"


def environment(python: str, torch: str) -> Path:
    """An environment with all dependencies but Flower, and the project itself."""
    folder = PLACE / f"python-{python}-torch-{torch}"
    binary = folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter(python) or "", "-m", "venv", folder], check=True)
    needs = [str(r) for name, r in requirements().items() if name not in ("torch", "torchvision", "flwr")]
    tests = ["pytest", "pytest-xdist", "hypothesis", "pyyaml", "pandas-stubs", "dp-accounting"]
    pip = [binary, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"torch=={torch}+cpu", vision(torch), *needs, *tests], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", "."], check=True, cwd=ROOT)
    return binary


def tested(binary: Path, flower: str, tests: list[str]) -> str:
    """pytest's last line with this Flower, or what pip said."""
    done = subprocess.run(
        [binary, "-m", "pip", "install", "--quiet", f"flwr=={flower}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"not run: pip: {done.stderr.strip().splitlines()[-1]}"
    done = subprocess.run(
        [binary, "-m", "pytest", *tests], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = [
        line.strip("= ") for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed|error)", line)
    ]
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            print(line, flush=True)
    return lines[-1] if lines else f"error: exit code {done.returncode}"


def cells(tests: list[str], done: dict[tuple[str, str, str], Cell]) -> Iterator[Cell]:
    """All rows, in order; those that are done as they were."""
    last = {name: newest(name) for name in ("flwr", "torch")}
    flowers = {name: {"oldest": oldest("flwr"), NEWEST: last["flwr"]}.get(name, name) for name in FLOWERS}
    torches = {name: last["torch"] if name == NEWEST else name for name in TORCHES}
    for python in PYTHONS:
        for torch_name, torch in torches.items():
            binary = None
            for flower_name, flower in flowers.items():
                why = ""
                if interpreter(python) is None:
                    why = f"no Python {python} here"
                elif torch is None or flower is None:
                    why = "no index to ask for the newest"
                shown = [
                    f"{version} ({name})" if version != name else name
                    for name, version in ((flower_name, flower), (torch_name, torch))
                ]
                if (python, *shown) in done:
                    yield done[python, shown[0], shown[1]]
                    continue
                if not why and torch is not None and binary is None:
                    why = no_build(python, torch)
                if why or torch is None or flower is None:
                    yield Cell(python, *shown, f"not run: {why}")
                    continue
                binary = binary or environment(python, torch)
                yield Cell(python, *shown, tested(binary, flower, tests))


def write(rows: list[Cell]) -> None:
    """Put the table in place of the one that is on the page."""
    before = PAGE.read_text().partition(HEADER[0])[0]
    PAGE.write_text("\n".join([before + HEADER[0], HEADER[1], *(row.line() for row in rows), ""]))


def kept(path: Path, tests: list[str]) -> dict[tuple[str, str, str], Cell]:
    """Cells that an earlier command ran of the same tests and commit; none where nothing was begun."""
    if not path.exists():
        return {}
    head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [Cell(**line) for line in lines] if head == _head(tests) else []
    return {(row.python, row.flower, row.torch): row for row in rows}


def _head(tests: list[str]) -> dict[str, object]:
    return {"commit": output("git", "rev-parse", "HEAD"), "tests": tests}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whole", action="store_true", help="all tests")
    parser.add_argument("--again", action="store_true", help="begin anew")
    options = parser.parse_args()
    tests = ["tests"] if options.whole else TESTS
    os.nice(19 - os.nice(0))
    print(f"{platform.platform(terse=True)}, Python {platform.python_version()}", flush=True)
    done = {} if options.again else kept(DONE, tests)
    DONE.parent.mkdir(exist_ok=True)
    DONE.write_text("".join(f"{json.dumps(line)}\n" for line in (_head(tests), *map(asdict, done.values()))))
    rows = []
    for row in cells(["-p", "no:xdist", *tests], done):
        rows.append(row)
        write(rows)
        print(time.strftime("%H:%M"), row.line(), flush=True)
        if not row.result.startswith("not run") and (row.python, row.flower, row.torch) not in done:
            with DONE.open("a") as file:
                file.write(f"{json.dumps(asdict(row))}\n")
    shutil.rmtree(PLACE, ignore_errors=True)
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
