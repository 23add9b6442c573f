"""Robust aggregation for any Flower app: a Strategy in place of FedAvg that one broken or hostile client cannot stop.

from fedsim.strategies.flower import RobustStrategy
strategy = RobustStrategy(rule=Chain(NNM(), Median()), f=2)      # was: FedAvg()
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from logging import INFO, WARNING
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim import strategies as rules
from fedsim.check import Invalid
from fedsim.flower.arrays import Layout
from fedsim.flower.replies import SetAside, collect
from fedsim.recall import MemoryRule, Recall, recalled
from fedsim.types import Rule, State

METRICS, NUMBERS = (
    200,
    20_000,
)  # metrics of a client, and their numbers or the characters of their names: the most
MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


class RobustStrategy(Strategy):
    """Model <- model + server_lr * rule(updates), the updates being the clients' arrays minus those that were sent.

    rule, f    the rule, and how many clients may be Byzantine in a round; f stays when fewer answer
    per_array  apply the rule to each array by itself, not to all of them as one vector
    max_norm   an update of a larger L2 norm is set aside
    patience   seconds to wait for `min_available_nodes`; then the round goes on with those that are there
    The other arguments are those of Flower's FedAvg. The rule never reads what clients say of themselves (their
    "num-examples"), and without a function of one's own metrics are medians over the clients that sent them.

    Each reply is judged alone against what was sent: names, shapes, kind of numbers, NaN, Inf, norm. A bad, late,
    second or missing one is set aside, logged, kept in `set_aside` and counted in the round's metrics. Whoever sends
    other arrays than were sent is Byzantine, and known: f is less by one for each. The round is skipped (the model
    stays) when the rule is not defined for the answers that are left. Nothing a client sends raises.
    Arrays that are not floating point (counters) stay as the server has them. `seed` and the round draw the sample.
    """

    def __init__(
        self,
        rule: Rule,
        f: int = 0,
        *,
        per_array: bool = False,
        server_lr: float = 1.0,
        max_norm: float = inf,
        patience: float = 60.0,
        seed: int = 0,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
    ) -> None:
        if f < 0:
            raise Invalid(f"RobustStrategy.f = {f}: must be 0 or more")
        self.rule, self.f, self.per_array, self.server_lr = rule, f, per_array, server_lr
        self.max_norm, self.patience, self.seed = max_norm, patience, seed
        self.fraction_train, self.fraction_evaluate = fraction_train, fraction_evaluate
        self.min_train_nodes, self.min_evaluate_nodes = min_train_nodes, min_evaluate_nodes
        self.min_available_nodes, self.weighted_by_key = min_available_nodes, weighted_by_key
        self.arrayrecord_key, self.configrecord_key = arrayrecord_key, configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn or medians
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn or medians
        self.set_aside: list[SetAside] = []
        self._sent, self._asked = ArrayRecord(), list[Message]()
        self._previous: Tensor | None = None
        self._recall: dict[int, State] = {}  # what a rule that remembers keeps of each node
        self._shared: State | None = None
        if per_array and isinstance(rule, MemoryRule):
            raise Invalid(
                f"RobustStrategy.per_array = True: {type(rule).__name__} remembers whole updates; allowed is False"
            )

    def summary(self) -> None:
        log(
            INFO, "\t├──> Rule: %s, f = %d%s", self.rule, self.f, ", array by array" if self.per_array else ""
        )
        log(
            INFO,
            "\t└──> Fraction: train (%.2f) | evaluate (%.2f)",
            self.fraction_train,
            self.fraction_evaluate,
        )

    # ------------------------------------------------------------ what goes out
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._sent = arrays
        if server_round == 1:  # of another start
            self._previous, self._recall, self._shared = None, {}, None
        return self._ask(MessageType.TRAIN, server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self._ask(MessageType.EVALUATE, server_round, arrays, config, grid)

    def _ask(
        self, kind: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        training = kind == MessageType.TRAIN
        fraction = self.fraction_train if training else self.fraction_evaluate
        least = self.min_train_nodes if training else self.min_evaluate_nodes
        nodes = self._wait(grid, max(self.min_available_nodes, least)) if fraction else []
        size = min(len(nodes), max(least, int(len(nodes) * fraction)))
        chosen = random.Random(f"{self.seed}/{kind}/{server_round}").sample(nodes, size)
        config = ConfigRecord({**config, "server-round": server_round})
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        self._asked = [Message(content, node, kind) for node in sorted(chosen)]
        log(INFO, "%s: asked %d of %d nodes", kind, size, len(nodes))
        return self._asked

    def _wait(self, grid: Grid, least: int) -> list[int]:
        """The nodes that are there, sorted; waits for `least` of them, but not for ever."""
        until = time.monotonic() + self.patience
        while len(nodes := sorted(grid.get_node_ids())) < least and time.monotonic() < until:
            time.sleep(min(1.0, self.patience))
        if len(nodes) < least:
            log(
                WARNING,
                "%d of %d nodes are there after %g s: going on with these",
                len(nodes),
                least,
                self.patience,
            )
        return nodes

    # ------------------------------------------------------------ what comes back
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        layout = Layout.of(self._sent)
        base = layout.vector(self._sent)

        malformed = 0

        def read(reply: Message) -> tuple[Tensor, RecordDict]:
            nonlocal malformed
            try:
                vector = layout.vector(_arrays(reply))
            except Exception:
                malformed += 1
                raise
            return self._update(vector - base), reply.content

        answers = self._answers(server_round, replies, read)
        rows = [row for row, _ in answers.values()]
        metrics = self._metrics(self.train_metrics_aggr_fn, [content for _, content in answers.values()])
        try:
            if not rows or not layout.floating:
                raise Invalid(
                    "no answer is left" if layout.floating else "no array of floating-point numbers"
                )
            f = max(self.f - malformed, 0)
            self.rule.require(len(rows), f)
            aggregate, remember = self._aggregate(
                torch.stack(rows), f, list(answers), base, layout, server_round
            )
            moved = layout.record(base + self.server_lr * aggregate, self._sent)
            if not layout.vector(moved).isfinite().all():
                raise Invalid(f"{self.rule}: the answer is not finite")
        except Invalid as reason:
            log(WARNING, "round %s skipped, the model stays: %s", server_round, reason)
            return self._sent, metrics
        self._previous = aggregate
        remember()
        return moved, metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        contents = list(self._answers(server_round, replies, lambda reply: reply.content).values())
        return self._metrics(self.evaluate_metrics_aggr_fn, contents) if self._asked else None

    def _answers(
        self, server_round: int, replies: Iterable[Message], read: Callable[[Message], Any]
    ) -> dict[int, Any]:
        """What was read of each node's answer."""
        answers, aside = collect(server_round, self._asked, replies, read)
        self.set_aside += aside
        return answers

    def _update(self, update: Tensor) -> Tensor:
        """The update (d,), unless it is one that honest training may come to, and no rule should see."""
        if not update.isfinite().all():
            raise Invalid("arrays with NaN, Inf or numbers that are too large")
        norm = float(update.norm())
        if norm > self.max_norm:
            raise Invalid(f"an update of norm {norm:.3g}: allowed are {self.max_norm:.3g}")
        return update

    def _aggregate(
        self, rows: Tensor, f: int, nodes: list[int], base: Tensor, layout: Layout, server_round: int
    ) -> tuple[Tensor, Callable[[], None]]:
        """The answer, and what is to be called once it counts."""
        widths = layout.widths if self.per_array else [rows.shape[1]]
        before = self._previous.split(widths) if self._previous is not None else [None] * len(widths)
        generator = torch.Generator().manual_seed(
            random.Random(f"{self.seed}/rule/{server_round}").getrandbits(63)
        )
        if isinstance(self.rule, MemoryRule):
            own = [self._recall.get(node) or self.rule.own(rows[0]) for node in nodes]
            memory = {
                "own": {name: torch.stack([state[name] for state in own]) for name in own[0]},
                "shared": self.rule.shared(rows[0]) if self._shared is None else self._shared,
            }
            after = recalled(self.rule, memory, torch.arange(len(rows)), rows, f, base, self._previous)
            return after.answer(generator), partial(self._remember, nodes, after.memory)
        pieces = [
            self.rule(part.contiguous(), f, previous=last, generator=generator)
            for part, last in zip(rows.split(widths, dim=1), before, strict=True)
            if part.shape[1]
        ]
        return torch.cat(pieces), lambda: None

    def _remember(self, nodes: list[int], memory: Recall) -> None:
        for j, node in enumerate(nodes):
            self._recall[node] = {name: value[j] for name, value in memory["own"].items()}
        self._shared = memory["shared"]

    def _metrics(self, function: MetricsFn, contents: list[RecordDict]) -> MetricRecord:
        """The clients' metrics by `function`, where it can make something of them, and the counts of the round."""
        said, modest = MetricRecord(), [content for content in contents if _modest(content)]
        if len(modest) < len(contents):
            log(WARNING, "metrics of %d clients left out: too many", len(contents) - len(modest))
        try:
            said = MetricRecord({**function(modest, self.weighted_by_key)} if modest else {})
        except Exception as error:  # a function that trusts what clients send
            log(WARNING, "metrics left out: %s", error)
        said.update({"asked": len(self._asked), "accepted": len(contents)})  # whatever clients call theirs
        return said


