"""What an asynchronous method is: a server that acts on each message as it comes, on the experiment's clock."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from fedsim.method import Method
from fedsim.types import State


@dataclass(frozen=True)
class Due:
    """Rows (m, d) that are to be aggregated now, and the clients (m,) whose they are.

    Or a table (n, d) with a row of each client, of which only those of the clients `ids` (m,) are meant.
    changed  the one client whose row of the table is another than when rows were last due; None: any may be
    """

    rows: Tensor
    ids: Tensor
    changed: int | None = None

    @classmethod
    def of_table(cls, table: Tensor, known: Tensor, changed: int | None = None) -> Due:
        """Those rows of a table (n, d), one of each client, that are `known` (n,)."""
        return cls(table, known.nonzero()[:, 0], changed)


class Asynchronous(Method):
    """A server that acts on single messages: `arrive`, then `step` where rows are due, then `restart`.

    Each client works at the model that it was handed last. One whose message is in goes on at that model, unless
    `restart` names it: then it is handed the server's. Others that `restart` names drop what they are at work on.
    The server's state is the method's own: `arrive` and `step` may write over its tensors, other than the model, so
    that a table of n rows is never copied.
    """

    def rows(self, n: int) -> int:
        """The least number of rows that are ever due, of n clients; here a row of each."""
        return n

    def byzantine_rows(self, f: int, n: int) -> int:
        """How many of these are assumed to be of f Byzantine clients among n."""
        return f

    @abstractmethod
    def arrive(self, state: State, row: Tensor, client: int, age: int) -> tuple[State, Due | None]:
        """The state after a client's message (d,), and what is to be aggregated; None: the model stays.

        age  updates of the model since the client was handed its own
        """

    def restart(self, state: State, client: int, moved: bool) -> list[int]:
        """Whom to hand the model after that message; `moved`: it is a new one."""
        return [client]


class Buffered(Asynchronous):
    """A method that aggregates `buffer` messages at a time, in the order in which they come.

    With `distinct` a client's newer message takes the place of its older one, so that f clients are f rows at most;
    otherwise a client that is fast may fill the buffer, and f is assumed to be their share of it.
    """

    buffer: int
    distinct: bool

    def rows(self, n: int) -> int:
        return self.buffer

    def byzantine_rows(self, f: int, n: int) -> int:
        return min(f, self.buffer) if self.distinct else ceil(f * self.buffer / n)

    def server_init(self, x: Tensor, n: int) -> State:
        room = self.buffer if self.buffer > 1 else 0  # a single one does not wait
        senders = torch.full((room,), -1, device=x.device)
        return {"x": x, "rows": x.new_empty(room, x.numel()), "senders": senders}

    def put(self, state: State, row: Tensor, client: int) -> Due | None:
        """Have a message wait; all of them where they are enough, and the buffer is empty again."""
        if self.buffer == 1:
            return Due(row[None], torch.tensor([client], device=row.device))
        rows, senders = state["rows"], state["senders"]
        own = (senders == client).nonzero()[:, 0] if self.distinct else senders[:0]
        place = int(own[0]) if len(own) else int((senders >= 0).sum())
        rows[place], senders[place] = row, client
        if (senders < 0).any():
            return None
        ids = senders.clone()
        senders.fill_(-1)
        return Due(rows, ids)
