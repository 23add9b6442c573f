"""A run killed at any moment resumes to the bit; a record is never mixed up, half-written or lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fedsim import Invalid, run, runner
from fedsim.attacks import IPM
from fedsim.batches import Fixed
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.experiments.load import Run
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.record import Record
from fedsim.spec import Experiment
from fedsim.strategies import NNM, ByzClip21SGD2MPlus, CenteredClipping, Chain, FedAvg
from fedsim.task import Task

PRIVATE = Experiment(
    task=Task(data=Blobs(), model=Logistic()),
    split=IID(),
    clients=7,
    byzantine=2,
    attack=IPM(3.0),
    rule=Chain(NNM(), CenteredClipping(tau=1.0)),
    method=ByzClip21SGD2MPlus(lr=0.5, tau=0.3),
    privacy=ExampleDP(clip=1.0, noise=1.0, delta=1e-4),
    batches=Fixed(6),
    cohort=5,
    rounds=12,
    evaluate_every=2,
)


def stop_at(round: int):  # type: ignore[no-untyped-def]
    def progress(now: int, metrics: dict[str, object]) -> None:
        if now == round:
            raise KeyboardInterrupt

    return progress


def frames_match(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"), check_exact=True)


@pytest.mark.parametrize("engine", ["loop", "vector"])
@pytest.mark.parametrize("at", [1, 6, 11])
def test_a_stopped_run_resumes_to_the_bit(tmp_path: Path, engine: str, at: int) -> None:
    whole = run(PRIVATE, engine=engine)
    with pytest.raises(KeyboardInterrupt):
        run(PRIVATE, engine=engine, out=tmp_path, progress=stop_at(at))
    rest = run(PRIVATE, engine=engine, out=tmp_path, resume=True)
    frames_match(whole.frame, rest.frame)
    assert all(torch.equal(value, rest.model[name]) for name, value in whole.model.items())
    assert rest.summary["epsilon"] == whole.summary["epsilon"]


@pytest.mark.parametrize("place", ["evaluate", "append"])
@pytest.mark.parametrize(("rounds", "call"), [(4, 1), (4, 2), (2, 1)])
def test_stopped_while_a_round_is_measured(
    tmp_path: Path, place: str, rounds: int, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round counts with its line or not at all, whether the interrupt comes before the line is there or after."""
    method = ByzClip21SGD2MPlus(
        lr=0.5, tau=0.3, beta=0.6, beta_hat=0.7
    )  # what clients keep shows in what they send
    experiment, calls = replace(PRIVATE, method=method, rounds=rounds), count(1)
    whole = run(experiment)
    owner = runner if place == "evaluate" else Record
    work = getattr(owner, place)

    def interrupted(*arguments: Any) -> Any:
        outcome = work(*arguments)
        if next(calls) == call:
            raise KeyboardInterrupt
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, out=tmp_path)
    rest = run(experiment, out=tmp_path, resume=True)
    frames_match(whole.frame, rest.frame)
    assert all(torch.equal(value, rest.model[name]) for name, value in whole.model.items())


def test_killed_before_its_model_is_there_a_run_writes_it_on_resuming(tmp_path: Path) -> None:
    first, record = run(PRIVATE, out=tmp_path), Record(tmp_path, PRIVATE.fingerprint)
    (tmp_path / "model.pt").unlink()
    again = run(PRIVATE, out=tmp_path, resume=True)
    pd.testing.assert_frame_equal(first.frame, again.frame)
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(value, model[name]) for name, value in first.model.items())
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(PRIVATE, out=tmp_path, resume=True, progress=stop_at(1))
    assert not record.finished  # begun anew, it is not at its end


SLOW = """
import sys, time
from fedsim import run
import fedsim.runner as module
sys.path.insert(0, {tests!r})
from test_record import PRIVATE
module.SAVE_SECONDS = {seconds}
run(PRIVATE, out={out!r}, resume=True, memory={memory}, progress=lambda r, m: (print(r, flush=True), time.sleep(0.02)))
"""


@pytest.mark.parametrize(("seconds", "memory"), [(0.0, 4.0), (0.0, 0.0), (0.05, 0.0)])
def test_kill_dash_nine_at_any_moment(tmp_path: Path, seconds: float, memory: float) -> None:
    """Killed again and again at odd moments, at and between checkpoints, it ends as if nothing had been.

    Without memory for the clients' states their file changes in every round.
    """
    whole = run(PRIVATE)
    code = SLOW.format(tests=str(Path(__file__).parent), out=str(tmp_path), seconds=seconds, memory=memory)
    for wait in (0.013, 0.091):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    rest = run(PRIVATE, out=tmp_path, resume=True)
    frames_match(whole.frame, rest.frame)
    assert all(torch.equal(value, rest.model[name]) for name, value in whole.model.items())


