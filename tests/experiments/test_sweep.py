"""Sweeps: what runs, what does not run again, what is chosen, and what is said of cells that fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from fedsim.attacks import IPM
from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.cli.app import app
from fedsim.cli.sweep import write_frame
from fedsim.datasets.load import Blobs, Holdout
from fedsim.datasets.split import IID
from fedsim.experiments.load import load, recorded
from fedsim.experiments.report.report import report
from fedsim.experiments.resolve import resolve, resolve_study
from fedsim.experiments.study import Study, Tuning, axes, seeds
from fedsim.experiments.sweep.run import Silent, Sweep, finished
from fedsim.experiments.sweep.workers import Event, Job, Word, work
from fedsim.models import Logistic
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import HeavyBall, Median
from fedsim.task import Task
from fedsim.types import Data, Dataset

ROOT = Path(__file__).resolve().parents[2]
SMALL = Experiment(
    task=Task(data=Blobs(train=400, test=100), model=Logistic()),
    split=IID(),
    clients=8,
    byzantine=1,
    attack=IPM(1.0),
    rule=Median(),
    method=HeavyBall(lr=0.1),
    batches=Fixed(8),
    rounds=4,
    evaluate_every=2,
)
GRID = """
base = "small.toml"
[axes]
rule = ["Median", "TrimmedMean", "Krum"]
attack = { weak = "IPM(0.1)", strong = "IPM(10)" }
byzantine = [1, 2]
seed = [0, 1]
"""


@dataclass(frozen=True)
class Deadly(Data):
    """Takes its process down."""

    def load(self) -> Dataset:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def inline(jobs: Sequence[Job], workers: int) -> Generator[Event]:
    """A crew of one, in this process."""
    for job in jobs:
        words: list[Word] = []
        work(job, words.append)
        for word in words:
            yield Event(0, job, *word)


def measured(folder: Path) -> pd.DataFrame:
    """The frame without what a clock says."""
    return load(folder).drop(columns="seconds")


def test_killed_and_started_again_only_the_missing_cells_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.toml").write_text(replace(SMALL, rounds=80).to_toml())
    (tmp_path / "grid.toml").write_text(GRID)
    words = ["sweep", "grid.toml", "--workers", "2", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    out = tmp_path / "sweeps" / "grid"

    def over() -> set[str]:
        return {path.parent.name for path in out.glob("*/model.pt")}

    first = subprocess.Popen(
        [sys.executable, "-m", "fedsim", *words], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    while len(over()) < 5:
        assert first.poll() is None, "the sweep was over before it could be killed"
        time.sleep(0.02)
    first.kill()
    first.wait()
    before, after = over(), set[str]()
    while before != after:  # a worker may still end the round that it was in
        time.sleep(0.5)
        before, after = after, over()
    assert 5 <= len(after) < 24
    stamps = {name: (out / name / "model.pt").stat().st_mtime_ns for name in after}

    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.stderr
    summary = json.loads(again.stdout.splitlines()[-1])
    assert (summary["cells"], summary["found"], summary["made"]) == (24, len(after), 24 - len(after))
    assert stamps == {name: (out / name / "model.pt").stat().st_mtime_ns for name in after}

    Sweep(tmp_path / "whole", crew=inline)(resolve_study("grid.toml", [], [], False))
    pd.testing.assert_frame_equal(measured(out), measured(tmp_path / "whole"))


def test_failures_are_collected_and_the_rest_runs(tmp_path: Path) -> None:
    """Cells that cannot be, one that fails as it starts, and two that take their worker down."""
    study = Study(SMALL, axes({"split": ["IID", "Natural"], "byzantine": [1, 4]}))
    outcome = Sweep(tmp_path, workers=1)(study)
    assert (outcome.cells, outcome.made) == (4, 1)
    reasons = {(f.labels["split"], f.labels["byzantine"]): f.reason for f in outcome.failures}
    assert reasons["IID", "4"].startswith("byzantine = 4: at most 3")
    assert reasons["Natural", "4"].startswith("byzantine = 4")
    assert "names no owners" in reasons["Natural", "1"]
    assert "names no owners" in next(tmp_path.glob("*/failure.txt")).read_text()

    deadly = replace(SMALL, task=replace(SMALL.task, data=Deadly()))
    outcome = Sweep(tmp_path, workers=1)(Study(deadly, {"seed": seeds(2)}))
    assert outcome.made == 0
    assert [f.reason for f in outcome.failures] == ["the worker ended with exit code -9"] * 2


def test_a_study_of_which_nothing_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="none of its 2 cells can be"):
        Sweep(tmp_path)(Study(SMALL, axes({"byzantine": [4, 5]})))


def test_a_value_that_cannot_be_read_is_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"rule = 'NNM \+ Median'"):
        Sweep(tmp_path, crew=inline)(Study(SMALL, axes({"rule": ["Median", "NNM + Median"]})))
    with pytest.raises(Invalid, match="Medain"):
        Sweep(tmp_path, crew=inline)(Study(SMALL, axes({"rule": ["Median", "Medain"]})))
    assert not list(tmp_path.iterdir())


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.argv = ["fedsim", "sweep", "small.toml", "--over", "rule=Median;Krum", "--workers", "1"]
from fedsim.cli.app import app
app()
"""


