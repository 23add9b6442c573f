"""Devices that do what they like with their stream: the server stays up, small and quick, and others are answered."""

from __future__ import annotations

import json
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from yard import Yard, message, numbers, running, until

from fedsim.link import hub
from fedsim.link.device import device_credentials
from fedsim.link.frame import CALL, HEAD, MAGIC, OPTIONS, PIECE, SERVICE, VERSION, Limits, pieces, seal

SIZE = 4 << 20  # bytes of an answer, the most
HELLO = b"".join(seal({"fedsim": "1"}))


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path, 2)


class Peer:
    """The stream of device 1, in the hands of somebody who sends any pieces at all."""

    def __init__(self, yard: Yard, **options: Any) -> None:
        place = yard.folder / "1"
        secret = device_credentials(place / "device.key", place / "device.crt", yard.folder / "ca.crt")
        sending = [(k, v) for k, v in OPTIONS if k != "grpc.max_send_message_length"]
        sending.append(("grpc.max_send_message_length", -1))
        self.channel = grpc.secure_channel(f"127.0.0.1:{yard.port}", secret, sending, **options)
        self.call = self.channel.stream_stream(f"/{SERVICE}/{CALL}")

    def say(self, said: Iterator[bytes], seconds: float = 20.0) -> grpc.RpcError | None:
        """Send pieces, and read what comes, to the end of the stream; the error that ended it."""
        try:
            self.stream = self.call(said, timeout=seconds)
            for _ in self.stream:
                pass
        except grpc.RpcError as error:
            return error
        finally:
            self.channel.close()
        return None


def framed(header: bytes, blobs: int = 0, head: int | None = None) -> bytes:
    return HEAD.pack(MAGIC, VERSION, len(header) if head is None else head, blobs) + header


@contextmanager
def memory_of_this_process(most: float) -> Iterator[None]:
    """Fails where the body makes this process larger by more megabytes."""
    before = rss()
    yield
    assert rss() - before < most


def rss() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def asked_id(yard: Yard, grid: Any) -> str:
    return str(next(iter(grid._hub.mail._asked[yard.nodes[1]])))


ANSWERS: dict[str, list[bytes]] = {
    "nothing": [b""],
    "another protocol": [b"GET / HTTP/1.1\r\n\r\n"],
    "another version": [HEAD.pack(MAGIC, 9, 2, 0) + b"{}"],
    "a frame beyond the limit": [HEAD.pack(MAGIC, VERSION, 2, 1 << 62) + b"{}"],
    "a header beyond the limit": [HEAD.pack(MAGIC, VERSION, 1 << 31, 0)],
    "a piece beyond the limit": [bytes(3 << 20)],
    "short pieces": [framed(b"{}", 100), b"x", b"x"],
    "more than announced": [framed(b"{}") + b"more"],
    "no JSON": [framed(b"\xff\xfe")],
    "no object": [framed(b"[]")],
    "deep": [framed(b"[" * 100_000)],
    "wide": [framed(b"[" + b"[]," * 200_000 + b"[]]")],
    "a long number": [framed(b'{"to":' + b"9" * 100_000 + b"}")],
    "quotes": [framed(b'{"' + b'\\"' * 100_000)],
    "an answer to nothing": [framed(b'{"records":[]}')],
    "an answer to another": [framed(b'{"to":"00000000-0000-0000-0000-000000000000","records":[]}')],
    "a long id": [framed(b'{"to":"' + b"x" * 100_000 + b'"}')],
}
RECORDS: dict[str, Any] = {
    "no records": None,
    "a number": 3,
    "blobs that are not there": [["a", "array", [["w", ["float32", [3], "numpy.ndarray", 1 << 40]]]]],
    "a negative blob": [["a", "array", [["w", ["float32", [3], "numpy.ndarray", -1]]]]],
    "a huge shape": [["a", "array", [["w", ["float32", [1 << 60], "numpy.ndarray", 0]]]]],
    "many dimensions": [["a", "array", [["w", ["float32", [1] * 5000, "numpy.ndarray", 0]]]]],
    "many records": [[f"r{i}", "metric", []] for i in range(5000)],
    "names twice": [["a", "metric", [["m", ["plain", 1]]] * 2]],
    "an unknown kind": [["a", "pickle", []]],
    "a huge integer": [["a", "metric", [["m", ["plain", 10**40]]]]],
    "an error that is no text": {"error": [[]]},
}


