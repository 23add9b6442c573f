"""The link: a Grid whose nodes dial in by gRPC with mutual TLS; on the loopback address, devices as threads."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from yard import Yard, echo, message, numbers, running, until

from fedsim.link import grid as grids
from fedsim.link import identity, mail
from fedsim.link.frame import Limits, seal
from fedsim.link.identity import node_of


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path, 3)


def test_messages_go_there_and_back(yard: Yard) -> None:
    before = threading.enumerate()
    with yard.grid() as grid, running(*map(yard.device, range(3))):
        until(lambda: len(grid.get_node_ids()) == 3)
        asked = [message(node, numbers(3_000_000)) for node in yard.nodes]
        replies = list(grid.send_and_receive(asked, timeout=30))
        assert {reply.metadata.src_node_id for reply in replies} == set(yard.nodes)
        for reply in replies:
            assert reply.content == asked[0].content
    until(lambda: all(thread in before for thread in threading.enumerate() if thread.name == "link"))


def test_push_and_pull_at_any_time(yard: Yard) -> None:
    """As asynchronous methods do: a question for one device while another one is still at work."""
    gate = threading.Event()

    def slow(frame: bytearray, seconds: float) -> bytes:
        gate.wait(20)
        return echo(frame, seconds)

    with yard.grid() as grid, running(yard.device(0, slow), yard.device(1)):
        until(lambda: len(grid.get_node_ids()) == 2)
        (first,) = grid.push_messages([message(yard.nodes[0])])
        for _ in range(3):
            (other,) = grid.push_messages([message(yard.nodes[1])])
            until(lambda: list(grid.pull_messages([other])))  # noqa: B023
        assert not list(grid.pull_messages([first]))
        gate.set()
        until(lambda: list(grid.pull_messages([first])))


def test_what_is_withdrawn_is_not_asked_and_its_answer_is_nobody_s(yard: Yard) -> None:
    """Before a device is there, while another question is before it, and while it is at work on it."""
    gate, asked = threading.Event(), list[int]()

    def slow(frame: bytearray, seconds: float) -> bytes:
        asked.append(len(frame))
        gate.wait(20)
        return echo(frame, seconds)

    with yard.grid() as grid:
        (never,) = grid.push_messages([message(yard.nodes[0])])
        grid.withdraw([never])
        with running(yard.device(0, slow)):
            first, second = grid.push_messages([message(yard.nodes[0]) for _ in range(2)])
            until(lambda: asked)
            grid.withdraw([first, second, "nobody's"])
            (third,) = grid.push_messages([message(yard.nodes[0])])
            gate.set()
            until(lambda: list(grid.pull_messages([third])))
            assert not list(grid.pull_messages([never, first, second]))
    assert len(asked) == 2
    assert not grid._mail._came
    assert not any(grid._mail._asked.values())


def test_a_clock_that_is_set_ends_no_round(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's clock is put right by an hour, forth and back, while a device is at work."""
    gate, left = threading.Event(), list[float]()

    def slow(frame: bytearray, seconds: float) -> bytes:
        left.append(seconds)
        gate.wait(20)
        return echo(frame, seconds)

    class Clock:
        monotonic, skew = staticmethod(time.monotonic), 0.0

        @classmethod
        def time(cls) -> float:
            return time.time() + cls.skew

    for module in (grids, mail):
        monkeypatch.setattr(module, "time", Clock)
    with yard.grid() as grid, running(yard.device(0, slow)):
        for skew in (3600.0, -3600.0):
            gate.clear()
            ids = list(grid.push_messages([message(yard.nodes[0]), message(yard.nodes[0])]))
            until(lambda: left)
            Clock.skew = skew
            assert not list(grid.pull_messages(ids))
            gate.set()
            replies: list[Any] = []
            until(lambda: replies.extend(grid.pull_messages(ids)) or len(replies) == 2)  # noqa: B023
            assert not any(reply.has_error() for reply in replies)
            Clock.skew = 0.0
    assert all(0 < each <= 60 for each in left)


def test_a_device_that_comes_later_or_again_is_asked(yard: Yard) -> None:
    with yard.grid() as grid:
        ids = list(grid.push_messages([message(yard.nodes[0])]))
        with running(yard.device(0)):
            until(lambda: list(grid.pull_messages(ids)))
        ids = list(grid.push_messages([message(yard.nodes[0])]))
        with running(yard.device(0)):
            until(lambda: list(grid.pull_messages(ids)))


def test_a_device_that_is_away_for_too_long_is_an_error(yard: Yard) -> None:
    with yard.grid(grace=0.3) as grid:
        (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=20)
        assert (reply.error.code, "away for" in reply.error.reason) == (5, True)
        (reply,) = grid.send_and_receive([message(99)], timeout=20)
        assert reply.error.reason == "no such device"


def test_a_device_that_is_there_is_never_away(yard: Yard) -> None:
    with yard.grid(grace=0.3) as grid, running(yard.device(0)):
        until(lambda: len(grid.get_node_ids()) == 1)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=20)
            assert not reply.has_error()


