"""What a client keeps between its messages, so that it and the server never disagree on what has happened.

A client's new state counts from when the server says that it took the message in. Until then state and message wait;
the same question gets the same message again, without a second draw of noise, and no other question of that round any.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.types import State


@dataclass(frozen=True)
class Pending:
    """An answer that was given: to which question, and the state that goes with it."""

    round: int
    question: str  # digest of all that it was computed from
    state: State
    row: Tensor | None  # the message; None where computing it failed
    held: Tensor | None = None  # what the server broadcast then, where later differences are from it


@dataclass(frozen=True)
class Memory:
    """A client's state after round `accepted`, the last whose message the server took in (-1: none yet, no state)."""

    state: State | None = None
    accepted: int = -1
    secret: int = 0  # on a device: what its batches are drawn from in this run
    pending: Pending | None = None
    held: Tensor | None = None  # of round `accepted`, as in `Pending`

    def settle(self, accepted: int) -> Memory:
        """The memory once the server has said what it took in last; raises `Invalid` where that cannot be."""
        if self.pending and self.pending.round == accepted:
            return Memory(self.pending.state, accepted, self.secret, held=self.pending.held)
        if accepted == self.accepted:
            return self
        raise Invalid(
            f"the server took in this client's message of round {accepted} last, the client's own state is that after "
            f"round {self.accepted}: one of the two lost its memory, and the run cannot go on with this client"
        )

    def earlier(self, round: int, question: str) -> Pending | None:
        """The answer that this very question had before; raises `Invalid` where the round had another one."""
        last = self.accepted if self.pending is None else self.pending.round
        if round > last:
            return None
        if self.pending and (round, question) == (self.pending.round, self.pending.question):
            return self.pending
        raise Invalid(
            f"round {round}: this client is past round {last}, and answers a round once; allowed is a later one"
        )

    def answers_as(self, other: Memory) -> bool:
        """Whether the answers that wait in both are the same, to the bit."""
        mine, its = self.pending, other.pending
        return (
            mine is not None
            and its is not None
            and (mine.round, mine.question) == (its.round, its.question)
            and _bytes(mine.row) == _bytes(its.row)
        )

    def dump(self) -> bytes:
        buffer = BytesIO()
        torch.save(asdict(self), buffer)
        return buffer.getvalue()

    @classmethod
    def load(cls, data: bytes) -> Memory:
        saved: dict[str, Any] = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        pending = saved.pop("pending")
        return cls(**saved, pending=Pending(**pending) if pending else None)


def _bytes(row: Tensor | None) -> bytes | None:
    return None if row is None else row.numpy().tobytes()
