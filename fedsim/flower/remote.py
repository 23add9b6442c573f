"""The server's side of a round: orders to the nodes of a Grid, and the rows that came back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import INFO
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.attempts import Attempts
from fedsim.check import Invalid
from fedsim.downlink import missing
from fedsim.federation import Federation, Ids
from fedsim.flower.order import ARRAYS, EXAMPLES, OWN_DATA, Order
from fedsim.flower.payload import Payload, received, size
from fedsim.flower.replies import SetAside, collect
from fedsim.round import Messages
from fedsim.types import Round, State, at

MOST_EXAMPLES = 10**12  # of a client: float64 adds such numbers exactly
FIRST: State = {"accepted": torch.tensor(-1)}  # what is kept of a client that has not answered yet


@dataclass(frozen=True)
class Wire:
    """How messages travel: numbers that are no signs as `payload`; how long a round waits, in seconds, for answers."""

    payload: Payload = "float32"
    timeout: float = 600.0


class Remote:
    """The clients of a federation behind a Grid. Called with a round, it asks them, and returns who answered what.

    nodes    the node of each client
    run      names the run in the clients' memories
    derived  noise derived from the experiment's seed, not drawn by the clients
    The clients' states stay with the clients; kept here is the last round in which each one's message was taken in.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[int, int],
        *,
        run: str,
        derived: bool = True,
        wire: Wire | None = None,
    ) -> None:
        self.grid, self.nodes, self.run, self.derived, self.wire = grid, nodes, run, derived, wire or Wire()
        self.set_aside: list[SetAside] = []
        self.answered: set[int] = set()  # clients who did, in any round
        self.own_data: set[int] = set()  # clients who say that their data are not the experiment's
        self.metrics: dict[str, Any] = {}

    def first(self, fed: Federation) -> State:
        return FIRST

    def attempts(self, fed: Federation) -> Attempts:
        return Attempts.none(fed)

    def __call__(
        self, fed: Federation, states: State, told: State, round: Round, ids: Ids
    ) -> tuple[State, Messages, Ids]:
        """States, messages (k, d) and the ids of the k clients whose these are, in order."""
        asked = self.ask(fed, states, told, round, ids)
        return self.read(fed, round, ids, asked, self.grid.send_and_receive(asked, timeout=self.wire.timeout))

    def ask(self, fed: Federation, states: State, told: State, round: Round, ids: Ids) -> list[Message]:
        """The orders of a round, or of clients who are each at an attempt of their own."""
        experiment, accepted = fed.experiment, states["accepted"].tolist()
        names, apart = tuple(fed.told_shapes), isinstance(round, np.ndarray)
        shared = (
            ArrayRecord() if experiment.method.peer or apart else told_record({n: told[n] for n in names})
        )

        def told_to(j: int, client: int) -> ArrayRecord:
            if experiment.method.peer or apart:
                return told_record({name: value[j if apart else client] for name, value in told.items()})
            late = missing(fed, told, accepted[j])
            if late is None:
                return shared
            others = {name: told[name] for name in names if name != experiment.method.sends}
            return told_record(others | late)

        return [
            self.order(fed, client, int(at(round, j)), accepted[j], told_to(j, client))
            for j, client in enumerate(ids.tolist())
            if client in self.nodes
        ]

    def order(self, fed: Federation, client: int, round: int, accepted: int, told: ArrayRecord) -> Message:
        """The question to one client; `accepted`: its last round whose message was taken in."""
        order = Order(
            experiment=fed.experiment.to_json(),
            fingerprint=fed.experiment.fingerprint,
            run=self.run,
            client=client,
            round=round,
            accepted=accepted,
            payload=self.wire.payload,
            derived=self.derived,
        )
        return Message(order.content(told), self.nodes[client], MessageType.TRAIN, group_id=str(round + 1))

    def read(
        self,
        fed: Federation,
        round: Round,
        ids: Ids,
        asked: list[Message],
        replies: Iterable[Message],
    ) -> tuple[State, Messages, Ids]:
        """What a round's replies come to."""
        d, last = fed.width, int(np.max(round))
        answers, aside = collect(last, asked, replies, lambda reply: answer_in(fed, reply, last))
        self.set_aside += aside
        rows = {
            client: answers[node] for client, node in self.nodes.items() if node in answers and client in ids
        }
        answered = np.array(sorted(rows), np.int64)
        self.answered |= set(rows)
        self.own_data |= {client for client, (_, _, own, _) in rows.items() if own}
        arrived = sum(bytes for _, bytes, _, _ in rows.values())
        self.metrics = {"asked": len(ids), "answered": len(rows), "bytes": arrived, **self.own_data_of(fed)}
        bits = 8 * arrived / (d * max(1, len(rows)))
        log(INFO, "round %d: %d of %d answered, %.1f bits a coordinate", last, len(rows), len(ids), bits)
        stacked = torch.stack([rows[i][0] for i in answered.tolist()]) if rows else torch.zeros(0, d)
        held = np.array([rows[i][3] or fed.sizes[i] for i in answered.tolist()], np.int64)
        messages = Messages(stacked.to(fed.device), examples=held if self.own_data else None)
        taken = np.broadcast_to(round, ids.shape)[np.isin(ids, answered)]
        return {"accepted": torch.from_numpy(taken.astype(np.int64))}, messages, answered

    def own_data_of(self, fed: Federation) -> dict[str, Any]:
        """How many clients have data of their own, where that is why the server has no epsilon to tell.

        The runner lays what is here over what it measured: None takes the place of its own ledger's epsilon.
        """
        if self.own_data and fed.example_privacy and not self.derived:  # it depends on how many examples
            return {OWN_DATA: len(self.own_data), "epsilon": None}
        return {}

    def silent(self) -> dict[str, list[int]]:
        """The clients that were set aside whenever they were asked, by the reason that came first."""
        reasons = {each.node: each.reason for each in reversed(self.set_aside)}
        found: dict[str, list[int]] = {}
        for client, node in sorted(self.nodes.items()):
            if node in reasons and client not in self.answered:
                found.setdefault(reasons[node], []).append(client)
        return found


