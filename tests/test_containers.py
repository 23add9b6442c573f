"""Containers without a builder: the files are read as Docker reads them, and with FEDSIM_LONG=1 their steps are run.

A step that installs runs in an environment that holds nothing but pip; the compose file's services are processes then.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "containers"
IMAGES = {path.stem: path for path in sorted(PLACE.glob("*.Dockerfile"))}
LEFT_OUT = {"matplotlib", "pandas", "torchvision"}  # of a device
KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "ENTRYPOINT", "CMD"}
LONG = pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="installs torch anew: FEDSIM_LONG=1")


def steps(image: str) -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    lines = [line for line in IMAGES[image].read_text().splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def services() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((PLACE / "compose.yaml").read_text())
    return dict(read["services"])


@pytest.mark.parametrize("image", ["device", "simulator"])
def test_an_image_is_made_of_known_steps_and_is_nobodys_root(image: str) -> None:
    told = steps(image)
    assert {word for word, _ in told} <= KNOWN
    assert [rest for word, rest in told if word == "USER"] == ["fedsim"]
    assert told.index(("USER", "fedsim")) > max(
        i for i, (word, _) in enumerate(told) if word in ("RUN", "COPY")
    )
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    for base in (rest.split()[0] for word, rest in told if word == "FROM"):
        found = re.fullmatch(r"python:(3\.\d+)-slim", base)
        assert found
        assert Requirement(f"python{python}").specifier.contains(found[1])
    for word, rest in told:
        if word in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(rest), list)
        if word == "RUN" and rest.startswith("pip"):
            assert "--no-cache-dir" in rest


@pytest.mark.parametrize("image", ["device", "simulator"])
def test_what_is_copied_is_there_and_reaches_the_builder(image: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [rest.split()[:-1] for word, rest in steps(image) if word == "COPY" and "--from" not in rest]
    for source in (name for names in copied for name in names):
        assert (ROOT / source).exists(), source
        assert f"!{source.partition('/')[0]}" in ignored, source
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    needed = {"fedsim", *table["package-dir"].values()}
    assert needed <= {name for names in copied for name in names}


def test_a_device_has_all_dependencies_but_those_for_pictures_and_tables() -> None:
    all_of_them = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = [line for line in all_of_them if Requirement(line).name not in LEFT_OUT]
    assert len(all_of_them) - len(wanted) == len(LEFT_OUT)
    assert (PLACE / "device.txt").read_text().splitlines() == wanted


def test_the_compose_file_is_one() -> None:
    schema = pytest.importorskip("check_jsonschema")
    done = CliRunner().invoke(
        schema.main, ["--builtin-schema", "vendor.compose-spec", str(PLACE / "compose.yaml")]
    )
    assert done.exit_code == 0, done.output
    held = services()
    for name, service in held.items():
        for other in service.get("depends_on", {}):
            assert other in held
        if "build" in service:
            assert (PLACE / service["build"]["context"] / service["build"]["dockerfile"]).resolve().exists()
        if name != "setup":
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
    made = re.findall(r"\d", re.findall(r"for i in (.+);", (PLACE / "setup.sh").read_text())[0])
    assert {f"device-{i}" for i in made} == {name for name in held if name.startswith("device-")}
    assert f"clients={len(made)}" in held["server"]["command"]


def bare(folder: Path, image: str) -> Path:
    """Where the image's programs are, once its installing steps ran in an environment with pip alone.

    CPU builds of torch come from wherever pip looks here, not from the place that the file names.
    """
    venv.create(folder, with_pip=True)
    context = folder / "context"
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    for word, rest in steps(image):
        if word == "COPY" and "--from" not in rest:
            *sources, target = rest.split()
            for source in sources:
                place = context / (target.strip("/") if target.startswith("/") else source)
                place.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, place)
        if word == "RUN" and rest.startswith("pip"):
            line = re.sub(r"--extra-index-url \S+ ", "", rest)
            line = line.replace("/wheels", f"{folder}/wheels").replace(
                "/requirements", f"{context}/requirements"
            )
            subprocess.run(["sh", "-c", line], cwd=context, env=environment, check=True)
    return folder / "bin"


@contextmanager
def process(words: list[str], place: Path, binary: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (place / f"{words[-1].rpartition('/')[2]}.log").open("wb") as log:
        started = subprocess.Popen([str(binary / words[0]), *words[1:]], cwd=place, stdout=log, stderr=log)
        try:
            yield started
        finally:
            started.send_signal(signal.SIGTERM)
            started.wait(30)


@LONG
def test_the_steps_run_in_a_bare_environment_and_the_services_train(tmp_path: Path) -> None:
    """The device's image is bare; the server's programs are this environment's, whose wheel another test installs."""
    device, here = bare(tmp_path / "device", "device"), Path(sys.executable).parent
    for name in LEFT_OUT:
        gone = subprocess.run([device / "python", "-c", f"import {name}"], capture_output=True, check=False)
        assert gone.returncode, f"{name} is in a device's image"
    trial = tmp_path / "trial"
    trial.mkdir()
    environment = os.environ | {"PATH": f"{here}:{os.environ['PATH']}"}
    subprocess.run(["sh", PLACE / "setup.sh", trial, "127.0.0.1"], env=environment, check=True)
    (entry,) = (json.loads(rest) for word, rest in steps("device") if word == "ENTRYPOINT")
    held = services()
    with ExitStack() as running:
        for name, service in held.items():
            if name.startswith("device-"):
                words = [*entry, *(w.replace("/trial", str(trial)) for w in service["command"])]
                running.enter_context(process(words, trial, device))
        words = shlex.split(held["server"]["command"].replace("/trial", str(trial)))
        done = subprocess.run(
            [here / "fedsim", *words, "--json"], capture_output=True, text=True, check=False, timeout=500
        )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["accuracy"] > 0.7
    assert not summary["set_aside"]
