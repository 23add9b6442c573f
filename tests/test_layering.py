"""Imports point one way, each outside framework has its files, and nothing heavy loads before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("strategies", "attacks", "datasets", "experiments")

# Modules by prefix -> prefixes that they may import from fedsim; the first row that fits decides.
MACHINE = ("fedsim.check", "fedsim.machine", "fedsim.version")
NOUNS = (
    *MACHINE,
    "fedsim.held",
    "fedsim.types",
    "fedsim.method",
    "fedsim.asynchronous",
    "fedsim.recall",
    "fedsim.losses",
    "fedsim.keys",
    "fedsim.clock",
    "fedsim.layout",
    "fedsim.messages",
    "fedsim.schedule",
)
PARTS = (
    *NOUNS,
    "fedsim.accounting",
    "fedsim.batches",
    "fedsim.config",
    "fedsim.gradients",
    "fedsim.metrics",
    "fedsim.models",
)
CORE = (*PARTS, "fedsim.privacy", "fedsim.task", "fedsim.spec")
RUNTIME = (
    *CORE,
    "fedsim.dealing",
    "fedsim.fetched",
    "fedsim.traffic",
    "fedsim.federation",
    "fedsim.mechanism",
    "fedsim.env",
    "fedsim.downlink",
    "fedsim.round",
    "fedsim.engines",
    "fedsim.record",
    "fedsim.result",
    "fedsim.callbacks",
    "fedsim.progress",
    "fedsim.states",
    "fedsim.timing",
    "fedsim.standing",
    "fedsim.pilot",
    "fedsim.personal",
    "fedsim.stationary",
    "fedsim.attempts",
    "fedsim.course",
    "fedsim.prolong",
    "fedsim.runner",
)
ALLOWED = {
    **dict.fromkeys(MACHINE, MACHINE),
    **dict.fromkeys(NOUNS, NOUNS),
    "fedsim.strategies.flower": (*RUNTIME, "fedsim.strategies", "fedsim.flower"),
    "fedsim.strategies.kernels": (*NOUNS, "fedsim.strategies.kernels"),
    "fedsim.strategies.rules": (*NOUNS, "fedsim.strategies.kernels", "fedsim.strategies.rules"),
    "fedsim.strategies.oracles": (*NOUNS, "fedsim.strategies.oracles"),
    "fedsim.strategies.methods": (*NOUNS, "fedsim.strategies.oracles", "fedsim.strategies.methods"),
    "fedsim.strategies": (*NOUNS, "fedsim.strategies"),
    "fedsim.attacks.flower": (*RUNTIME, "fedsim.attacks", "fedsim.flower"),
    "fedsim.attacks": (*NOUNS, "fedsim.attacks"),
    "fedsim.datasets": (*NOUNS, "fedsim.datasets"),
    "fedsim.models": (*NOUNS, "fedsim.models"),
    "fedsim.gradients": (*NOUNS, "fedsim.gradients"),
    **dict.fromkeys(CORE, CORE),
    "fedsim.engines.grid": (*RUNTIME, "fedsim.flower"),
    "fedsim.engines.ray": (*RUNTIME, "fedsim.flower"),
    "fedsim.experiments": ("fedsim",),
    "fedsim.__main__": ("fedsim.cli",),
    "fedsim.cli": (*RUNTIME, "fedsim.datasets", "fedsim.experiments", "fedsim.cli", "fedsim.deploy.cli"),
    "fedsim.flower": (*RUNTIME, "fedsim.flower"),
    "fedsim.link.grid": (*MACHINE, "fedsim.link", "fedsim.flower.private"),
    "fedsim.link.answering": (*MACHINE, "fedsim.link", "fedsim.flower.private"),
    "fedsim.link": (*MACHINE, "fedsim.link"),
    "fedsim.deploy": (
        *RUNTIME,
        "fedsim.flower",
        "fedsim.link",
        "fedsim.deploy",
        "fedsim.experiments",
        "fedsim.cli",
    ),
    "fedsim": RUNTIME,
}
OUTSIDE = {
    "flwr": (
        "fedsim.flower",
        "fedsim.link",
        "fedsim.deploy",
        "fedsim.strategies.flower",
        "fedsim.attacks.flower",
        "fedsim.engines.ray",
        "fedsim.experiments.bench.peers",
        "fedsim.experiments.bench.devices",
    ),
    "grpc": ("fedsim.link",),
    "cryptography": ("fedsim.link.identity", "fedsim.deploy"),
    "prometheus_client": ("fedsim.link.journal",),
    "ray": ("fedsim.engines", "fedsim.experiments"),
    "opacus": ("fedsim.accounting", "fedsim.privacy", "fedsim.gradients.reference", "fedsim.experiments"),
    "torchvision": ("fedsim.datasets.vision",),
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    files = [
        *(ROOT / "fedsim").rglob("*.py"),
        *(f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py")),
    ]
    found = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        dotted = ".".join(parts if parts[0] == "fedsim" else ("fedsim", *parts))
        found[dotted.removesuffix(".__init__")] = file
    return found


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_one_way(module: str) -> None:
    allowed = next(a for prefix, a in ALLOWED.items() if within(module, (prefix,)))
    for name in imports(modules()[module]):
        if within(name, ("fedsim",)) and not within(module, (name,)):
            assert within(name, allowed), f"{module} imports {name}"
        for package, homes in OUTSIDE.items():
            if within(name, (package,)):
                assert within(module, homes), f"{module} imports {name}"


def test_no_circle() -> None:
    """Imports inside functions count too; what stands under TYPE_CHECKING is read by type checkers as well."""
    known = modules()
    edges = {
        name: {m for m in (owner(i, known) for i in imports(file)) if m and m != name}
        for name, file in known.items()
    }
    TopologicalSorter(edges).prepare()  # raises CycleError, which names one


def owner(name: str, known: dict[str, Path]) -> str | None:
    """The module that an import reads: itself, or the one that its last part is a name of."""
    return name if name in known else parent if (parent := name.rpartition(".")[0]) in known else None


def fresh(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def test_importing_fedsim_loads_nothing_heavy() -> None:
    loaded = fresh("import fedsim, sys; print(*sys.modules)").split()
    assert not {"torch", "flwr", "ray", "opacus", "pandas", "matplotlib"} & set(loaded)


def test_running_needs_neither_flower_nor_opacus() -> None:
    loaded = fresh(
        "import fedsim.runner, fedsim.strategies, fedsim.attacks, sys; print(*sys.modules)"
    ).split()
    assert not {"flwr", "ray", "opacus", "torchvision"} & set(loaded)


@pytest.mark.parametrize(
    ("recipe", "slow"), [("mnist_robust", {"torchvision", "scipy"}), ("quickstart", {"sklearn"})]
)
def test_a_run_s_first_round_waits_for_nothing_heavy(
    recipe: str, slow: set[str], data_folder: Path, tmp_path: Path
) -> None:
    """In a process of its own, from the command to the end of the first round: what makes a start slow is not there."""
    code = f"""