def answer_in(fed: Federation, reply: Message, round: int) -> tuple[Tensor, int, bool, int]:
    """A reply's message (d,), its bytes, whether its data are the client's own, and then of how many examples."""
    record = reply.content.array_records.get(ARRAYS, ArrayRecord())
    said = reply.content.metric_records.get("metrics", MetricRecord())
    own = said.get(OWN_DATA, 1) != 0
    return received(fed, record, round), size(record), own, examples_of(fed, said) if own else 0


def examples_of(fed: Federation, said: MetricRecord) -> int:
    """How many examples a client with data of its own says that it has, where its message counts by that; otherwise 0.

    Raises `Invalid` where that is no number of examples. A mean believes it: a robust rule is what does not.
    """
    if not (fed.experiment.method.by_examples and fed.experiment.rule.averages):
        return 0
    held = said.get(EXAMPLES)
    if not isinstance(held, int) or not 1 <= held <= MOST_EXAMPLES:
        raise Invalid(f"{EXAMPLES} = {held!r}: must be an integer from 1 to {MOST_EXAMPLES}")
    return held


def told_record(told: State) -> ArrayRecord:
    """What the server broadcasts, as arrays."""
    return ArrayRecord({name: Array(value.cpu().numpy()) for name, value in told.items()})


def client_of(reply: Message) -> int:
    return int(cast(int, reply.content.metric_records["metrics"]["client"]))


def discover(grid: Grid, clients: int, wire: Wire | None = None) -> dict[int, int]:
    """The node of each client, by asking the nodes: for simulations, where nobody has a reason to lie."""
    wire = wire or Wire()
    until = time.monotonic() + wire.timeout
    while len(nodes := sorted(grid.get_node_ids())) < clients and time.monotonic() < until:
        time.sleep(0.5)
    asked = [Message(RecordDict({}), node, MessageType.QUERY) for node in nodes]
    answers, _ = collect(0, asked, grid.send_and_receive(asked, timeout=wire.timeout), client_of)
    found = {client: node for node, client in answers.items()}
    missing = sorted(set(range(clients)) - set(found))
    if missing:
        raise Invalid(f"{len(nodes)} nodes are there, none of them is client {missing[0]} of {clients}")
    return found
