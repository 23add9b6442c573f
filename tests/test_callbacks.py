"""Callbacks see each line once, stop a run without changing what came before, and a stopped run resumes to the bit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from fedsim import Callback, EarlyStopping, Experiment, Invalid, Task, load, run
from fedsim.batches import Fixed
from fedsim.cli.app import app
from fedsim.datasets.holdout import Holdout
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.models import Logistic
from fedsim.privacy import ExampleDP
from fedsim.record import Record
from fedsim.strategies import ByzClip21SGD2MPlus, CenteredClipping

PLAIN = Experiment(
    task=Task(data=Holdout(Blobs(train=300, features=5, classes=3)), model=Logistic()),
    split=IID(),
    clients=5,
    rule=CenteredClipping(tau=1.0),
    method=ByzClip21SGD2MPlus(lr=0.5, tau=0.3),
    batches=Fixed(6),
    cohort=4,
    rounds=12,
    evaluate_every=2,
)
PRIVATE = replace(PLAIN, privacy=ExampleDP(clip=1.0, noise=1.0, delta=1e-4))


def after(rounds: int) -> Any:
    def enough(line: dict[str, Any]) -> bool:
        return bool(line["round"] >= rounds)

    return enough


def alike(one: Any, other: Any) -> None:
    pd.testing.assert_frame_equal(
        one.frame.drop(columns="seconds"), other.frame.drop(columns="seconds"), check_exact=True
    )
    assert all(torch.equal(value, other.model[name]) for name, value in one.model.items())


class Heard(Callback):
    def __init__(self) -> None:
        self.words: list[Any] = []

    def begin(self, experiment: Experiment) -> None:
        self.words.append(experiment.fingerprint)

    def __call__(self, line: dict[str, Any]) -> None:
        self.words.append(line)
        line.clear()  # its own

    def end(self) -> None:
        self.words.append("end")


def test_a_callback_hears_every_line_in_order_and_changes_nothing() -> None:
    heard = Heard()
    told: list[dict[str, Any]] = []
    result = run(PLAIN, callbacks=[heard, told.append])
    assert heard.words[0] == PLAIN.fingerprint
    assert heard.words[-1] == "end"
    assert len(heard.words) == 8
    assert pd.DataFrame(told).equals(result.frame)
    alike(result, run(PLAIN))


@pytest.mark.parametrize(("engine", "e"), [("loop", PLAIN), ("vector", PRIVATE)])
def test_a_stopped_run_is_the_first_part_of_the_whole_one_and_goes_on_to_it(
    tmp_path: Path, engine: str, e: Experiment
) -> None:
    whole = run(e, engine=engine)
    stopped = run(e, engine=engine, out=tmp_path, callbacks=[after(6)], keep=False)
    alike(stopped, run(replace(e, rounds=6), engine=engine))
    assert stopped.summary["stopped"] == "enough"
    assert stopped.summary["rounds"] == 6
    again = run(e, engine=engine, out=tmp_path, resume=True, callbacks=[after(6)])
    alike(again, stopped)  # the same command stops where it stopped
    alike(load(tmp_path), stopped)
    rest = run(e, engine=engine, out=tmp_path, resume=True)
    alike(rest, whole)
    assert rest.summary["epsilon"] == whole.summary["epsilon"]
    assert rest.summary["stopped"] == load(tmp_path).summary["stopped"] == ""


@pytest.mark.parametrize("at", [1, 3, 4])
def test_interrupted_before_it_stops_a_run_stops_in_the_same_round(tmp_path: Path, at: int) -> None:
    def interrupt(now: int, metrics: dict[str, Any]) -> None:
        if now == at:
            raise KeyboardInterrupt

    early = EarlyStopping("accuracy", patience=1, least=0.9)  # the second evaluation is no better than that
    whole = run(PRIVATE, callbacks=[early])
    assert whole.summary["rounds"] == 4
    with pytest.raises(KeyboardInterrupt):
        run(PRIVATE, out=tmp_path, progress=interrupt, callbacks=[early])
    alike(run(PRIVATE, out=tmp_path, resume=True, callbacks=[early]), whole)


def test_a_run_that_goes_on_is_not_finished_until_it_ends(tmp_path: Path) -> None:
    run(PLAIN, out=tmp_path, callbacks=[after(4)])
    record = Record(tmp_path, PLAIN.fingerprint)
    assert record.finished
    assert record.stopped

    def interrupt(now: int, metrics: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(PLAIN, out=tmp_path, resume=True, progress=interrupt)
    assert not record.finished


def test_the_command_line_goes_on_from_a_stopped_run_only_where_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(PLAIN.to_toml())
    folder = tmp_path / "runs" / f"e-{PLAIN.fingerprint}"
    run(PLAIN, out=folder, callbacks=[after(4)])
    words = ["run", str(tmp_path / "e.toml"), "--out", str(tmp_path / "runs"), "--json"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "holds half a run; --resume goes on" in refused.stderr
    done = CliRunner().invoke(app, [*words, "--resume"])
    assert json.loads(done.stdout.splitlines()[-1])["rounds"] == 12


def best(values: list[float | None], sign: float, patience: int, least: float) -> int | None:
    """Where it stops, by looking at all values again each time; None where it does not."""
    for at in range(len(values)):
        last, top = -1, -float("inf")
        for place, value in enumerate(values[: at + 1]):
            if value is not None and sign * value > top + least:
                last, top = place, sign * value
        if at - last >= patience:
            return at
    return None


@pytest.mark.parametrize("seed", range(20))
def test_early_stopping_stops_where_a_plain_look_at_all_values_does(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    values: list[float | None] = (torch.randn(12, generator=rng).cumsum(0) / 3).tolist()
    values[seed % 12] = None  # not finite, in the record
    for on, sign in (("loss", -1.0), ("accuracy", 1.0)):
        patience, least = 1 + seed % 3, (0.0, 0.2)[seed % 2]
        early = EarlyStopping(on, patience, least)
        early.begin(PLAIN)
        told = [early({"round": i, on: value}) for i, value in enumerate(values)]
        stop = best(values, sign, patience, least)
        assert told.index(True) == stop if True in told else stop is None


def test_in_a_private_run_the_promise_is_that_of_all_rounds(tmp_path: Path) -> None:
    whole, stopped = run(PRIVATE), run(PRIVATE, out=tmp_path, callbacks=[after(6)])
    assert stopped.summary["epsilon"] == whole.summary["epsilon"] > stopped.frame["epsilon"].iloc[-1]
    assert stopped.notes[0] == whole.notes[0]
    note = stopped.notes[1]
    spent = stopped.frame["epsilon"].iloc[-1]
    assert note == (
        f"stopped after round 6 by enough; epsilon is that of all 12 rounds ({spent:.4g} was spent), since what came "
        "out chose the last one; the examples that were looked at are outside of the guarantee"
    )
    assert load(tmp_path).notes == stopped.notes
    bounded = replace(
        PRIVATE, privacy=replace(PRIVATE.privacy, stop_at_epsilon=whole.frame["epsilon"].iloc[3])
    )
    assert run(bounded, callbacks=[after(6)]).summary["epsilon"] <= whole.frame["epsilon"].iloc[3] * (
        1 + 1e-9
    )
    tested = replace(PLAIN, task=replace(PLAIN.task, data=Blobs(train=300, features=5, classes=3)))
    assert "Holdout(data) puts others in their place" in run(tested, callbacks=[after(2)]).notes[0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: EarlyStopping(patience=0), "EarlyStopping.patience = 0: must be 1 or more evaluations"),
        (lambda: EarlyStopping(least=-1.0), "EarlyStopping.least = -1.0: must be 0 or more, and finite"),
        (
            lambda: run(PLAIN, callbacks=[EarlyStopping("f1")]),
            "EarlyStopping.on = 'f1': no number of the record; it has round, accuracy, loss",
        ),
        (
            lambda: run(PRIVATE, callbacks=[EarlyStopping("deviation")]),
            "EarlyStopping.on = 'deviation': is worked out from messages as they are, which no ledger accounts for",
        ),
    ],
)
def test_what_cannot_be(make: Any, sentence: str) -> None:
    with pytest.raises(Invalid, match=re.escape(sentence)):
        make()
