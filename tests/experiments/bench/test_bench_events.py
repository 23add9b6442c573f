"""Messages a second, on a small scale: every line is there, and says of both ways what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedsim.check import Invalid
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


PEER = """
import sys
for line in sys.stdin:
    print('{"rounds": [[0.5, 0]]}', flush=True)
"""


def test_a_peer_takes_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "flgo_peer.py").write_text(PEER)
    monkeypatch.setattr(events, "SCRIPTS", tmp_path)
    (tmp_path / "flgo" / "bin").mkdir(parents=True)
    (tmp_path / "flgo" / "bin" / "python").symlink_to(sys.executable)
    *_, line = bench_events([6], events=10, turns=2, against=["flgo"], peers=tmp_path)
    assert line["peer_per_second"] == 20
    assert line["over_peer"] == line["events_per_second"] / 20
    (tmp_path / "flgo_peer.py").write_text("raise SystemExit(1)")
    with pytest.raises(Invalid, match="it failed with 6 clients"):
        list(bench_events([6], events=10, turns=2, against=["flgo"], peers=tmp_path))
    with pytest.raises(Invalid, match="unknown"):
        list(bench_events([6], against=["pfl"], peers=tmp_path))
