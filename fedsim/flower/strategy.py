"""Every method of fedsim as a Flower Strategy, for a ServerApp of one's own. `client.client_app` is its ClientApp."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.federation import Federation, Ids
from fedsim.flower.remote import Remote, Wire, discover, told_record
from fedsim.round import Server, attempt
from fedsim.spec import Experiment
from fedsim.states import States
from fedsim.types import State


class MethodStrategy(Strategy):
    """The server's half of an experiment: `strategy.start(grid, strategy.initial_arrays, experiment.rounds)`.

    It comes to the same model as `fedsim.run(experiment)`. Arrays hold the model as one vector "x". A round that too
    few clients answer leaves the model as it is. The experiment's message attack is forged here, before the rule.
    """

    def __init__(self, experiment: Experiment, *, run: str = "strategy", wire: Wire | None = None) -> None:
        self.fed, self._run, self._wire = Federation(experiment), run, wire
        self.server = Server.start(self.fed)
        self.initial_arrays = told_record({"x": self.server.x})
        self._states: States | None = None
        self._remote: Remote | None = None
        self._asked: list[Message] = []

    def summary(self) -> None:
        log(INFO, "\t└──> Experiment %s: %s", self.fed.experiment.fingerprint, self.fed.experiment.method)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if self._remote is None:
            nodes = discover(grid, self.fed.computing, self._wire)
            self._remote = Remote(grid, nodes, run=self._run, wire=self._wire)
            self._states = States.start(self._remote.first(self.fed), self.fed.computing)
        assert self._states is not None
        ids = self._computing(server_round - 1)
        self._asked = self._remote.ask(self.fed, self._states.of(ids), self._told, server_round - 1, ids)
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        assert self._remote is not None
        assert self._states is not None
        round, fed = server_round - 1, self.fed
        ids = self._computing(round)
        states, messages, answered = self._remote.read(fed, round, ids, self._asked, replies)
        self.server, seen = attempt(fed, self.server, messages, answered, fed.cohort(round), round)
        if seen is not None:
            self._states = self._states.after(answered, states)
        return (told_record({"x": self.server.x}) if seen else None), MetricRecord(self._remote.metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []  # the server evaluates, by `evaluate_fn`: what clients say of a model is as untrusted as they are

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    @property
    def _told(self) -> State:
        return self.server.told(self.fed.experiment.method)

    def _computing(self, round: int) -> Ids:
        ids = self.fed.cohort(round)
        return ids[ids < self.fed.computing]
