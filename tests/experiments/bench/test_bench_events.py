"""Messages a second, on a small scale: every line is there, and says of both ways what was measured."""

from __future__ import annotations

import pytest

from fedsim.experiments.bench import events
from fedsim.experiments.bench.events import bench_events


def test_lazy_and_eager_work_through_the_same_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench itself holds both to the same model, to the bit; many clients have no table."""
    monkeypatch.setattr(events, "TABLES", 6)
    lines = list(bench_events([6, 7], events=10, turns=2))
    assert [(line["clients"], line["method"]) for line in lines] == [
        *((6, name) for name in events.METHODS),
        (7, "AsyncSGD"),
    ]
    for line in lines:
        assert line["events"] == 10
        assert line["gradients_per_call"] > 1
        assert line["over_eager"] == pytest.approx(line["events_per_second"] / line["eager_per_second"])
