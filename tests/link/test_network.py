"""Networks that are slow, cut and silent: a proxy before the server does what it is told. And clocks that are wrong."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from yard import Yard, echo, message, numbers, running, until

from fedsim.link import mail

long = pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="takes a minute: set FEDSIM_LONG to run it")


class Proxy:
    """Relays to the server's port: `delay` seconds late, cut with a `chance` at each piece, or in `silence`."""

    def __init__(self, server: int, delay: float = 0.0, chance: float = 0.0) -> None:
        self.server, self.delay, self.chance, self.port = server, delay, chance, 0
        self.silence, self.cuts, self.pieces, self.draw = False, 0, 0, random.Random(0)
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        self.over = asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self.over.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self.server)
            ends = [asyncio.ensure_future(self._pump(*pair)) for pair in ((reader, back), (there, writer))]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in (writer, back):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while piece := await reader.read(1 << 16):
                if self.silence:
                    continue  # swallowed; the connection stays
                self.pieces += 1
                await asyncio.sleep(self.delay)
                if self.draw.random() < self.chance:
                    self.cuts += 1
                    return
                writer.write(piece)
                await writer.drain()

    def __enter__(self) -> Proxy:
        self.thread.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()
        self.loop.close()


def test_every_question_is_answered_once_over_a_bad_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that break again and again, in the middle of messages: each reply is right, no app is asked twice."""
    monkeypatch.setattr(mail, "DELIVERIES", 1000)  # how often a cut may come is the next test's
    from fedsim.link import hub

    monkeypatch.setattr(hub, "ENTRIES", 100_000)
    yard, asked = Yard(tmp_path, 2), list[int]()

    def answer(frame: bytearray, seconds: float) -> bytes:
        asked.append(1)
        return echo(frame, seconds)

    with Proxy(yard.port, delay=0.002, chance=0.02) as proxy, yard.grid(grace=30.0) as grid:
        with running(yard.device(0, answer, proxy.port), yard.device(1, answer, proxy.port)):
            for count in range(20):
                content = numbers(20_000 + count)
                replies = list(
                    grid.send_and_receive([message(node, content) for node in yard.nodes], timeout=60)
                )
                assert [reply.content for reply in replies] == [content, content]
        assert proxy.cuts > 5
    assert len(asked) == 40


@long
def test_a_silent_peer_is_noticed_within_30_seconds(tmp_path: Path) -> None:
    """The network swallows all, and says nothing: both ends give the connection up, and go on where it is back."""
    yard = Yard(tmp_path, 1)
    device = yard.device(0)
    with Proxy(yard.port) as proxy, yard.grid(grace=120.0) as grid:
        device._server = f"127.0.0.1:{proxy.port}"
        with running(device):
            until(lambda: grid.get_node_ids() == yard.nodes)
            proxy.silence, began = True, time.monotonic()
            until(lambda: not grid.get_node_ids(), 40)
            server = time.monotonic() - began
            until(lambda: not device._stream.is_active(), 40)  # type: ignore[union-attr]
            assert server < 31
            assert time.monotonic() - began < 31
            print(f"noticed after {server:.1f} s by the server, {time.monotonic() - began:.1f} s by both")
            proxy.silence = False
            (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=60)
            assert not reply.has_error()


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long skew(void) { const char *s = getenv("SKEW"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int r = real(id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += skew();
  return r;
}
int gettimeofday(struct timeval *t, void *z) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
  int r = real(t, z);
  t->tv_sec += skew();
  return r;
}
time_t time(time_t *t) {
  static time_t (*real)(time_t *);
  if (!real) real = dlsym(RTLD_NEXT, "time");
  time_t r = real(0) + skew();
  if (t) *t = r;
  return r;
}
"""
FRONT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from yard import echo
from fedsim.link import journal
from fedsim.link.device import Device, device_credentials
journal.to_stderr()
place = Path({place!r})
secret = device_credentials(place / "device.key", place / "device.crt", place.parent / "ca.crt")
Device("127.0.0.1:{port}", secret, echo, place / "last").forever()
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler for the clock's library")
@pytest.mark.parametrize(("hours", "served"), [(-6, True), (6, True), (-24 * 3, False), (24 * 500, False)])
def test_a_device_whose_clock_is_wrong(tmp_path: Path, hours: int, served: bool) -> None:
    """Half a day behind does no harm; a certificate that is not valid yet, or any more, is said in the device's log."""
    yard, library = Yard(tmp_path, 1), tmp_path / "clock.so"
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    words = {"tests": str(Path(__file__).parent), "place": str(tmp_path / "0"), "port": yard.port}
    environment = os.environ | {"LD_PRELOAD": str(library), "SKEW": str(3600 * hours)}
    with yard.grid(grace=60.0) as grid, (tmp_path / "log").open("wb") as log:
        device = subprocess.Popen([sys.executable, "-c", FRONT.format(**words)], env=environment, stderr=log)
        try:
            if served:
                (reply,) = grid.send_and_receive([message(yard.nodes[0])], timeout=60)
                assert not reply.has_error()
            else:
                until(lambda: "CERTIFICATE_VERIFY_FAILED" in (tmp_path / "log").read_text(), 60)
                assert not grid.get_node_ids()
        finally:
            device.kill()
            device.wait()
    said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert any(line["event"] == ("connected" if served else "disconnected") for line in said)
