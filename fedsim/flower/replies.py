"""What came back: each reply looked at alone, by the message that it answers; the rest set aside with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import WARNING
from typing import TypeVar

from flwr.app import Message
from flwr.common.logger import log

from fedsim.flower.private import SUPERLINK_NODE_ID

T = TypeVar("T")


@dataclass(frozen=True)
class SetAside:
    """A node whose answer did not count in a round, and why."""

    round: int
    node: int
    reason: str


def collect(
    round: int, asked: Sequence[Message], replies: Iterable[Message], read: Callable[[Message], T]
) -> tuple[dict[int, T], list[SetAside]]:
    """What each node answered, read by `read`, in order of node ids; and who was set aside.

    A reply counts where its sender is the node that was asked, or where it is an error that the server itself reports:
    a node that knows another one's message takes nobody's place. Whatever `read` raises sets that reply aside, and no
    other.
    """
    nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in asked}
    waiting, answers, aside = dict(nodes), {}, []
    for reply in replies:
        to, sender = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
        node = waiting.get(to)
        if node is not None and sender != node and not (reply.has_error() and sender == SUPERLINK_NODE_ID):
            aside.append(SetAside(round, sender, f"an answer in the place of node {node}"))
            continue
        waiting.pop(to, None)
        if node is None:
            reason = "a second answer" if to in nodes else "an answer to another round"
            aside.append(SetAside(round, nodes.get(to, sender), reason))
            continue
        try:
            if reply.has_error():
                raise ValueError(f"error {reply.error.code}: {reply.error.reason}")
            answers[node] = read(reply)
        except Exception as error:  # anything that a client sends may be malformed, in ways nobody thought of
            aside.append(SetAside(round, node, str(error)[:200] or type(error).__name__))
    aside += [SetAside(round, node, "no answer in time") for node in waiting.values()]
    for each in aside:
        log(WARNING, "round %s: node %s set aside: %s", each.round, each.node, each.reason)
    return dict(sorted(answers.items())), aside