def _arrays(reply: Message) -> ArrayRecord:
    records = list(reply.content.array_records.values())
    if len(records) != 1:
        raise Invalid(f"{len(records)} ArrayRecords: must be one")
    return records[0]


def _modest(content: RecordDict) -> bool:
    """Whether a client sent no more metrics than it takes a moment to look at."""
    records = content.metric_records.values()
    if len(content) > METRICS or sum(map(len, records)) > METRICS:
        return False
    sizes = [len(value) if isinstance(value, list) else 1 for record in records for value in record.values()]
    names = [len(name) for record in records for name in record]
    return sum(sizes) <= NUMBERS and sum(names) <= NUMBERS


def medians(contents: Sequence[RecordDict], weighted_by_key: str = "") -> MetricRecord:
    """The median of each metric over the clients that sent it, finite and in its most frequent shape."""
    sent: dict[str, list[Any]] = {}
    for content in contents:
        for record in content.metric_records.values():
            for name, value in record.items():
                number = np.asarray(value, np.float64)
                if number.ndim < 2 and isfinite(float(np.abs(number).sum())):
                    sent.setdefault(name, []).append(number)
    out = MetricRecord()
    for name, values in sent.items():
        shape = Counter(value.shape for value in values).most_common(1)[0][0]
        out[name] = np.median([value for value in values if value.shape == shape], axis=0).tolist()
    return out


# Short forms: Median(f=2) is RobustStrategy(rule=fedsim.strategies.Median(), f=2), with the same other arguments.
Bulyan = partial(RobustStrategy, rules.Bulyan())
GeometricMedian = partial(RobustStrategy, rules.GeometricMedian())
Krum = partial(RobustStrategy, rules.Krum())
MeanAroundMedian = partial(RobustStrategy, rules.MeanAroundMedian())
Median = partial(RobustStrategy, rules.Median())
MultiKrum = partial(RobustStrategy, rules.MultiKrum())
NNA = partial(RobustStrategy, rules.NNA())
# (on a model without running statistics: signs would take a variance below zero)
SignMajority = partial(RobustStrategy, rules.MajorityVote(), server_lr=1e-3)
TrimmedMean = partial(RobustStrategy, rules.TrimmedMean())
