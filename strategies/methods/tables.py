"""Asynchronous methods for clients whose data differ: the server keeps a row of each, and the rule sees them all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.asynchronous import Asynchronous, Due
from fedsim.check import ClipNorm, Natural, NonNegative
from fedsim.method import ServerEnv
from fedsim.schedule import Rate, rate
from fedsim.strategies.methods.traits import Clipped
from fedsim.types import State


@dataclass(frozen=True)
class Table(Clipped, Asynchronous):
    """Clients send gradients, clipped to norm tau, and the server steps x <- x - lr RAgg(rows), a row of each client.

    missing  it goes on without so many of the n rows: with f of them nobody who stays away can stall it
    """

    lr: Rate
    missing: Natural = 0
    tau: ClipNorm = float("inf")

    def rows(self, n: int) -> int:
        return n - self.missing

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "mean": blank(x, n), "count": x.new_zeros(n)}

    def enough(self, count: Tensor) -> bool:
        """Whether all clients but the `missing` ones are in."""
        return int((count > 0).sum()) >= len(count) - self.missing

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        return {**state, "x": aggregate.mul(-rate(self.lr, env.round)).add_(state["x"])}


def blank(x: Tensor, n: int) -> Tensor:
    """Zeros (n, d). On a CPU they take no memory before somebody writes there: a large table moves to a file first."""
    if x.device.type != "cpu":
        return x.new_zeros(n, x.numel())
    return torch.from_numpy(np.zeros(n * x.nbytes, np.uint8)).view(x.dtype).view(n, -1)


def add(mean: Tensor, count: Tensor, client: int, row: Tensor) -> None:
    """One more gradient in a client's running mean: mean_i <- mean_i + (row - mean_i) / count_i."""
    count[client] += 1
    mean[client].lerp_(row, 1 / float(count[client]))


@dataclass(frozen=True)
class Ringleader(Table):
    """Ringleader ASGD, arXiv:2509.22860: n updates a round, the model of each client renewed once in a round.

    Phase 1: until every client i has sent a gradient, S_i <- S_i + g, b_i <- b_i + 1. Then, and in phase 2 whenever the
    first gradient of a client that has not the new model comes, x <- x - lr (1/n) sum_i S_i / b_i, and x goes to that
    client. What the others send meanwhile is for the next round's table. Rows are S_i / b_i.
    resend   who goes on without an update is handed the server's model of that time, as in the released code
    missing  not of the paper: a round ends without the last clients; they are handed the model when they come
    """

    resend: bool = False

    def server_init(self, x: Tensor, n: int) -> State:
        state = super().server_init(x, n)
        return {
            **state,
            "next mean": blank(x, n),
            "next count": x.new_zeros(n),
            "pending": torch.zeros(n, dtype=torch.bool),  # in phase 2: who has not the new model
            "behind": torch.zeros(n, dtype=torch.bool),  # whom the last round did not wait for
            "collects": torch.tensor(True),  # phase 1
            "hand": torch.tensor(False),  # whether the client of this message is handed the model
        }

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        mean, count, pending = state["mean"], state["count"], state["pending"]
        state["hand"], state["behind"][client] = state["behind"][client].clone(), False
        first = bool(state["collects"])
        if first:
            add(mean, count, client, row)
            if not self.enough(count):
                return state, None
            state["collects"] = torch.tensor(False)
            pending.fill_(True)
        elif pending[client]:
            add(mean, count, client, row)
        else:
            add(state["next mean"], state["next count"], client, row)
            return state, None
        pending[client] = False
        return state, Due.of_table(mean, count > 0, None if first else client)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        state = super().step(state, aggregate, env)
        if int(state["pending"].sum()) > self.missing:
            return state
        mean, count = state["mean"].zero_(), state["count"].zero_()
        state |= {
            "mean": state["next mean"],
            "count": state["next count"],
            "next mean": mean,
            "next count": count,
        }
        state["behind"] |= state["pending"]
        return {**state, "collects": torch.tensor(True)}

    def restart(self, state: State, client: int, moved: bool) -> list[int]:
        return [client] if moved or self.resend or state["hand"] else []


@dataclass(frozen=True)
class Malenia(Table):
    """Malenia SGD (arXiv:2305.12387): all work at one model until ((1/n) sum_i 1 / b_i)^-1 > S / n, b_i gradients each.

    Then x <- x - lr (1/n) sum_i S_i / b_i, S_i the sum of client i's gradients; S = 0: every client at least once.
    stops  who is at work then begins anew at the new model; otherwise it finishes, and what it sends does not count
    """

    S: NonNegative = 0.0
    stops: bool = True

    def server_init(self, x: Tensor, n: int) -> State:
        return {**super().server_init(x, n), "stale": torch.tensor(False)}

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        state["stale"] = torch.tensor(age > 0)
        if age > 0:
            return state, None
        mean, count = state["mean"], state["count"]
        add(mean, count, client, row)
        known = count > 0
        if not self.enough(count) or float((1 / count[known]).mean()) * self.S >= len(count):
            return state, None
        return state, Due.of_table(mean, known)

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        state["mean"].zero_()
        state["count"].zero_()
        return super().step(state, aggregate, env)

    def restart(self, state: State, client: int, moved: bool) -> list[int]:
        if moved and self.stops:
            return list(range(len(state["count"])))
        return [client] if moved or state["stale"] else []


@dataclass(frozen=True)
class IA2SGD(Table):
    """IA2SGD: x <- x - lr (1/n) sum_i g_i of the last gradient of every client, once there is one of each.

    A message takes the place of its client's last one, and is an update; the client is handed the new model. As in the
    released code of Ringleader ASGD (arXiv:2509.22860).
    """

    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        mean, count = state["mean"], state["count"]
        mean[client], count[client] = row, 1
        return state, Due.of_table(mean, count > 0, client) if self.enough(count) else None