def test_no_frame_stops_the_server(yard: Yard) -> None:
    """One hostile answer after the other on real streams; each time the other device is answered meanwhile."""
    with yard.grid(limits=Limits(size=SIZE), grace=60.0) as grid, running(yard.device(0)):
        until(lambda: grid.get_node_ids() == [yard.nodes[0]])
        for said in ANSWERS.values():
            Peer(yard).say(iter(said))  # where a hello is due
        for case, said in ANSWERS.items():
            reason = exchange(yard, grid, said)
            assert reason, case
            assert len(reason) < 510
        hub.ENTRIES, before = 1000, hub.ENTRIES
        for case, records in RECORDS.items():
            header = {"records": records} if not isinstance(records, dict) else records
            reason = exchange(yard, grid, [], header)
            assert (case == "many records") != bool(reason), case
        hub.ENTRIES = before


def exchange(yard: Yard, grid: Any, said: list[bytes], header: dict[str, Any] | None = None) -> str:
    """What becomes of a question that device 1 answers so; device 0 is asked meanwhile."""
    grid._hub._entries.clear()  # how often it may connect is another test's
    (asked,) = grid.push_messages([message(yard.nodes[1])])
    answer = [b"".join(seal({"to": asked, **header}))] if header is not None else said
    hostile = Peer(yard)
    peer = threading.Thread(target=hostile.say, args=(iter([HELLO, *answer]), 60.0))
    peer.start()
    (honest,) = grid.send_and_receive([message(yard.nodes[0])], timeout=20)
    assert not honest.has_error()
    replies: list[Any] = []
    until(lambda: replies.extend(grid.pull_messages([asked])) or replies)
    hostile.stream.cancel()  # the server waits for another question
    peer.join()
    return str(replies[0].error.reason) if replies[0].has_error() else ""


def test_a_bomb_does_not_swell(yard: Yard) -> None:
    """A gigabyte that travels as a megabyte: refused as it is, not inflated."""
    with yard.grid(limits=Limits(size=SIZE)) as grid, memory_of_this_process(1500):
        error = Peer(yard, compression=grpc.Compression.Gzip).say(iter([HELLO + bytes(1 << 28)]))
        assert error is not None
        assert grid.get_node_ids() == []


def test_what_nobody_asked_for_is_not_read(yard: Yard) -> None:
    """Pieces without end, while there is no question: they wait in the sender's memory, not in the server's."""
    stop = threading.Event()

    def flood() -> Iterator[bytes]:
        yield HELLO
        while not stop.is_set():
            yield bytes(PIECE)

    with yard.grid(limits=Limits(size=SIZE)) as grid, running(yard.device(0)):
        peer = threading.Thread(target=Peer(yard).say, args=(flood(),))
        peer.start()
        until(lambda: len(grid.get_node_ids()) == 2)
        with memory_of_this_process(60):  # both ends are in this process
            end = time.monotonic() + 2
            while time.monotonic() < end:
                (honest,) = grid.send_and_receive([message(yard.nodes[0])], timeout=20)
                assert not honest.has_error()
        stop.set()
    peer.join(25)


