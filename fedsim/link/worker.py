"""The process of a device that runs its ClientApp: what takes too long, or too much memory, ends it and no other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context

from fedsim.link import journal
from fedsim.link.answering import Installed, work
from fedsim.link.frame import seal

STARTING = 600.0  # seconds that a process gets to import its app, which no message can make longer


class Worker:
    """Answers frames by a ClientApp in a process beside this one; `seconds` is the most that an answer takes.

    The process is started ahead of its first message, and again after it died. Its end ends with this process's.
    """

    def __init__(self, installed: Installed, seconds: float) -> None:
        self._installed, self._seconds = installed, seconds
        self._over, self._change = False, threading.Lock()
        self._start()

    def _start(self) -> None:
        self._ready = self._late = False
        spawn = get_context("spawn")  # gRPC has threads here, and a fork would have none of them
        pipe, theirs = spawn.Pipe()
        held, life = spawn.Pipe(duplex=False)
        process = spawn.Process(target=work, args=(self._installed, theirs, held), daemon=True)
        try:
            process.start()
        finally:
            theirs.close()
            held.close()
        self._pipe, self._life, self._process = pipe, life, process

    def __call__(self, frame: bytes | bytearray, seconds: float) -> bytes:
        """The frame of the reply: an error where the process died or took too long."""
        limit = max(min(seconds, self._seconds), 0.1)
        try:
            if not self._ready:
                with self._deadline(STARTING):
                    self._pipe.recv_bytes(0)
                self._ready = True
            with self._deadline(limit):
                self._pipe.send_bytes(frame)
                return self._pipe.recv_bytes(self._installed.limits.size)
        except (EOFError, OSError):
            late = f"no answer in {limit:g} s" if self._ready else f"not ready after {STARTING:g} s"
            reason = late if self._late else "the process of the ClientApp died"
        journal.say("worker ended", logging.WARNING, reason=reason)
        with self._change:
            self._end()
            if not self._over:  # a process that begins after `close` would have nobody to end it
                try:
                    self._start()
                except OSError as error:  # no room for a process: there may be some for the next message
                    journal.say("worker not started", logging.ERROR, reason=str(error))
        return b"".join(seal({"error": reason}))

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """The process is killed where the body takes longer."""

        def end() -> None:
            self._late = True
            self._process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process, whatever it does, for good; from another thread too, which then gets an error."""
        with self._change:
            self._over = True
            self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._life.close()