def test_a_full_disk_is_one_sentence_and_a_report_reads_what_is_there(tmp_path: Path) -> None:
    """Files may grow to 2,000 bytes: manifests and lines of metrics fit, models do not."""
    (tmp_path / "small.toml").write_text(SMALL.to_toml())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    told = subprocess.run(
        [sys.executable, "-c", FULL],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode != 0
    assert "Traceback" not in told.stderr + told.stdout
    assert "cannot be written" in told.stderr
    page = report(tmp_path / "sweeps" / "small", tmp_path / "report")
    assert "Accuracy" in page.read_text()


def test_an_interrupt_leaves_checkpoints_and_no_worker(tmp_path: Path) -> None:
    class Impatient:
        def begin(self, *_: object) -> None: ...

        def __call__(self, event: Event) -> None:
            if event.kind == "round":
                raise KeyboardInterrupt

    study = Study(replace(SMALL, rounds=20_000, evaluate_every=20_000))
    with pytest.raises(KeyboardInterrupt):
        Sweep(tmp_path, watch=Impatient())(study)
    name = study.base.fingerprint
    assert (tmp_path / name / "checkpoint.pt").exists()
    assert not finished(tmp_path / name)


def test_the_frame_has_labels_fields_and_metrics(tmp_path: Path) -> None:
    table = {
        "attack": {"weak": "IPM(0.1)"},
        "byzantine": [2],
        "lr": {"low": {"method.lr": 0.01}},
        "seed": [0, 1],
    }
    Sweep(tmp_path, crew=inline)(Study(SMALL, axes(table)))
    frame = load(tmp_path)
    assert list(frame["round"]) == [2, 4, 2, 4]
    assert list(frame["seed"]) == [0, 0, 1, 1]
    assert set(frame["attack"]) == {"weak"}
    assert set(frame["lr"]) == {"low"}
    assert set(frame["method.lr"]) == {0.01}
    assert set(frame["task.data"]) == {"Blobs(train=400, test=100)"}
    path = write_frame(tmp_path)
    assert path is not None
    pd.testing.assert_frame_equal(pd.read_csv(path)[["round", "accuracy"]], frame[["round", "accuracy"]])
    parquet = pd.read_parquet(path.with_suffix(".parquet"))
    pd.testing.assert_frame_equal(parquet[["round", "accuracy"]], frame[["round", "accuracy"]])


def test_records_of_an_older_version_keep_their_labels(tmp_path: Path) -> None:
    """A field that came later changes what the fingerprint would be now; the recorded one counts."""
    Sweep(tmp_path, crew=inline)(Study(SMALL, axes({"rule": {"mine": "Median"}})))
    manifest = tmp_path / SMALL.fingerprint / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["experiment"]["dealt"]
    content["experiment"]["seed"] = 7
    manifest.write_text(json.dumps(content))
    assert set(load(tmp_path)["rule"]) == {"mine"}


def test_what_an_earlier_form_of_the_study_left_is_in_no_frame(tmp_path: Path) -> None:
    for lrs in ([0.1, 0.2], [0.2, 0.4]):
        Sweep(tmp_path, crew=inline)(Study(SMALL, axes({"method.lr": lrs})))
    assert list(load(tmp_path)["method.lr"].unique()) == [0.2, 0.4]
    assert len(list(tmp_path.glob("*/manifest.json"))) == 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "manifest.json"])
