"""A sweep on Ray: the records that come back are those of a sweep here; without Ray one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from test_sweep import SMALL, inline, measured

from fedsim.check import Invalid
from fedsim.experiments.study import Study, Tuning, axes
from fedsim.experiments.sweep.cluster import Cluster
from fedsim.experiments.sweep.run import Sweep


def test_without_ray_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Invalid, match="Ray is not installed"):
        Cluster("auto")


@pytest.mark.filterwarnings("ignore")
def test_tasks_leave_the_same_records(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    study = Study(SMALL, axes({"split": ["IID", "Natural"], "seed": [0, 1]}))
    tuning = Tuning(grid={"method.lr": ("0.01", "0.1", "1")}, rungs=((1, 2), (3, 1)))
    searched = Study(SMALL, axes({"seed": [0]}), tuning)
    try:
        cluster = Cluster("local")
        outcome = Sweep(tmp_path / "there", workers=2, crew=cluster)(study)
        again = Sweep(tmp_path / "there", workers=2, crew=inline)(study)
        Sweep(tmp_path / "searched", workers=2, crew=cluster)(searched)
    finally:
        ray.shutdown()
    assert (outcome.made, len(outcome.failures)) == (2, 2)
    assert all("names no owners" in failure.reason for failure in outcome.failures)
    assert (again.made, again.found) == (0, 2)
    Sweep(tmp_path / "here", crew=inline)(study)
    pd.testing.assert_frame_equal(measured(tmp_path / "there"), measured(tmp_path / "here"))
    Sweep(tmp_path / "searched here", crew=inline)(searched)
    there, here = ((tmp_path / name / "tuning.json").read_text() for name in ("searched", "searched here"))
    assert there == here
