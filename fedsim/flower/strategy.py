"""Every method of fedsim as a Flower Strategy, for a ServerApp of one's own. `client.client_app` is its ClientApp."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.check import Invalid
from fedsim.federation import Federation
from fedsim.flower.remote import FIRST, Remote, Wire, discover, told_record
from fedsim.pilot import require_none
from fedsim.spec import Experiment
from fedsim.standing import Standing


class MethodStrategy(Strategy):
    """The server's half of an experiment: `strategy.start(grid, strategy.initial_arrays, experiment.rounds)`.

    It comes to the same model as `fedsim.run(experiment)`, and asks nobody any more once the experiment's rounds are
    over, or its privacy budget affords no further one (`stop_at_epsilon`). Arrays hold the model as one vector "x"; a
    round that too few clients answer leaves it as it is. Message attacks are forged here, before the rule. `notes` says
    what the run cost in privacy, and the metrics of each round hold the epsilon spent.
    """

    def __init__(self, experiment: Experiment, *, run: str = "strategy", wire: Wire | None = None) -> None:
        if experiment.clock is not None:
            raise Invalid(
                "clock: simulates seconds, and a Flower app takes seconds of its own; allowed is none"
            )
        require_none(experiment)
        self.fed, self._run, self._wire = Federation(experiment), run, wire
        self._standing = Standing.start(self.fed, FIRST)
        self.initial_arrays = self._arrays
        self._remote: Remote | None = None
        self._asked: list[Message] | None = None  # of the round under way

    @property
    def notes(self) -> list[str]:
        return self._standing.notes(self.fed)

    def summary(self) -> None:
        log(INFO, "\t└──> Experiment %s: %s", self.fed.experiment.fingerprint, self.fed.experiment.method)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._asked, now = None, self._standing
        if not now.goes_on(self.fed):
            log(INFO, "nobody is asked: %s", "; ".join(self.notes) or f"{now.round} rounds are over")
            return []
        if self._remote is None:
            nodes = discover(grid, self.fed.computing, self._wire)
            self._remote = Remote(grid, nodes, run=self._run, wire=self._wire)
        ids = now.asked(self.fed)
        self._asked = self._remote.ask(self.fed, now.states.of(ids), now.told(self.fed), now.round, ids)
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if self._asked is None or self._remote is None:
            return self._arrays, None
        now, fed = self._standing, self.fed
        states, messages, answered = self._remote.read(fed, now.round, now.asked(fed), self._asked, replies)
        self._standing, _ = now.after(fed, states, messages, answered)
        metrics = MetricRecord(self._remote.metrics)
        if self._standing.ledger:
            metrics["epsilon"] = self._standing.ledger.epsilon
        return self._arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []  # the server evaluates, by `evaluate_fn`: what clients say of a model is as untrusted as they are

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    @property
    def _arrays(self) -> ArrayRecord:
        return told_record({"x": self._standing.x(self.fed)})
