"""What may go wrong on a device's own machine: no room on its disk, or for a process, and a stop at any moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from yard import Yard, echo, message, running, until

from fedsim.link import device as module
from fedsim.link import worker as processes
from fedsim.link.answering import Installed
from fedsim.link.frame import header_of, seal
from fedsim.link.worker import Worker


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED", 0.05)


def test_a_reply_that_cannot_be_kept_goes_out(tmp_path: Path) -> None:
    """No room for the last reply: the device goes on; asked the same again, its app answers, which has a memory."""
    yard = Yard(tmp_path, 1)
    (tmp_path / "0" / "last.new").mkdir()  # an OSError, for whoever may write everywhere too
    with yard.grid() as grid, running(yard.device(0)):
        for _ in range(3):
            (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=30)
            assert not reply.has_error()
        (tmp_path / "0" / "last.new").rmdir()
        (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=30)
        assert not reply.has_error()
    assert (tmp_path / "0" / "last").exists()


def test_no_error_ends_a_device(tmp_path: Path) -> None:
    """Whatever happens while it answers, which nobody foresaw: it is logged, and the device dials again."""
    yard, asked = Yard(tmp_path, 1), list[int]()

    def answer(frame: bytearray, seconds: float) -> bytes:
        asked.append(1)
        if len(asked) == 1:
            raise OSError("no more files")
        return echo(frame, seconds)

    with yard.grid() as grid, running(yard.device(0, answer)):
        (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=30)
        assert not reply.has_error()
    assert len(asked) == 2


def test_a_stop_that_comes_while_a_stream_begins_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM between the look at it and the stream: nobody would have ended that stream."""
    yard, dial = Yard(tmp_path, 1), module.grpc.secure_channel
    device = yard.device(0)

    def stopping(*arguments: Any) -> Any:
        device.stop()
        return dial(*arguments)

    monkeypatch.setattr(module.grpc, "secure_channel", stopping)
    with yard.grid():
        thread = threading.Thread(target=device.forever, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


def test_no_room_for_a_process_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app's process died and none can be started: an error each time, and an answer once there is room."""
    worker, real = Worker(Installed("worker_app:app"), 60.0), processes.get_context
    frame = b"".join(seal({"run": 1}))
    try:
        until(worker._process.is_alive)

        def full(_: str) -> Any:
            raise BlockingIOError("Resource temporarily unavailable")

        monkeypatch.setattr(processes, "get_context", full)
        worker._process.kill()
        for _ in range(2):
            assert header_of(worker(frame, 60.0))[0] == {"error": "the process of the ClientApp died"}
        monkeypatch.setattr(processes, "get_context", real)
        assert "died" in header_of(worker(frame, 60.0))[0]["error"]
        assert header_of(worker(frame, 60.0))[0] == {"error": "node: must be a whole number"}
    finally:
        worker.close()