def test_a_half_written_line_is_cut_off(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(PRIVATE, out=tmp_path, progress=stop_at(6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 8, "accu')
    frames_match(run(PRIVATE).frame, run(PRIVATE, out=tmp_path, resume=True).frame)


def test_resuming_a_finished_run_reads_its_record(tmp_path: Path) -> None:
    first = run(PRIVATE, out=tmp_path)
    again = run(PRIVATE, out=tmp_path, resume=True)
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert all(torch.equal(value, again.model[name]) for name, value in first.model.items())


def test_a_run_begun_anew_is_the_same(tmp_path: Path) -> None:
    first, again = run(PRIVATE, out=tmp_path), run(PRIVATE, out=tmp_path)
    frames_match(first.frame, again.frame)


def test_another_experiment_s_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(PRIVATE, out=tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for resume in (True, False):
        with pytest.raises(Invalid, match=r"^out = .*: holds the record of experiment"):
            run(replace(PRIVATE, seed=1), out=tmp_path, resume=resume)
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_another_experiment_s_checkpoint_is_refused(tmp_path: Path) -> None:
    run(PRIVATE, out=tmp_path / "a")
    run(replace(PRIVATE, seed=1), out=tmp_path / "b")
    (tmp_path / "a" / "checkpoint.pt").replace(tmp_path / "b" / "checkpoint.pt")
    with pytest.raises(Invalid, match=f"a checkpoint of experiment {PRIVATE.fingerprint}"):
        run(replace(PRIVATE, seed=1), out=tmp_path / "b", resume=True)
    (tmp_path / "b" / "checkpoint.pt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(Invalid, match="not a readable checkpoint") as error:
        run(replace(PRIVATE, seed=1), out=tmp_path / "b", resume=True)
    assert "weights_only" not in str(error.value)  # torch's advice, which runs whatever the file says


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    run(PRIVATE, out=tmp_path)
    (tmp_path / "model.pt").unlink()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del saved["heard"]
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(
        Invalid, match=r"of another version of fedsim \('heard'\); where its folder is removed"
    ):
        run(PRIVATE, out=tmp_path, resume=True)


def test_a_folder_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(Invalid, match=r"manifest\.json: not the manifest of a run"):
        run(PRIVATE, out=tmp_path)


@pytest.mark.parametrize("content", [None, "", "garbage\n", "garbage\n" * 1000, "3\n" * 1000])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_damaged_metrics_are_refused_by_name(tmp_path: Path, content: str | None, checkpoint: bool) -> None:
    """Without its checkpoint, as a sweep leaves it, a run that is over would otherwise begin anew."""
    run(PRIVATE, out=tmp_path)
    if not checkpoint:
        (tmp_path / "checkpoint.pt").unlink()
    metrics = tmp_path / "metrics.jsonl"
    metrics.unlink() if content is None else metrics.write_text(content)
    with pytest.raises(Invalid, match=rf"^{metrics}: .* folder is removed, the run begins anew$"):
        run(PRIVATE, out=tmp_path, resume=True)
    assert (tmp_path / "model.pt").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match=r"cannot be written"):
        run(PRIVATE, out=tmp_path / "file" / "inside")


def test_a_full_disk_leaves_the_last_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(PRIVATE, out=tmp_path, progress=stop_at(6))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("os.fsync", full)
        with pytest.raises(Invalid, match="No space left on device"):
            run(PRIVATE, out=tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.new"))
    frames_match(run(PRIVATE).frame, run(PRIVATE, out=tmp_path, resume=True).frame)


def test_what_a_record_holds(tmp_path: Path) -> None:
    result = run(PRIVATE, out=tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert Experiment.from_dict(manifest["experiment"]) == PRIVATE
    assert manifest["fingerprint"] == PRIVATE.fingerprint
    assert manifest["versions"]["torch"] == torch.__version__
    frame = pd.read_json(tmp_path / "metrics.jsonl", lines=True)
    assert frame["round"].tolist() == [2, 4, 6, 8, 10, 12]
    assert {"accuracy", "loss", "epsilon", "deviation", "seconds"} <= set(frame)
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(value, model[name]) for name, value in result.model.items())


def test_a_record_of_an_unweighted_mean_is_read_as_one(tmp_path: Path) -> None:
    """One from before FedAvg could weigh its clients."""
    e = replace(PRIVATE, method=FedAvg(lr=0.1, weights="equal"), rounds=2)
    run(e, out=tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["experiment"]["method"]["weights"]
    path.write_text(json.dumps(manifest))
    assert Run.read(tmp_path / "a").experiment == e
