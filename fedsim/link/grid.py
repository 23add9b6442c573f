"""Devices as the nodes of a Flower Grid: Flower's strategies, and those of fedsim, start on it as on any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from math import inf

import grpc
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.flower.private import ErrorCode, Run, identify, stamp
from fedsim.link.frame import LONGEST, Limits, Violation, header_of, printable, seal, text_of
from fedsim.link.hub import Hub
from fedsim.link.mail import Failure, Mail, Outcome, Question
from fedsim.link.records import describe, restore

TURN = 0.5  # seconds: an interrupt, or a question whose time is over, is noticed so soon


class LinkGrid(Grid):
    """Serves devices at `address` from construction to `close`, or to the end of a `with` block.

    credentials  see `identity.server_credentials`
    known        the digests of the keys of those who may connect now: asked again for every message
    limits       of an answer
    grace        seconds that a device may be away before a message to it gets an error reply
    budget       bytes of answers that are received at the same time

    A message waits for its device until it is answered, its ttl is over, or `send_and_receive` gives up. A device that
    loses its connection meanwhile is sent it again, three times in all. Messages may be pushed, and replies pulled, at
    any time.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials,
        known: Callable[[], Collection[str]],
        *,
        limits: Limits | None = None,
        grace: float = 30.0,
        budget: int = 1 << 31,
        run_id: int = 1,
    ) -> None:
        self._limits, self._run = limits or Limits(), Run.create_empty(run_id)
        identify(run_id)
        self._hub = Hub(address, credentials, known, lambda wake: Mail(grace, self._limits, wake), budget)
        self._mail = self._hub.mail

    def __enter__(self) -> LinkGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return self._hub.online

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids, nodes = [], self._hub.nodes
        for message in messages:
            ids.append(stamp(message))
            node, about = message.metadata.dst_node_id, message.metadata
            until = time.monotonic() + about.ttl - (time.time() - about.created_at)
            self._mail.ask(Question(ids[-1], node, until, _sealed(message, until), message), node in nodes)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._reply(question.about, outcome) for question, outcome in self._mail.fetch(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        waiting, replies = set(self.push_messages(messages)), list[Message]()
        until = time.monotonic() + (inf if timeout is None else timeout)
        while waiting and time.monotonic() < until:
            self._mail.wait(waiting, min(TURN, until - time.monotonic()))
            came = list(self.pull_messages(waiting))
            replies += came
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
        self._mail.forget(waiting)
        return replies

    def withdraw(self, message_ids: Collection[str]) -> None:
        """Nobody waits for answers to these any more; a device that was not asked yet is not."""
        self._mail.forget(message_ids)

    def close(self) -> None:
        self._hub.close()

    def _reply(self, asked: Message, outcome: Outcome) -> Message:
        """The reply as a Strategy sees it; all but its content comes from the message that was asked."""
        try:
            if isinstance(outcome, Failure):
                raise Violation(outcome.reason)
            header, body = header_of(outcome, self._limits)
            if "error" in header:
                raise Violation(text_of(header, "error", LONGEST))
            reply = Message(restore(header.get("records"), body), reply_to=asked)
        except Violation as error:
            away = isinstance(outcome, Failure) and outcome.away
            code = ErrorCode.NODE_UNAVAILABLE if away else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reply = Message(Error(code, printable(str(error))), reply_to=asked)
        stamp(reply)
        return reply


def _sealed(message: Message, until: float) -> Callable[[], list[bytes | memoryview]]:
    """What makes the frame of a message, with the seconds that are left when it is sent."""

    def make() -> list[bytes | memoryview]:
        about, (described, blobs) = message.metadata, describe(message.content)
        return seal(
            {
                "id": about.message_id,
                "node": about.dst_node_id,
                "type": about.message_type,
                "group": about.group_id,
                "run": about.run_id,
                "ttl": until - time.monotonic(),
                "records": described,
            },
            blobs,
        )

    return make