@pytest.mark.parametrize("pause", [60.0, 0.3])
def test_half_an_answer_costs_little_and_not_for_long(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """A piece of an answer, and then silence, while others wait for the budget; dripping is no better."""
    size, done = 50 * PIECE, threading.Event()
    monkeypatch.setattr(hub, "STALL", 1.0)
    monkeypatch.setattr(hub, "SLOWEST", size / 2.0)

    def drip() -> Iterator[bytes]:
        yield HELLO
        for part in pieces([HEAD.pack(MAGIC, VERSION, 2, size - HEAD.size - 2) + b"{}", bytes(size)]):
            yield part
            done.wait(pause)

    with yard.grid(limits=Limits(size=size), budget=0, grace=20.0) as grid:  # as much as one answer takes
        grid.push_messages([message(yard.nodes[1])])
        peer = threading.Thread(target=Peer(yard).say, args=(drip(),))
        peer.start()
        until(lambda: grid._hub._budget._free == 0)
        with running(yard.device(0)):
            began = time.monotonic()
            (honest,) = grid.send_and_receive([message(yard.nodes[0])], timeout=30)
            assert not honest.has_error()
            assert (
                0.3 < time.monotonic() - began < 25
            )  # it waited, but not for the minute that the pauses take
        done.set()
    peer.join(25)


def test_a_device_that_dials_again_and_again_is_held_off(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SPAN", 3600.0)  # however slow this machine is
    with yard.grid() as grid, running(yard.device(0)):
        until(lambda: len(grid.get_node_ids()) == 1)
        codes = []
        for _ in range(hub.ENTRIES + 5):
            error = Peer(yard).say(iter([b""]))
            assert error is not None
            codes.append(error.code())
        assert codes[-1] == grpc.StatusCode.RESOURCE_EXHAUSTED
        (honest,) = grid.send_and_receive([message(yard.nodes[0])], timeout=20)
        assert not honest.has_error()


def test_a_device_answers_for_no_other(yard: Yard) -> None:
    """Device 1 knows the question of device 0, and answers it on its own stream: device 0 is who answers."""
    gate = threading.Event()

    def slow(frame: bytearray, seconds: float) -> bytes:
        gate.wait(20)
        from yard import echo

        return echo(frame, seconds)

    with yard.grid(grace=20.0) as grid, running(yard.device(0, slow)):
        until(lambda: grid.get_node_ids() == [yard.nodes[0]])
        content = numbers(3)
        (first,) = grid.push_messages([message(yard.nodes[0], content)])
        (mine,) = grid.push_messages([message(yard.nodes[1])])
        forged = b"".join(seal({"to": first, "records": [], "src_node_id": yard.nodes[0]}))
        Peer(yard).say(iter([HELLO, forged]))
        assert not list(grid.pull_messages([first]))
        gate.set()
        replies: list[Any] = []
        until(lambda: replies.extend(grid.pull_messages([first])) or replies)
        assert replies[0].content == content
        assert replies[0].metadata.src_node_id == yard.nodes[0]
        (failed,) = grid.pull_messages([mine])
        assert "an answer to another question" in failed.error.reason


def test_who_only_opens_connections_takes_no_files_from_the_server(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a certificate, more of them than there may be: some are shut at once, the others once TLS does not begin.

    1024 such connections left a server no file to write its record to, and 120 s without a place for a device.
    """
    monkeypatch.setattr(hub, "connections", lambda: 40)
    monkeypatch.setattr(hub, "HANDSHAKE", 2000)
    with yard.grid(grace=60.0) as grid, running(yard.device(0)), ExitStack() as stack:
        until(lambda: grid.get_node_ids() == [yard.nodes[0]])
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", yard.port))) for _ in range(100)]
        for each in held:
            each.setblocking(False)
        until(lambda: sum(map(shut, held)) >= 60)
        (honest,) = grid.send_and_receive([message(yard.nodes[0])], timeout=20)
        assert not honest.has_error()
        with running(yard.device(1)):
            until(lambda: len(grid.get_node_ids()) == 2)
        until(lambda: all(map(shut, held)))


def test_a_connection_without_a_stream_ends(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device's certificate and HTTP/2's first words: also those who may connect hold no place for nothing."""
    monkeypatch.setattr(hub, "IDLE", 1000)
    context, place = ssl.create_default_context(cafile=str(yard.folder / "ca.crt")), yard.folder / "1"
    context.load_cert_chain(place / "device.crt", place / "device.key")
    context.set_alpn_protocols(["h2"])
    with (
        yard.grid(),
        socket.create_connection(("127.0.0.1", yard.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as held,
    ):
        held.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        held.settimeout(20)
        while held.recv(1 << 16):
            pass


def shut(held: socket.socket) -> bool:
    """Whether the other side has closed a connection."""
    try:
        return held.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_files_are_left_for_the_server_itself() -> None:
    """Whatever the system allows: connections get fewer than all, and the process may open what it may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        most = hub.connections()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert before[0] <= soft
        assert hard == before[1]
        assert soft // 2 <= most < soft
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_stored_corpus() -> None:
    """What a fuzzer found worth keeping, each through all that reads a frame: a violation, or records."""
    import fuzz

    for each in json.loads((Path(__file__).parent / "corpus.json").read_text()):
        fuzz.one(bytes.fromhex(each))
