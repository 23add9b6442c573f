"""Rules that remember clients: what they keep of each, and one round of such a rule."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fedsim.machine.threads import one_thread
from fedsim.types import Rule, State

Recall = dict[str, State]  # "own": entries (n, ...) of each client, by its number; "shared": of all together


class MemoryRule(Rule):
    """A rule that looks back: the memory goes in and comes out, kept by the server, of whoever took part.

    In each round `remember` weighs the rows, and `inner` answers from those that count, times their weights. Called as
    a rule that is alone with its rows, it answers as in a first round.
    of_moves  rows are compared with moves of the model, and so have as many numbers as it
    """

    of_moves: ClassVar[bool] = False

    @property
    @abstractmethod
    def inner(self) -> Rule:
        """The rule that answers."""

    def own(self, row: Tensor) -> State:
        """What is kept of a client before its first round; `row` (d,) says of how many numbers, and where."""
        return {}

    def shared(self, row: Tensor) -> State:
        """What is kept of all together before the first round."""
        return {}

    @abstractmethod
    def remember(
        self, own: State, shared: State, rows: Tensor, *, x: Tensor, previous: Tensor | None
    ) -> tuple[State, State, Tensor]:
        """Both memories after a round, and the weight (k,), 0 or more, of each of its rows (k, d).

        own, rows  of the k clients who took part, in one order; rows are finite
        x          the model at which the clients worked; `previous` is the last answer, None at first
        """

    def start(self, clients: int, row: Tensor) -> Recall:
        """The memory before the first round of a run with so many clients."""
        own = {name: value.expand(clients, *value.shape).clone() for name, value in self.own(row).items()}
        return {"own": own, "shared": self.shared(row)}

    def max_f(self, n: int) -> int:
        return self.inner.max_f(n)

    @one_thread()
    def __call__(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        return self._alone(rows, f, previous).answer(generator)

    @one_thread()
    def influence(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor | None:
        """The weight (n,) of each row in that answer; None where the inner rule cannot say."""
        return self._alone(rows, f, previous).influence(generator)

    @property
    def linear(self) -> bool:
        """Whether the answer is a combination of rows with one weight for all columns."""
        return bool(getattr(self.inner, "linear", False))

    def _alone(self, rows: Tensor, f: int, previous: Tensor | None) -> Recalled:
        self.require(len(rows), f)
        ids = torch.arange(len(rows), device=rows.device)
        return recalled(
            self, self.start(len(rows), rows[0]), ids, rows, f, torch.zeros_like(rows[0]), previous
        )


@dataclass(frozen=True)
class Recalled:
    """What came of a round before the inner rule answers: the memory after it, and the rows that count."""

    rule: Rule
    memory: Recall
    weights: Tensor  # (n,), of each row
    rows: Tensor  # (m, d), of those with a weight, times it
    f: int
    previous: Tensor | None

    def answer(self, generator: Generator | None = None) -> Tensor:
        if not len(self.rows):
            return self.rows.new_zeros(self.rows.shape[1])
        return self.rule(self.rows, self.f, previous=self.previous, generator=generator)

    def influence(self, generator: Generator | None = None) -> Tensor | None:
        """The weight (n,) of each row in the answer; None where the inner rule cannot say."""
        if not hasattr(self.rule, "influence") or not len(self.rows):
            return None
        weights: Tensor = self.weights.double().cpu()
        inner = self.rule.influence(self.rows, self.f, previous=self.previous, generator=generator)
        weights[weights > 0] *= inner
        return weights


@one_thread()
def recalled(
    rule: MemoryRule, memory: Recall, ids: Tensor, rows: Tensor, f: int, x: Tensor, previous: Tensor | None
) -> Recalled:
    """A round of clients `ids` with rows (n, d), f of them Byzantine.

    Rows with NaN or Inf are nobody's: their clients are as good as absent. Every row that does not count was a
    Byzantine one. Where the inner rule is not defined for what is left, all finite rows count alike.
    """
    fine = rows.isfinite().all(1)
    who, some = ids[fine], rows[fine]
    weights = rows.new_zeros(len(rows))
    if len(who):
        own = {name: value[who] for name, value in memory["own"].items()}
        own, shared, weights[fine] = rule.remember(own, memory["shared"], some, x=x, previous=previous)
        everyone = {name: value.index_copy(0, who, own[name]) for name, value in memory["own"].items()}
        memory = {"own": everyone, "shared": shared}
    n = int((weights > 0).sum())
    if rule.inner.max_f(n) < 0:
        weights, n = fine.to(rows), len(who)
    counted = weights > 0
    left = min(max(0, f - (len(rows) - n)), max(0, rule.inner.max_f(n)))
    return Recalled(rule.inner, memory, weights, rows[counted] * weights[counted, None], left, previous)
