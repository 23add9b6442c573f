"""A run shows how it goes where it is asked to: a bar in a notebook with widgets, lines elsewhere."""

from __future__ import annotations

import io
import os
import re
import time
from functools import partial
from importlib.util import find_spec
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


CELL = """
from fedsim import run
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.models import Logistic
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task

task = Task(Blobs(train=30, test=10), Logistic())
e = Experiment(task=task, split=IID(), clients=3, method=FedSGD(0.1), rule=Mean(), rounds=2)
run(e, progress=True).accuracy
"""


@pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="starts a kernel: set FEDSIM_LONG to run it")
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own event loops
def test_in_a_notebook_s_kernel_it_is_shown_below_the_cell() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    *shown, answer = notebook.cells[0].outputs
    assert float(answer["data"]["text/plain"]) >= 0
    told = " ".join(part["data"]["text/plain"] for part in shown)
    if find_spec("ipywidgets") is None:
        assert "run: round 2/2, accuracy " in told
    else:
        assert any("widget" in kind for part in shown for kind in part["data"])


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
