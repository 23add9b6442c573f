"""The command line: what it prints, what it leaves behind, and how it refuses."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from fedsim import __version__
from fedsim.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., Result]
SMALL = ["--set", "rounds=3", "--set", "task.data=Blobs", "--set", "task.model=Logistic"]


@pytest.fixture
def fedsim(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A command in this process, from a folder and an environment of its own."""

    def call(*words: str, cwd: Path | None = None, **environment: str) -> Result:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        return CliRunner().invoke(app, list(words), env=environment)

    return call


def test_help_is_quick() -> None:
    """In a process of its own, from its start to its end."""

    def once() -> float:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "fedsim", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert "Commands" in done.stdout
        return time.perf_counter() - began

    assert min(once() for _ in range(5)) < 0.5


def test_version(fedsim: Command) -> None:
    done = fedsim("--version")
    assert (done.exit_code, done.stdout) == (0, f"fedsim {__version__}\n")


def test_run_leaves_a_record_and_a_picture_and_prints_json(fedsim: Command, tmp_path: Path) -> None:
    done = fedsim("run", "quickstart", *SMALL, "--json", "--out", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    expected = "accuracy loss rounds epsilon delta noise_multiplier seconds rounds_per_second fingerprint out"
    assert set(expected.split()) <= set(summary)
    assert summary["rounds"] == 3
    assert summary["epsilon"] == pytest.approx(8.0)
    assert Path(summary["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert len(list(tmp_path.iterdir())) == 4  # beside it without the defence, the clip and the attack
    assert torch.load(Path(summary["out"]) / "model.pt", weights_only=True)


def test_the_same_command_resumes(fedsim: Command, tmp_path: Path) -> None:
    words = ["run", "quickstart", *SMALL, "--alone", "--json", "--out", str(tmp_path)]
    first, again = (json.loads(fedsim(*words, *extra).stdout) for extra in ([], ["--resume"]))
    assert {**first, "rounds_per_second": 0} == {**again, "rounds_per_second": 0}


def test_an_experiment_from_a_file_and_from_a_function(fedsim: Command, tmp_path: Path) -> None:
    shown = fedsim("show", "quickstart", *SMALL)
    (tmp_path / "mine.toml").write_text(shown.stdout)
    (tmp_path / "mine.py").write_text(
        "from fedsim.experiments.resolve import resolve\ndef small():\n    return resolve('mine.toml').main\n"
    )
    prints = [
        json.loads(fedsim("run", what, "--json", "--out", "runs", cwd=tmp_path).stdout)["fingerprint"]
        for what in ("mine.toml", "mine:small")
    ]
    assert prints[0] == prints[1]


def test_list_and_show(fedsim: Command) -> None:
    everything = fedsim("list").stdout
    for name in (
        "Krum",
        "NNM",
        "ALIE",
        "ByzClip21SGD2M",
        "Dirichlet",
        "MNIST",
        "MLP",
        "quickstart",
        "mnist_robust",
    ):
        assert name in everything
    assert "arXiv:2603.23472" in fedsim("show", "byzclip21sgd2m").stdout


def test_show_split(fedsim: Command, tmp_path: Path) -> None:
    picture = tmp_path / "split.png"
    done = fedsim("show", "split", "quickstart", "--out", str(picture))
    assert done.exit_code == 0, done.stderr
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "entropy" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "quickstrat"], "did you mean quickstart?"),
        (["run", "quickstart", "--set", "rule=Medain"], "did you mean Median?"),
        (["run", "quickstart", "--set", "byzantine=13"], "byzantine = 13: at most 12"),
        (["run", "quickstart", "--set", "privacy.epsilon=-1"], "must be greater than 0"),
        (["run", "quickstart", "--engine", "warp"], "engine = 'warp'"),
        (
            ["run", "quickstart", "--ray-address", "auto"],
            "ray_address = 'auto' with engine = 'vector': allowed only",
        ),
        (["run", "quickstart", "--device", "cuda:99"], "device = 'cuda:99'"),
        (
            ["run", "quickstart", "--set", "clients=2000", "--set", "byzantine=0", "--set", "attack=none"],
            "training examples",
        ),
        (["run", "missing.toml"], "missing.toml: not a readable TOML file"),
        (["run", "nowhere:f"], "cannot be imported"),
        (["list", "rulez"], "did you mean rules?"),
        (["show", "Krumm"], "did you mean Krum?"),
        (
            ["bench", "kappa", "--n", "6", "--d", "5", "--f", "3"],
            "f = 3: must be at least 1 and below half of n = 6",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    fedsim: Command, words: list[str], sentence: str, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "runs")] if words[0] == "run" else []
    done = fedsim(*words, *out, cwd=tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith("fedsim: ")
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_data_folder(fedsim: Command, tmp_path: Path) -> None:
    done = fedsim("run", "mnist_robust", "--out", str(tmp_path / "runs"), FEDSIM_DATA=str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "FEDSIM_DATA" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_demo_says_what_it_does_and_what_next(fedsim: Command, tmp_path: Path) -> None:
    """Of the experiment that runs, changes counted in; the commands that it suggests are there."""
    changes = ("--set", "rounds=2", "--set", "byzantine=2", "--out", str(tmp_path))
    said = fedsim("run", "quickstart", *changes).stdout
    assert "23 clients train a model together for 2 rounds" in said
    assert "2 more are Byzantine" in said
    assert "a factor of e^8 at most, but for a chance of 0.0001" in said
    assert "The picture has the accuracy" in said
    suggested = re.findall(r"^  fedsim (.+)$", said, re.MULTILINE)
    assert len(suggested) == 3
    for command in suggested:
        more = changes[:2] + changes[4:] if command.startswith("run") else ()
        assert fedsim(*shlex.split(command), *more).exit_code == 0
    assert "Noise hides" not in fedsim("run", "quickstart", "--set", "privacy=none", *changes).stdout
    assert "train a model together" not in fedsim("run", "quickstart", "--alone", *changes).stdout


def test_bench_prints_a_line_for_each_measurement(fedsim: Command) -> None:
    done = fedsim("bench", "rules", "--n", "7", "--d", "1000", "--json")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    timed = {line["rule"] for line in lines if line["seconds"]}
    assert {"Median", "Krum", "NNM", "NNM + Median"} <= timed
    assert fedsim("bench", "rounds", "--workload", "W9").exit_code == 2


@pytest.mark.parametrize("words", [("rules", "--n", "0"), ("rules", "--d", "0"), ("kappa", "--f", "0")])
def test_a_benchmark_of_nothing_is_refused(fedsim: Command, words: tuple[str, ...]) -> None:
    done = fedsim("bench", *words)
    assert done.exit_code == 2
    assert "x>=1" in done.stderr


def test_bench_rounds(fedsim: Command, data_folder: Path) -> None:
    done = fedsim("bench", "rounds", "--workload", "W1", "--count", "1", "--json")
    loop, vector = (json.loads(line) for line in done.stdout.splitlines())
    assert vector["accuracy"] == pytest.approx(loop["accuracy"], abs=0.01)
    assert vector["seconds_per_round"] < loop["seconds_per_round"]


def test_bench_kappa_draws_its_table(fedsim: Command, tmp_path: Path) -> None:
    picture = tmp_path / "kappa.png"
    done = fedsim("bench", "kappa", "--n", "7", "--d", "5", "--f", "1", "--json", "--picture", str(picture))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(line["worst"] <= line["kappa"] for line in lines if line["kappa"] is not None)
    assert picture.read_bytes()[:4] == b"\x89PNG"
