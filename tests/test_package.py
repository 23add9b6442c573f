"""The distribution: wheel and sdist are built, checked, and run from an environment that holds no checkout."""

from __future__ import annotations

import datetime
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import fedsim
from fedsim.version import DISTRIBUTION, of

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("fedsim", "strategies", "attacks", "datasets", "experiments")
LONG = pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="installs torch anew: FEDSIM_LONG=1")


def call(*words: object, cwd: Path, clean: bool = False) -> str:
    """What a command prints; its own words where it fails. `clean`: nothing of this environment's variables."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") or not clean}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=keep, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: which files belong to the project is not known")
    return [name for name in call("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from it, of the tracked files alone."""
    pytest.importorskip("build")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        if not name.startswith("docs/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=copy)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_index_would_take_both(built: Path) -> None:
    pytest.importorskip("twine")
    assert len(list(built.iterdir())) == 2
    call(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)


def test_the_wheel_holds_all_of_the_project_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    names = [name for name in tracked() if name.partition("/")[0] in FOLDERS]
    assert held == {name if name.startswith("fedsim/") else f"fedsim/{name}" for name in names}
    assert {"fedsim/py.typed", "fedsim/experiments/report/page.html"} <= held


def test_the_sdist_holds_the_tests(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked() if name.startswith("tests/")} <= held
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "README.md"} <= held


def test_the_metadata_say_what_it_is(wheel: Path) -> None:
    said = metadata(wheel)
    assert (said["Name"], said["Version"]) == (DISTRIBUTION, PROJECT["version"])
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Author"] == "The fedsim authors"
    pythons = {
        c.rpartition(" ")[2] for c in said.get_all("Classifier") if c.startswith("Programming Language")
    }
    assert {"3.11", "3.12", "3.13"} <= pythons
    assert "Byzantine robustness" in said["Keywords"]


def test_flower_has_no_upper_bound() -> None:
    needs = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    assert [str(s) for s in needs["flwr"].specifier] == [">=1.38"]


def test_no_sentence_tells_users_to_install_the_other_fedsim() -> None:
    """On the index `fedsim` is another project: `pip install fedsim` would run its code."""
    names = [n for n in tracked() if n.endswith((".py", ".md", ".toml", ".yml")) or "Dockerfile" in n]
    for name in names:
        told = re.findall(
            r"(?:pip install|dependencies =)[^\n`]*?['\" ]fedsim(?![-\w/.])", (ROOT / name).read_text()
        )
        assert not told or name == "tests/test_package.py", f"{name}: {told}"


def test_the_version_is_that_of_the_metadata() -> None:
    """Also of the changelog; a copy that is not installed says that it has none."""
    assert fedsim.__version__ == PROJECT["version"], (
        "pyproject.toml changed since this was installed: run make"
    )
    assert of("fedsim-not-installed") == "0+unknown"


def test_the_changelog_is_dated() -> None:
    heads = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    assert heads[1][0] == PROJECT["version"]
    dates = [datetime.date.fromisoformat(date) for _, date in heads[1:]]
    assert dates == sorted(dates, reverse=True)
    versions = [Version(version) for version, _ in heads[1:]]
    assert versions == sorted(versions, reverse=True)


def test_a_clean_environment_runs_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are this environment's; fedsim is the wheel's alone, and no checkout is in sight."""
    place = tmp_path / "env"
    venv.create(place, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    held = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text(
        "\n".join(held)
    )  # their own .pth, of the checkout, do not count there
    call(sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--no-deps", "--no-index",
         "--force-reinstall", "--quiet", wheel, cwd=tmp_path)  # fmt: skip
    where = "import fedsim.experiments.report as r; print(r.__file__)"
    found = call(place / "bin/python", "-P", "-c", where, cwd=tmp_path, clean=True)
    assert Path(found.strip()).is_relative_to(site)
    script = place / "bin/fedsim"
    assert call(script, "--version", cwd=tmp_path, clean=True) == f"fedsim {PROJECT['version']}\n"
    said = call(script, "run", "quickstart", "--set", "rounds=2", "--alone", cwd=tmp_path, clean=True)
    assert "accuracy" in said
    assert list(tmp_path.glob("runs/quickstart-*/picture.png"))


@LONG
def test_an_empty_environment_installs_the_wheel_and_runs_the_quickstart(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    call(tmp_path / "env/bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path, clean=True)
    fedsim_ = tmp_path / "env/bin/fedsim"
    assert call(fedsim_, "--version", cwd=tmp_path, clean=True) == f"fedsim {PROJECT['version']}\n"
    said = call(fedsim_, "run", "quickstart", cwd=tmp_path, clean=True)
    assert re.search(r"accuracy 8[6-9]|accuracy 9\d", said), said
    call(fedsim_, "sweep", "quickstart", "--set", "rounds=2", "--over", "rule=Mean;Median", cwd=tmp_path,
         clean=True)  # fmt: skip
    call(fedsim_, "report", "sweeps/quickstart", cwd=tmp_path, clean=True)  # its page is a data file
