"""What runs in a worker's process: messages in, by a pipe and never unpickled, and the ClientApp's replies out."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.check import Invalid
from fedsim.link import journal
from fedsim.link.frame import Limits, Violation, header_of, number_of, printable, seal, text_of, whole_of

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp


Value = str | int | float | bool


@dataclass(frozen=True)
class Installed:
    """A ClientApp that is installed here, as module:app, what its Context holds, and what it may take.

    state   a file for what it keeps in `context.state`
    memory  bytes of address space, 0 for no limit
    limits  of a message and of a reply
    """

    app: str
    node_config: Mapping[str, Value] = field(default_factory=dict)
    run_config: Mapping[str, Value] = field(default_factory=dict)
    state: Path | None = None
    memory: int = 0
    limits: Limits = field(default_factory=Limits)


def work(installed: Installed, pipe: Connection, life: Connection) -> None:
    """Answer until the pipe ends."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # the process that started this one ends it
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    journal.to_stderr()
    sys.path.append(str(Path.cwd()))  # after all that is installed: the owner's own apps may stand there
    if installed.memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (installed.memory, installed.memory))
    host = Host(installed)
    pipe.send_bytes(b"")  # ready
    while True:
        try:
            frame = pipe.recv_bytes(installed.limits.size)
        except (EOFError, OSError):
            return
        pipe.send_bytes(host.answer(frame))
        del frame


class Host:
    """A ClientApp with its Context, which lasts as long as a run of the server's does."""

    def __init__(self, installed: Installed) -> None:
        module, _, name = installed.app.partition(":")
        self._app: ClientApp = getattr(import_module(module), name)
        self._installed = installed
        self._context: Context | None = None

    def answer(self, frame: bytes) -> bytes:
        """The frame of the reply. What is refused is told in words; any other error by its type alone.

        The text of an error that nobody foresaw may hold what should not leave: that goes into the device's own log.
        """
        from fedsim.link.records import describe

        try:
            header, body = header_of(frame, self._installed.limits)
            context = self._context_of(whole_of(header, "run"), whole_of(header, "node"))
            reply = self._app(message=_message(header, body), context=context)
            if reply.has_error():
                return b"".join(seal({"error": printable(str(reply.error.reason))}))
            self._keep(context)
            described, blobs = describe(reply.content)
            parts, most = seal({"records": described}, blobs), self._installed.limits.size
            if sum(map(len, parts)) > most:
                raise Violation(f"a reply of more than {most} bytes")
            return b"".join(parts)
        except (Invalid, Violation) as error:
            return b"".join(seal({"error": printable(str(error))}))
        except Exception as error:
            journal.LOG.exception("error in the ClientApp", extra={"fields": {}})
            kind = type(error).__name__
            return b"".join(seal({"error": f"{kind} in this device's app; its own log says more"}))

    def _context_of(self, run: int, node: int) -> Context:
        from flwr.app import Context, RecordDict

        if self._context is None or self._context.run_id != run:
            node_config, run_config = dict(self._installed.node_config), dict(self._installed.run_config)
            self._context = Context(run, node, node_config, self._recalled(run) or RecordDict(), run_config)
        return self._context

    def _keep(self, context: Context) -> None:
        from fedsim.link.records import describe
        from fedsim.machine.files import write_parts

        if self._installed.state and context.state:
            described, blobs = describe(context.state)
            write_parts(self._installed.state, seal({"run": context.run_id, "records": described}, blobs))

    def _recalled(self, run: int) -> RecordDict | None:
        from fedsim.link.records import restore

        path = self._installed.state
        if not path or not path.exists():
            return None
        try:
            content = path.read_bytes()
            header, body = header_of(content, Limits(size=len(content)))
            return restore(header["records"], body) if header["run"] == run else None
        except (Violation, KeyError) as error:
            journal.say("state not readable", logging.WARNING, reason=str(error))
            return None


def _end_with(life: Connection) -> None:
    """End this process when the one that started it is gone, in the middle of an answer too."""
    try:
        life.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _message(header: dict[str, Any], body: memoryview) -> Message:
    """The message as the ClientApp sees it."""
    from flwr.app import Message

    from fedsim.flower.private import identify, stamp
    from fedsim.link.records import restore

    identify(whole_of(header, "run"))
    kind, group = text_of(header, "type", 100), text_of(header, "group", 100)
    content = restore(header.get("records"), body)
    ttl = number_of(header, "ttl")
    message = Message(content, whole_of(header, "node"), kind, ttl=ttl, group_id=group)
    stamp(message)
    return message
