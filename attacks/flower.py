"""Message attacks against any Flower app: a Grid around its Grid, on which some nodes answer what an attack forges.

strategy.start(grid=Adversary(grid, ALIE(), nodes=2), initial_arrays=...)      # was: grid=grid
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.check import Invalid
from fedsim.flower.arrays import Layout
from fedsim.flower.private import Run, with_content
from fedsim.keys import Keys
from fedsim.types import Attack, View


class Adversary(Grid):
    """The Grid `grid`, with the training replies of some nodes forged: for testing an app, not part of a deployment.

    attack  a message attack; rows are the clients' arrays minus those that were sent to them, as vectors
    nodes   the nodes that it speaks for, by id, or how many: those with the highest ids
    It works on what `send_and_receive` returns, which is how Flower's strategies ask; replies that fail, or have
    another layout than most, stay as they are. The attack is granted its own and the honest rows. Raises
    `Invalid` for attacks that poison data, or need to know the server's rule.
    """

    def __init__(self, grid: Grid, attack: Attack, nodes: int | Collection[int], *, seed: int = 0) -> None:
        if attack.poisons or "rule" in attack.needs:
            why = "poisons data, which a Grid never sees" if attack.poisons else "needs to know the rule"
            raise Invalid(f"Adversary.attack = {type(attack).__name__}: {why}")
        self._grid, self._attack, self._nodes = grid, attack, nodes
        self._keys, self._memory, self._round = Keys(seed, 1), dict[str, Tensor](), 0

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        sent = {m.metadata.message_id: m for m in messages if m.metadata.message_type == MessageType.TRAIN}
        rows = {
            node: _Row(place, layout, base, layout.vector(after) - base)
            for place, reply in enumerate(replies)
            for node, layout, base, after in _readable(sent, reply)
        }
        layouts = [row.layout for row in rows.values()]
        alike = [node for node in sorted(rows) if layouts.count(rows[node].layout) > len(layouts) / 2]
        mine = [rows[node] for node in alike if node in self._bad()]
        others = [rows[node] for node in alike if node not in self._bad()]
        if mine and others:
            for row, update in zip(mine, self._forge(mine, others), strict=True):
                arrays = row.layout.record(row.base + update, _arrays(replies[row.place]))
                replies[row.place] = _with_arrays(replies[row.place], arrays)
            self._round += 1
        return replies

    def _bad(self) -> Collection[int]:
        if isinstance(self._nodes, int):
            return sorted(self._grid.get_node_ids())[-self._nodes :] if self._nodes else []
        return self._nodes

    def _forge(self, mine: list[_Row], others: list[_Row]) -> Tensor:
        view = View(
            n=len(mine) + len(others),
            f=len(mine),
            round=self._round,
            x=mine[0].base,
            generator=self._keys.generator("attack", self._round),
            own=torch.stack([row.update for row in mine]),
            honest=torch.stack([row.update for row in others]),
        )
        forged, self._memory = self._attack.remember(view, self._memory)
        return forged


@dataclass(frozen=True)
class _Row:
    """A reply, by its place among the replies, as what it would move."""

    place: int
    layout: Layout
    base: Tensor
    update: Tensor


def _readable(
    sent: Mapping[str, Message], reply: Message
) -> Iterator[tuple[int, Layout, Tensor, ArrayRecord]]:
    """Who was asked, and the arrays that came back; nothing where their layout is not that of those sent."""
    question = sent.get(reply.metadata.reply_to_message_id)
    if question is None or reply.has_error():
        return
    with suppress(Exception):  # a client that answers with garbage is another's affair
        before, after = _arrays(question), _arrays(reply)
        layout = Layout.of(after)  # an average may have turned counters that were sent into floating point
        layout.vector(after)
        yield question.metadata.dst_node_id, layout, layout.vector(before), after


def _arrays(message: Message) -> ArrayRecord:
    (record,) = message.content.array_records.values()
    return record


def _with_arrays(message: Message, arrays: ArrayRecord) -> Message:
    (name,) = message.content.array_records
    return with_content(message, RecordDict({**message.content, name: arrays}))
