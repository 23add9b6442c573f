"""The server's end of the link: a gRPC service in a thread of its own, with one stream for each device."""

from __future__ import annotations

import asyncio
import logging
import resource
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import grpc
import grpc.aio

from fedsim.link import journal
from fedsim.link.frame import (
    CALL,
    OPTIONS,
    SERVICE,
    Incoming,
    Limits,
    Violation,
    announced,
    header_of,
    pieces,
    printable,
    text_of,
)
from fedsim.link.identity import Identity, identity_of, node_of
from fedsim.link.mail import Failure, Mail, Question

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
ENTRIES, SPAN = 30, 60.0  # connections of a device in so many seconds: the most
HELLO = Limits(size=1 << 12, header=1 << 12)
STALL = 30.0  # seconds in which a piece must get through,
SLOWEST = 20_000.0  # and bytes a second that a frame must have, once it has begun
HANDSHAKE, IDLE = 10_000, 60_000  # milliseconds for TLS to begin, and of a connection without a stream
FILES, OWN = 1 << 14, 256  # open files that are asked for, and those of them that no connection gets
LOOK = 1.0  # seconds between two looks at an idle device's certificate and at who is still allowed


class Stream:
    """One stream of a device."""

    def __init__(self, identity: Identity) -> None:
        self.identity, self.wake, self.replaced = identity, asyncio.Event(), False


