"""The process of a device that runs its ClientApp: what takes too long, or too much memory, ends it and no other."""

from __future__ import annotations

import threading
import time
from multiprocessing import get_context

from fedsim.link import journal
from fedsim.link.answering import Installed, work
from fedsim.link.frame import seal


class Worker:
    """Answers frames by a ClientApp in a process beside this one; `seconds` is the most that an answer takes.

    The process is started ahead of its first message, and again after it died. Its end ends with this process's.
    """

    def __init__(self, installed: Installed, seconds: float) -> None:
        self._installed, self._seconds = installed, seconds
        self._start()

    def __call__(self, frame: bytes | bytearray, seconds: float) -> bytes:
        """The frame of the reply: an error where the process died or took too long."""
        limit = max(min(seconds, self._seconds), 0.1)
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer, began = threading.Timer(limit, end), time.monotonic()
        timer.start()
        try:
            self._pipe.send_bytes(frame)
            return self._pipe.recv_bytes(self._installed.limits.size)
        except (EOFError, OSError) as error:
            reason = f"no answer in {limit:g} s" if late.is_set() else "the process of the ClientApp died"
            journal.say(
                "worker ended", reason=reason, after=round(time.monotonic() - began, 1), error=str(error)
            )
        finally:
            timer.cancel()
        self.close()
        self._start()
        return b"".join(seal({"error": reason}))

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._life.close()

    def _start(self) -> None:
        spawn = get_context("spawn")  # gRPC has threads here, and a fork would have none of them
        self._pipe, theirs = spawn.Pipe()
        held, self._life = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=work, args=(self._installed, theirs, held), daemon=True)
        self._process.start()
        theirs.close()
        held.close()