def test_a_question_is_sent_three_times_at_most(yard: Yard) -> None:
    """A message that ends the device's connection, and would end it for ever."""
    asked = []

    def dies(frame: bytearray, seconds: float) -> bytes:
        asked.append(1)
        device._stream.cancel()  # type: ignore[union-attr]
        return echo(frame, seconds)

    device = yard.device(0, dies)
    device._last.keep = lambda *_: None  # type: ignore[method-assign] # as if it died before that, too
    with yard.grid() as grid, running(device):
        (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=30)
        assert "sent 3 times" in reply.error.reason
        assert len(asked) == 3


def test_the_same_message_gets_the_same_reply_after_a_restart(yard: Yard) -> None:
    """The reply was on the device's disk when it died: the app is not asked twice."""
    asked = []

    def once(frame: bytearray, seconds: float) -> bytes:
        asked.append(1)
        return echo(frame, seconds)

    device = yard.device(0, once)
    real = device._last.keep

    def keep(*arguments: Any) -> None:
        real(*arguments)
        device.stop()

    device._last.keep = keep  # type: ignore[method-assign]
    with yard.grid() as grid:
        ids = list(grid.push_messages([message(yard.nodes[0])]))
        with running(device):
            until(device._stopped.is_set)
        with running(yard.device(0, once)):
            until(lambda: list(grid.pull_messages(ids)))
    assert len(asked) == 1


def test_a_damaged_last_reply_is_no_reply(yard: Yard) -> None:
    with yard.grid() as grid, running(yard.device(0)):
        list(grid.send_and_receive([message(yard.nodes[0])], timeout=20))
    path = yard.folder / "0" / "last"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert yard.device(0)._last._id == ""


def test_a_restarted_device_takes_its_own_place(yard: Yard) -> None:
    """Killed and started again at once, while the server still believes in the old connection."""
    old, new = yard.device(0), yard.device(0)
    with yard.grid() as grid, running(old):
        until(lambda: len(grid.get_node_ids()) == 1)
        with running(new):
            until(lambda: new._stream is not None and grid._hub._streams[yard.nodes[0]].identity)
            (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=20)
            assert not reply.has_error()


def test_who_is_not_known_gets_nothing(yard: Yard, tmp_path: Path) -> None:
    """Another authority's certificate, no certificate, a key that was revoked: no stream, and no question."""
    stranger = tmp_path / "elsewhere"
    stranger.mkdir()
    other = Yard(stranger, 1)
    other.folder.joinpath("ca.crt").write_bytes(yard.by[0].read_bytes())  # it even believes this server
    other.port = yard.port
    known = set(yard.keys[:1])
    with yard.grid(known=lambda: known) as grid:
        with running(other.device(0)), running(yard.device(1)):
            time.sleep(1)
            assert grid.get_node_ids() == []
        with running(yard.device(0)):
            until(lambda: grid.get_node_ids() == [node_of(yard.keys[0])])
            known.clear()  # revoked while it is connected
            assert grid.get_node_ids() == []
            until(lambda: not grid._hub._streams)


def test_a_certificate_that_ends_ends_the_stream(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year later, on the server's clock: TLS looked at the certificate when the stream began, and never again."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return super().now(tz) + timedelta(days=400)

    with yard.grid() as grid, running(yard.device(0)):
        until(lambda: len(grid.get_node_ids()) == 1)
        monkeypatch.setattr(identity, "datetime", Later)
        assert not grid.get_node_ids()
        until(lambda: not grid._hub._streams)


def test_a_device_does_not_pass_for_the_server(yard: Yard) -> None:
    """A device's certificate is of the same authority; another device that dials it refuses it."""
    for name in ("server.key", "server.pem"):
        source = "device" + name.removeprefix("server").replace("pem", "crt")
        (yard.folder / name).write_bytes((yard.folder / "1" / source).read_bytes())
    with yard.grid() as grid, running(yard.device(0), yard.device(2, name="1")):
        time.sleep(1.5)
        assert grid.get_node_ids() == []


def test_a_reply_that_is_too_large_is_an_error_and_its_device_goes_on(yard: Yard) -> None:
    with yard.grid(limits=Limits(size=1 << 16)) as grid, running(yard.device(0)):
        until(lambda: len(grid.get_node_ids()) == 1)
        (reply,) = grid.send_and_receive([message(yard.nodes[0], numbers(50_000))], timeout=20)
        assert "allowed are 65536" in reply.error.reason


def test_what_a_device_says_is_fit_for_a_terminal(yard: Yard) -> None:
    def rude(frame: bytearray, seconds: float) -> bytes:
        return b"".join(seal({"error": "\x1b[2J" + "x" * 400}))

    with yard.grid() as grid, running(yard.device(0, rude)):
        until(lambda: len(grid.get_node_ids()) == 1)
        (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=20)
        assert reply.error.reason.startswith("?[2J")