class Hub:
    """Serves the devices whose keys' digests are in `known()`, from construction to `close`.

    budget  bytes of answers that are received at the same time; others wait, unread
    The newest stream of a device counts: an older one may be dead without knowing.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials,
        known: Callable[[], Collection[str]],
        mail: Callable[[Callable[[int], None]], Mail],
        budget: int,
    ) -> None:
        self._known, self._streams, self._lock = known, dict[int, Stream](), threading.Lock()
        self._entries: dict[int, deque[float]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="link")
        self._thread.start()
        self.mail = mail(self._wake)
        self._budget = Budget(max(budget, self.mail.limits.size))
        self._server = self._wait(self._open(address, credentials))

    @property
    def online(self) -> list[int]:
        """The nodes that are connected, and still allowed."""
        with self._lock:
            streams = list(self._streams.items())
        return [node for node, stream in streams if not self._objection(stream.identity)]

    @property
    def nodes(self) -> set[int]:
        """The nodes that may connect now."""
        return {node_of(digest) for digest in self._known()}

    def close(self, seconds: float = 1.0) -> None:
        self._wait(self._end(seconds))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, what: Any) -> Any:
        found: Future[Any] = asyncio.run_coroutine_threadsafe(what, self._loop)
        return found.result()

    def _wake(self, node: int) -> None:
        with self._lock:
            stream = self._streams.get(node)
        if stream is not None:
            self._loop.call_soon_threadsafe(stream.wake.set)

    async def _open(self, address: str, credentials: grpc.ServerCredentials) -> grpc.aio.Server:
        options = [
            *OPTIONS,
            ("grpc.max_concurrent_streams", 2),
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", connections()),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE),
            ("grpc.max_connection_idle_ms", IDLE),
        ]
        server = grpc.aio.server(options=options)
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {CALL: handler}),))
        server.add_secure_port(address, credentials)
        await server.start()
        return server

    async def _end(self, seconds: float) -> None:
        await self._server.stop(seconds)
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest, timeout=STALL)  # streams that are being cancelled

    async def _serve(self, _: Any, context: Context) -> None:
        """One stream of one device, from its beginning to its end."""
        me = Stream(await self._admit(context))
        node = me.identity.node
        try:
            await self._hello(node, context)
            self._enter(node, me)
            await context.send_initial_metadata(())
            while True:
                await self._ask(await self._next(node, me, context), context)
        except Violation as error:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, node, str(error))
        except TimeoutError:
            await self._refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, node, "too slow")
        except EOFError:
            return
        finally:
            self._leave(node, me)

    def _enter(self, node: int, me: Stream) -> None:
        with self._lock:
            other, self._streams[node] = self._streams.get(node), me
            journal.ONLINE.labels("server").set(len(self._streams))
        if other is not None:
            other.replaced = True
            other.wake.set()
        journal.NODES.labels(str(node)).set(1)
        self.mail.came(node)
        journal.CONNECTIONS.labels("server").inc()
        journal.say("connected", node=node, key=me.identity.digest, in_place_of_another=other is not None)

    def _leave(self, node: int, me: Stream) -> None:
        with self._lock:
            mine = self._streams.get(node) is me
            if mine:
                del self._streams[node]
            journal.ONLINE.labels("server").set(len(self._streams))
        if mine:
            journal.NODES.labels(str(node)).set(0)
            self.mail.left(node)
            journal.say("disconnected", node=node)

    def _objection(self, identity: Identity) -> str:
        """Why this device is not served now; empty where it is."""
        if identity.digest not in self._known():
            return f"no device here has the key {identity.digest}: it was revoked, or never added"
        if not identity.current:
            return f"this certificate is valid from {identity.begins} to {identity.ends}: renew it"
        return ""

    async def _refuse(self, context: Context, code: grpc.StatusCode, node: int, reason: str) -> None:
        journal.REFUSED.labels("server").inc()
        journal.say("refused", logging.WARNING, node=node, code=code.name, reason=reason)
        await context.abort(code, printable(reason))

    async def _admit(self, context: Context) -> Identity:
        """Whose stream this is, where it is a device's that may connect."""
        pem: Mapping[str, Iterable[bytes]] = context.auth_context()
        identity = identity_of(next(iter(pem["x509_pem_cert"])))
        if reason := self._objection(identity):
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, identity.node, reason)
        entries = self._entries.setdefault(identity.node, deque(maxlen=ENTRIES))
        now = time.monotonic()
        if len(entries) == ENTRIES and now < entries[0] + SPAN:
            reason = f"{ENTRIES} connections in {SPAN:g} s: another follows later"
            await self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, identity.node, reason)
        entries.append(now)
        return identity

    async def _hello(self, node: int, context: Context) -> None:
        """The first frame, by which a device shows that it speaks this version."""
        frame = Incoming(HELLO)
        while not frame.add(await _read(context, STALL)):
            pass
        header, _ = header_of(frame.data, HELLO)
        journal.say("hello", node=node, version=text_of(header, "fedsim", 40))

    async def _next(self, node: int, me: Stream, context: Context) -> Question:
        """The oldest question to this device; waits for one."""
        while True:
            if me.replaced:
                await context.abort(
                    grpc.StatusCode.ABORTED, "this device has another connection, begun later"
                )
            if reason := self._objection(me.identity):
                await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, node, reason)
            if question := self.mail.next(node):
                return question
            with suppress(TimeoutError):
                await asyncio.wait_for(me.wake.wait(), LOOK)
            me.wake.clear()

    async def _ask(self, question: Question, context: Context) -> None:
        """Send a question and take its answer; who answers is who holds this stream, whatever the answer says."""
        size = 0
        for piece in pieces(question.seal()):
            await asyncio.wait_for(context.write(piece), STALL)
            size += len(piece)
        journal.count("server", "out", size)
        try:
            frame = await self._answer(context)
            header, _ = header_of(frame, self.mail.limits)
            if text_of(header, "to") != question.id:
                raise Violation("an answer to another question")
        except Violation as error:
            self.mail.settle(question, Failure(printable(str(error))))
            raise
        journal.count("server", "in", len(frame))
        self.mail.settle(question, frame)

    async def _answer(self, context: Context) -> bytearray:
        """The frame of an answer; once begun, it has to come at a certain speed."""
        piece = await _read(context, None)
        size = announced(piece, self.mail.limits)
        async with self._budget.taken(size), asyncio.timeout(STALL + size / SLOWEST):
            frame = Incoming(self.mail.limits)
            while not frame.add(piece):
                piece = await _read(context, STALL)
        return frame.data


class Budget:
    """So many bytes at a time; whoever wants more waits."""

    def __init__(self, size: int) -> None:
        self._free, self._changed = size, asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            async with self._changed:
                self._free += size
                self._changed.notify_all()


def connections() -> int:
    """How many connections may be open, so that whoever opens all of them leaves this process files to work with.

    As many files as the system allows are asked for first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wished = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft == resource.RLIM_INFINITY:
        soft = FILES
    elif soft < wished:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wished, hard))
        soft = wished
    return max(soft - OWN, soft // 2)


async def _read(context: Context, seconds: float | None) -> bytes:
    """The next piece; raises EOFError at the end of the stream."""
    piece = await asyncio.wait_for(context.read(), seconds)
    if piece is grpc.aio.EOF:
        raise EOFError
    return bytes(piece)