import os, sys, time
import fedsim.runner as runner
advance = runner._advance
def one(*arguments):
    advance(*arguments)
    print(time.process_time(), *sys.modules, flush=True)
    os._exit(0)
runner._advance = one
from fedsim.cli.app import app
app(["run", {recipe!r}, "--alone", "--json", "--out", {str(tmp_path)!r}])
"""
    seconds, *loaded = fresh(code).split()
    heavy = {"flwr", "ray", "opacus", "matplotlib", "pandas", "torch._dynamo", "tensorboard", "PIL"} | slow
    assert not heavy & set(loaded)
    assert float(seconds) < 15  # of the processor's; about 2.5 on the machine that this was written on


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_loads_nothing_heavy(option: str) -> None:
    code = "import sys\nfrom typer.testing import CliRunner\nfrom fedsim.cli.app import app\n"
    code += f"assert CliRunner().invoke(app, ['{option}']).exit_code == 0\nprint(*sys.modules)"
    assert not {"torch", "flwr", "opacus", "pandas", "numpy"} & set(fresh(code).split())


def test_no_folder_shadows_hugging_face_datasets() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_files_are_small() -> None:
    """Median under 100 lines, few above 300: a rule of the house, counted with docstrings."""
    sizes = sorted(len(file.read_text().splitlines()) for file in modules().values())
    assert sizes[len(sizes) // 2] <= 130
    assert sizes[-1] <= 420
