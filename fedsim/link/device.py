"""A device's end of the link: it dials out, keeps one stream, and has each message answered. No code ever arrives.

Neither torch nor flwr is imported here: what they are needed for is in the worker's process.
"""

from __future__ import annotations

import logging
import random
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

import grpc

from fedsim.link import journal
from fedsim.link.frame import (
    CALL,
    OPTIONS,
    SERVICE,
    Incoming,
    Limits,
    Violation,
    header_of,
    number_of,
    pieces,
    printable,
    seal,
    text_of,
)
from fedsim.machine.files import write_parts
from fedsim.version import __version__

Answer = Callable[
    [bytearray, float], bytes
]  # the frame of a message, and the seconds that are left -> that of the reply
Parts = list[bytes | memoryview]
FIRST, LAST, REFUSED = (
    0.1,
    5.0,
    30.0,
)  # seconds before another try: the first, the longest, and after a refusal
REFUSALS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INVALID_ARGUMENT,
)


class Device:
    """The link of one device to `server`, as host:port.

    answer   what answers a message
    last     a file that holds the last reply, so that the same message gets the same reply, after a restart too
    limits   of a message, and of a reply
    name     the name in the server's certificate, where that is not the host
    """

    def __init__(
        self,
        server: str,
        credentials: grpc.ChannelCredentials,
        answer: Answer,
        last: Path,
        limits: Limits | None = None,
        name: str = "",
    ) -> None:
        self._server, self._credentials, self._answer = server, credentials, answer
        self._last, self._limits, self._stopped = Last(last), limits or Limits(), Event()
        self._options: list[tuple[str, int | str]] = [
            *OPTIONS,
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
        ]
        if name:
            self._options.append(("grpc.ssl_target_name_override", name))
        self._busy = Lock()
        self._stream: grpc.Call | None = None

    def forever(self) -> None:
        """Serve until `stop`; whatever ends a stream, try again."""
        wait = FIRST
        while not self._stopped.is_set():
            began, refused = time.monotonic(), False
            try:
                self.serve()
                why = "the server ended the stream"
            except Violation as error:
                why, refused = f"the server sent what is no message: {error}", True
            except grpc.RpcError as error:
                why, refused = f"{error.code().name}: {error.details()}", error.code() in REFUSALS
            # a full disk, no more processes: that may pass, and a link has no other end
            except Exception as error:
                journal.LOG.exception("error on this device", extra={"fields": {}})
                why, refused = f"{type(error).__name__} on this device", True
            if self._stopped.is_set():
                break
            if time.monotonic() > began + LAST:  # that was a connection
                wait = FIRST
            pause = (REFUSED if refused else wait) * random.uniform(0.5, 1)
            level = logging.WARNING if refused else logging.INFO
            journal.say("refused" if refused else "disconnected", level, reason=why, again_in=round(pause, 1))
            self._stopped.wait(pause)
            wait = min(2 * wait, LAST)
        journal.say("stopped")

    def stop(self, patience: float = 0.0) -> None:
        """End `forever`; an answer that has begun gets so many seconds, and is then lost."""
        self._stopped.set()
        done = self._busy.acquire(timeout=patience) if patience else False
        if self._stream is not None:
            self._stream.cancel()
        if done:
            self._busy.release()

    def serve(self) -> None:
        """One stream, from its beginning to its end."""
        with grpc.secure_channel(self._server, self._credentials, self._options) as channel:
            out: SimpleQueue[Parts | None] = SimpleQueue()
            out.put(seal({"fedsim": __version__}))
            stream = self._stream = channel.stream_stream(f"/{SERVICE}/{CALL}")(_sent(out))
            try:
                if self._stopped.is_set():  # `stop` may have seen the stream before this one
                    return
                stream.initial_metadata()
                if stream.is_active() and not self._stopped.is_set():
                    journal.ONLINE.labels("device").set(1)
                    journal.CONNECTIONS.labels("device").inc()
                    journal.say("connected", server=self._server)
                while frame := self._message(stream):
                    with self._busy:
                        if self._stopped.is_set():
                            return
                        reply = self._reply(frame)
                    journal.count("device", "out", sum(map(len, reply)))
                    out.put(reply)
            finally:
                journal.ONLINE.labels("device").set(0)
                out.put(None)
                stream.cancel()

    def _message(self, stream: Iterator[bytes]) -> bytearray | None:
        """The frame of the next message, None at the end of the stream."""
        frame = Incoming(self._limits)
        for piece in stream:
            if frame.add(piece):
                journal.count("device", "in", len(frame.data))
                return frame.data
        return None

    def _reply(self, frame: bytearray) -> Parts:
        """The reply to a message; asked the same again, it is the same."""
        header, _ = header_of(frame, self._limits)
        asked = text_of(header, "id", 64)
        if known := self._last.of(asked):
            return known
        given = self._answer(frame, number_of(header, "ttl"))
        said, body = header_of(given, Limits(size=len(given)))
        reply = seal(said | {"to": asked}, [body])
        if "error" in said:
            journal.REFUSED.labels("device").inc()
            journal.say("no answer", logging.WARNING, reason=str(said["error"]))
        else:
            self._last.keep(asked, reply)
        return reply


class Last:
    """The last reply, in a file: a checksum, then the frame."""

    def __init__(self, path: Path) -> None:
        self._path, self._id = path, ""
        if path.exists():
            self._id = self._read()[0]

    def of(self, asked: str) -> Parts | None:
        """The reply to this message, where it is the last one."""
        if not asked or asked != self._id:
            return None
        held, frame = self._read()
        return [frame] if held == asked else None

    def keep(self, asked: str, reply: Parts) -> None:
        sum_ = 0
        for part in reply:
            sum_ = zlib.crc32(part, sum_)
        try:
            # started twice, the other one may be quicker; the sum tells whose is whole
            with suppress(FileNotFoundError):
                write_parts(self._path, [sum_.to_bytes(4, "big"), *reply], durable=False)
            self._id = asked
        except OSError as error:  # the reply goes out all the same: who is asked again asks its app again
            self._id = ""
            journal.say("last reply not kept", logging.WARNING, reason=printable(str(error)))

    def _read(self) -> tuple[str, memoryview]:
        """The id and the frame; an empty id where the file is damaged, as after a power cut."""
        try:
            held = memoryview(self._path.read_bytes())
            frame = held[4:]
            if zlib.crc32(frame) != int.from_bytes(held[:4], "big"):
                raise Violation("another checksum")
            return text_of(header_of(frame, Limits(size=len(frame)))[0], "to"), frame
        except (OSError, Violation) as error:
            journal.say("last reply not readable", logging.WARNING, reason=printable(str(error)))
            return "", memoryview(b"")


def device_credentials(key: Path, certificate: Path, authority: Path) -> grpc.ChannelCredentials:
    """TLS in which both sides show a certificate of the authority."""
    return grpc.ssl_channel_credentials(authority.read_bytes(), key.read_bytes(), certificate.read_bytes())


def _sent(out: SimpleQueue[Parts | None]) -> Iterator[bytes]:
    while (parts := out.get()) is not None:
        yield from pieces(parts)
