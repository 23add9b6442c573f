"""The client's side: a Flower ClientApp around `fedsim.round.answer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Protocol, cast

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.check import Invalid
from fedsim.config.untrusted import experiment_of
from fedsim.federation import Federation
from fedsim.flower.memory import Memory, Pending
from fedsim.flower.order import ARRAYS, EXAMPLES, OWN_DATA, Order, told_of
from fedsim.flower.payload import pack, travelling
from fedsim.round import answer
from fedsim.types import State

MEMORY = "fedsim"


class Host(Protocol):
    """Where a client runs: who knows its data, keeps its memory, and may refuse for it."""

    @property
    def own_data(self) -> bool:
        """Whether it has data of its own in place of its part of the experiment's."""
        ...

    def recall(self, order: Order, context: Context) -> Memory:
        """The client's memory of this run, a new one at its start."""
        ...

    def federation(self, order: Order, memory: Memory) -> Federation:
        """The federation as this client sees it; raises `Invalid` where it does not take part."""
        ...

    def keep(self, order: Order, fed: Federation, memory: Memory, context: Context) -> None:
        """Keep the memory; once this returns, the answer in it goes out, for the first time or again."""
        ...

    def failed(self, error: Exception) -> None:
        """There is no answer, for this reason. Either raise it, or return and have that kept as an answer is.

        Whether computing fails may depend on the data: to who asks that is a message like another.
        """
        ...


def respond(host: Host, message: Message, context: Context) -> Message:
    """The client's answer to an order; raises `Invalid` where it gives none."""
    order = Order.of(message)
    memory = host.recall(order, context).settle(order.accepted)
    fed = host.federation(order, memory)
    told = told_of(message, fed, memory.held)
    question = order.question(told)
    pending = memory.earlier(order.round, question)
    if pending is None:
        pending = _answered(host, order, fed, told, memory.state, question)
        memory = replace(memory, pending=pending)
    host.keep(order, fed, memory, context)
    if pending.row is None:
        raise Invalid(f"round {order.round}: this device could not answer; its own log says why")
    metrics = MetricRecord({"client": order.client, "round": order.round, OWN_DATA: int(host.own_data)})
    if fed.experiment.method.by_examples and fed.experiment.rule.averages:
        metrics[EXAMPLES] = int(fed.sizes[order.client])
    return Message(
        RecordDict({ARRAYS: pack(pending.row, order.payload), "metrics": metrics}), reply_to=message
    )


def _answered(
    host: Host, order: Order, fed: Federation, told: State, state: State | None, question: str
) -> Pending:
    """The answer from the client's state, or that there is none, where the host keeps that."""
    method = fed.experiment.method
    before = method.client_init(fed.x0) if state is None else state
    held = None if method.downlink is None else told[method.sends]
    try:
        answered = answer(fed, order.client, before, told, order.round)
        after, row = answered.state, travelling(fed, answered, order.round)
    except Exception as error:
        host.failed(error)
        return Pending(order.round, question, before, None, held)
    return Pending(order.round, question, after, row, held)


class Simulated:
    """A client whose memory is in Flower's `Context.state`: in this process, and on Ray."""

    own_data = False

    def __init__(self, federation: Callable[[Order], Federation]) -> None:
        self._federation = federation

    def recall(self, order: Order, context: Context) -> Memory:
        return recollect(context, order.run)

    def federation(self, order: Order, memory: Memory) -> Federation:
        return self._federation(order)

    def keep(self, order: Order, fed: Federation, memory: Memory, context: Context) -> None:
        remember(context, order.run, memory)

    def failed(self, error: Exception) -> None:
        raise error


def remember(context: Context, run: str, memory: Memory) -> None:
    context.state[MEMORY] = ConfigRecord({"run": run, "memory": memory.dump()})


def recollect(context: Context, run: str) -> Memory:
    kept = context.state.config_records.get(MEMORY)
    return Memory.load(cast(bytes, kept["memory"])) if kept and kept["run"] == run else Memory()


@lru_cache(maxsize=2)
def federation_of(experiment: str, fingerprint: str) -> Federation:
    """The federation of an experiment in JSON; raises `Invalid` where the string is not the one that was named."""
    parsed = experiment_of(experiment)
    if parsed.fingerprint != fingerprint:
        raise Invalid(f"experiment {parsed.fingerprint}: announced was {fingerprint}")
    return Federation(parsed)


def client_app(host: Host) -> ClientApp:
    """A ClientApp that trains, and tells on request which client it is."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return respond(host, message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return Message(RecordDict({"metrics": MetricRecord({"client": client})}), reply_to=message)

    return app


SIMULATED = client_app(Simulated(lambda order: federation_of(order.experiment, order.fingerprint)))
