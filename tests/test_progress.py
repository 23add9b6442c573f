"""A run shows how it goes where it is asked to: a bar in a notebook with widgets, lines elsewhere."""

from __future__ import annotations

import io
import re
import time
from functools import partial
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from fedsim import progress, run
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.models import Logistic
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task

E = Experiment(
    task=Task(Blobs(train=30, test=10), Logistic()), split=IID(), clients=3, method=FedSGD(0.1), rule=Mean(),
    rounds=2,
)  # fmt: skip


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(E, progress=True)
    shown = capsys.readouterr()
    assert shown.err.startswith("run: round 2/2, accuracy ")
    assert shown.out == ""
    for nothing in (None, False):
        run(E, progress=nothing)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("widgets", [True, False])
def test_in_a_notebook_a_bar_needs_widgets(widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {"ipywidgets": object() if widgets else None}
    monkeypatch.setattr(progress, "find_spec", found.__getitem__)
    monkeypatch.setattr(progress, "Console", partial(Console, force_jupyter=True))
    live = progress.Live("run", 2)
    assert live.drawn == (not live.bar.disable) == widgets


def test_the_time_left_is_whole_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = partial(Console, file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda stderr, **options: console(**options))
    with progress.Live("NNM + median under attack", 5000) as live:
        for round in (999, 1000):
            live(round, {"accuracy": 0.8912, "epsilon": 13.37})
            time.sleep(0.002)
    last = Text.from_ansi(shown.getvalue()).plain.splitlines()[-1]
    assert re.search(r"1000/5000, accuracy 89\.1%, epsilon 13\.37 \d\d:\d\d\s*$", last), last