def test_a_damaged_record_is_a_failed_cell_and_no_more(name: str, tmp_path: Path) -> None:
    """Not made anew unseen, and left out of the frame."""
    study = Study(SMALL, {"seed": seeds(3)})
    Sweep(tmp_path, crew=inline)(study)
    damaged = tmp_path / SMALL.fingerprint / name
    damaged.write_text("garbage\n")
    shutil.rmtree(tmp_path / replace(SMALL, seed=2).fingerprint)
    outcome = Sweep(tmp_path, crew=inline)(study)
    assert (outcome.found, outcome.made) == (1, 1)
    assert [(f.labels, str(damaged) in f.reason) for f in outcome.failures] == [({"seed": "0"}, True)]
    with pytest.raises(Invalid, match=str(damaged)):
        load(tmp_path)
    path = write_frame(tmp_path)
    assert path is not None
    assert list(pd.read_csv(path)["seed"].unique()) == [1, 2]


def test_a_damaged_trial_is_out_of_its_search(tmp_path: Path) -> None:
    study = Study(SMALL, {"seed": seeds(1)}, Tuning(grid={"method.lr": ("1e-9", "0.5")}))
    Sweep(tmp_path, crew=inline)(study)
    best = next(r for r in recorded(tmp_path / "tuning") if r.experiment.method.lr == 0.5)  # type: ignore[attr-defined]
    (best.record.folder / "metrics.jsonl").write_text("garbage\n")
    assert not Sweep(tmp_path, crew=inline)(study).failures
    assert set(load(tmp_path)["method.lr"]) == {1e-9}


OWN = """
from dataclasses import dataclass, replace
from fedsim.attacks import IPM
from fedsim.strategies import Median
from test_sweep import SMALL

@dataclass(frozen=True)
class Rule(Median):
    pass

@dataclass(frozen=True)
class Attack(IPM):
    pass

def experiment():
    return replace(SMALL, rule=Rule(), attack=Attack(1.0))
"""


def test_records_of_components_of_one_s_own_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that has not imported them; from where their module is not, the sentence says so."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owned.py").write_text(OWN)
    (tmp_path / "study.toml").write_text('base = "owned:experiment"\n[axes]\nrule = ["owned:Rule", "Mean"]')
    Sweep(tmp_path / "out", crew=inline)(resolve_study("study.toml", [], ["seed=0;1"], False))
    monkeypatch.delitem(sys.modules, "owned")
    assert CliRunner().invoke(app, ["report", "out"]).exit_code == 0
    assert set(load("out")["rule"]) == {"owned:Rule", "Mean"}
    monkeypatch.delitem(sys.modules, "owned")
    (tmp_path / "owned.py").unlink()
    with pytest.raises(Invalid, match=r"manifest.json: attack = 'owned:Attack': cannot be imported"):
        load("out")


