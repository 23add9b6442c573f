"""A run shows how it goes where it is asked to: a bar in a notebook with widgets, lines elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from rich.console import Console

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