def test_a_frame_of_single_runs(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no records"):
        load(tmp_path)
    work(Job(SMALL, tmp_path / "mine"), lambda word: None)
    assert list(load(tmp_path)["experiment"]) == [SMALL.fingerprint] * 2


def test_tuning_never_sees_the_test_set(tmp_path: Path) -> None:
    """Both seeds of a cell share one search; what is chosen is best on the held-out examples."""
    tuning = Tuning(grid={"method.lr": ("1e-9", "0.5")}, share=0.25, seeds=(0, 1))
    outcome = Sweep(tmp_path, crew=inline)(Study(SMALL, {"seed": seeds(2)}, tuning))
    assert outcome.made == 4 + 2
    report = json.loads((tmp_path / "tuning.json").read_text())
    assert len(report) == 1
    assert report[0]["chosen"] == {"method.lr": "0.5"}
    scores = {row["point"]["method.lr"]: row["score"] for row in report[0]["tried"]}
    trials = load(tmp_path / "tuning")
    best = trials[trials["method.lr"] == 0.5]
    assert scores["0.5"] == pytest.approx(best["accuracy"].mean())
    assert scores["0.5"] > scores["1e-9"]
    assert set(best["task.data.share"]) == {0.25}
    assert set(load(tmp_path)["method.lr"]) == {0.5}
    assert Sweep(tmp_path, crew=inline)(Study(SMALL, {"seed": seeds(2)}, tuning)).made == 0


def test_halving_goes_on_from_checkpoints_of_the_real_experiment(tmp_path: Path) -> None:
    """Each rung compares what whole runs have there; the winner is that of brute force among those who are left."""
    base = replace(SMALL, rounds=40, evaluate_every=20)
    grid = {"method.lr": ("1e-9", "0.001", "0.01", "0.1", "1")}
    study = Study(base, {"seed": seeds(2)}, Tuning(grid=grid, share=0.25, rungs=((4, 3), (12, 2), (20, 1))))
    outcome = Sweep(tmp_path, crew=inline)(study)
    assert (outcome.made, outcome.found) == (5 + 3 + 2 + 2, 0)
    (found,) = json.loads((tmp_path / "tuning.json").read_text())

    table = dict[tuple[str, int], float]()
    for lr in grid["method.lr"]:
        task = replace(base.task, data=Holdout(base.task.data, 0.25))
        trial = replace(base, task=task, method=HeavyBall(lr=float(lr)), evaluate_every=4)
        table |= {(lr, int(line["round"])): line["accuracy"] for _, line in run(trial).frame.iterrows()}
    left = list(grid["method.lr"])
    for end, keep in ((4, 3), (12, 2), (20, 1)):
        rows = [row for row in found["tried"] if row["round"] == end]
        assert {row["point"]["method.lr"]: row["score"] for row in rows} == {
            lr: table[lr, end] for lr in left
        }
        left = sorted(left, key=lambda lr: -table[lr, end])[:keep]
    assert [found["chosen"]["method.lr"]] == left
    assert not [*tmp_path.rglob("checkpoint.pt"), *tmp_path.rglob("clients.bin")]


def test_a_rung_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    """Stopped inside the second rung: the first is not made again, and the outcome is that of an unbroken sweep."""

    class Impatient(Silent):
        def __call__(self, event: Event) -> None:
            if event.kind == "done" and event.job.until == 12:
                raise KeyboardInterrupt

    tuning = Tuning(grid={"method.lr": ("0.01", "0.1", "1")}, rungs=((4, 2), (12, 1)))
    study = Study(replace(SMALL, rounds=16), {"seed": seeds(1)}, tuning)
    with pytest.raises(KeyboardInterrupt):
        Sweep(tmp_path / "broken", crew=inline, watch=Impatient())(study)
    outcome = Sweep(tmp_path / "broken", crew=inline)(study)
    assert (outcome.found, outcome.made) == (3 + 1, 1 + 1)
    Sweep(tmp_path / "whole", crew=inline)(study)
    first, second = ((tmp_path / name / "tuning.json").read_text() for name in ("broken", "whole"))
    assert first == second
    pd.testing.assert_frame_equal(measured(tmp_path / "broken"), measured(tmp_path / "whole"))


def test_cells_share_the_search_of_one_label(tmp_path: Path) -> None:
    tuning = Tuning(grid={"method.lr": ("0.01", "0.5")}, shared={"byzantine": "1"})
    study = Study(SMALL, axes({"seed": [0, 1], "rule": ["Median", "Mean"], "byzantine": [1, 2, 3]}), tuning)
    outcome = Sweep(tmp_path, crew=inline)(study)
    assert outcome.made == 2 * 2 + 12
    found = json.loads((tmp_path / "tuning.json").read_text())
    assert [(s["at"]["rule"], s["at"]["byzantine"]) for s in found] == [("Median", "1"), ("Mean", "1")]
    assert [len(s["cells"]) for s in found] == [6, 6]
    assert set(load(tmp_path / "tuning")["byzantine"]) == {1}
    frame = load(tmp_path)
    assert list(frame["seed"].drop_duplicates()) == [0, 1]
    for search in found:
        lines = frame[frame["rule"] == search["at"]["rule"]]
        assert set(lines["method.lr"]) == {float(search["chosen"]["method.lr"])}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rungs": ((100, 5), (100, 1))}, "whose rounds grow"),
        ({"rungs": ((100, 5), (500, 5), (600, 1))}, "ever fewer go on"),
        ({"rungs": ((100, 5),)}, "in the end 1"),
        ({"shared": {"byzantine": "7"}}, r"shared.byzantine = '7': no cell is there; allowed: 1, 2"),
        ({"shared": {"byzantin": "1"}}, r"did you mean byzantine\?"),
    ],
)
def test_searches_that_cannot_be(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    table = axes({"byzantine": [1, 2]})
    with pytest.raises(Invalid, match=sentence):
        Sweep(tmp_path, crew=inline)(Study(SMALL, table, Tuning(grid={"method.lr": ("0.1",)}, **changes)))


def test_held_out_examples_are_the_training_sets_own() -> None:
    whole, part = Blobs().load(), Holdout(Blobs(), share=0.25, seed=3).load()
    assert (len(part.train), len(part.test)) == (1500, 500)
    seen = torch.cat([part.train.x, part.test.x])
    assert torch.equal(seen[seen[:, 0].argsort()], whole.train.x[whole.train.x[:, 0].argsort()])
    assert not torch.equal(part.test.x, Holdout(Blobs(), share=0.25, seed=4).load().test.x)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('base = "quickstart"\naxis = 1', "did you mean axes?"),
        ('base = "quickstart"\naxes = 1', "must be a table of lists"),
        ('base = "quickstart"\n[axes]\nrule = []', "at least one value"),
        ('base = "quickstart"\n[axes]\nrulez = ["Median"]', "did you mean rule?"),
        ('base = "quickstart"\n[tuning]\nshare = 0.1', "a table grid"),
        ('base = "quickstart"\n[tuning]\nshares = 0.1\ngrid = {}', "did you mean share?"),
        ('base = "quickstart"\n[tuning]\nshare = 2.0\ngrid = {}', "less than 1"),
        ("base = ", "not a readable TOML file"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(Invalid, match=sentence.replace("?", r"\?")):
        Sweep(tmp_path / "out")(resolve_study(str(tmp_path / "study.toml"), [], [], False))


def test_axes_and_changes_of_a_command_line() -> None:
    study = resolve_study(
        "quickstart", ["rounds=5"], ["seed=0;1", "rule=Median; Chain(NNM(), Krum())"], False
    )
    cells, refused = study.cells()
    assert len(cells) == 4
    assert not refused
    assert {cell.experiment.rounds for cell in cells} == {5}
    assert cells[0].experiment == replace(resolve("quickstart").main, rounds=5, rule=Median())
    with pytest.raises(Invalid, match="quickstart states no reduced setting"):
        resolve_study("quickstart", [], [], True)
