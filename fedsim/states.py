"""What clients keep between rounds: a row for each that has taken part, in memory up to a budget, then in a file.

A round reads and writes the rows of those who take part and touches no other, so absent clients cost no time; one that
never took part costs no memory and no disk either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.machine.mapped import Space
from fedsim.machine.rowfile import RowFile
from fedsim.machine.threads import each
from fedsim.types import State

Ids = NDArray[np.int64]


class States:
    """The clients' states after a round; `after` gives those after the next. A state before the first round is `first`.

    The rows of the last round stay as they came, without a copy, until other clients have new ones. Only the newest
    value is of use: it shares its shelf with those before it.
    """

    def __init__(self, shelf: Shelf, newest: tuple[Ids, State] | None = None) -> None:
        self._shelf, self._newest, self._settled = shelf, newest, newest is None

    @classmethod
    def start(
        cls,
        first: State,
        clients: int,
        *,
        space: Space | None = None,
        file: Path | None = None,
        saved: dict[str, Any] | None = None,
    ) -> States:
        """The states before the first round, or those of a checkpoint.

        first    a client's state before it takes part for the first time
        clients  how many may ever take part
        space    what rows may take in memory
        file     where rows lie beyond that, and at a checkpoint; by default a temporary file
        saved    the table of a checkpoint; raises `Invalid` where the file does not hold its rows
        """
        return cls(Shelf(first, clients, space or Space(), file, saved))

    def of(self, ids: Ids) -> State:
        """The states (k, ...) of clients `ids`, to be read only."""
        if self._newest is not None and np.array_equal(ids, self._newest[0]):
            return self._newest[1]
        found = self._shelf.get(ids)
        if self._newest is not None and not self._settled:  # not put there: that round may not count yet
            _, here, there = np.intersect1d(ids, self._newest[0], assume_unique=True, return_indices=True)
            to, rows = (torch.from_numpy(part).to(self._shelf.device) for part in (here, there))
            for name, value in found.items():
                value[to] = self._newest[1][name][rows]
        return found

    def after(self, ids: Ids, states: State) -> States:
        """The states once clients `ids` have the new ones (k, ...)."""
        if self._newest is not None and not np.array_equal(ids, self._newest[0]):
            self._settle()
        return States(self._shelf, (ids, states))

    @property
    def unsaved(self) -> int:
        """Bytes that a checkpoint would write."""
        return self._shelf.unsaved + self._shelf.bytes * (0 if self._newest is None else len(self._newest[0]))

    @property
    def size(self) -> int:
        """Bytes that the states of all clients take who have one."""
        return self._shelf.bytes * len({*self._shelf.place, *self._shelf.file.slots, *self._newest_ids})

    @property
    def _newest_ids(self) -> list[int]:
        return [] if self._newest is None else self._newest[0].tolist()

    @contextmanager
    def saving(self) -> Iterator[dict[str, Any]]:
        """The table of a checkpoint, to be written in the body; the rows that it names are on disk by then.

        A run that is killed finds the rows of the last table that was written whole: no other row takes their place.
        """
        yield self._shelf.flush(self._newest)
        self._shelf.file.keep()

    def close(self) -> None:
        """Close the file."""
        self._shelf.file.close()

    def _settle(self) -> None:
        if self._newest is not None and not self._settled:
            self._shelf.put(*self._newest)  # where that was interrupted, the same rows again
            self._settled = True


class Shelf:
    """Rows by client: the first ones to come in memory, as many as fit, the others in the file."""

    def __init__(
        self, first: State, clients: int, space: Space, file: Path | None, saved: dict[str, Any] | None
    ) -> None:
        self.first, self.space = first, space
        self.bytes = sum(value.numel() * value.element_size() for value in first.values())
        self.device = next((value.device for value in first.values()), torch.device("cpu"))
        self.room = min(clients, int(space.left * 2**30) // max(1, self.bytes))
        self.rows: State = {}
        self.place: dict[int, int] = {}  # of clients, in `rows`
        self.changed: set[int] = set()  # clients whose row in memory is newer than the file's
        self.file = RowFile(file, self.bytes, saved)

    @property
    def unsaved(self) -> int:
        return len(self.changed) * self.bytes

    def get(self, ids: Ids) -> State:
        clients = ids.tolist()
        here, place, there, never = self._where(clients)
        found = {name: self.space.empty(v, len(clients), *v.shape) for name, v in self.first.items()}
        if self.rows and len(here) == len(clients):
            return {name: torch.index_select(self.rows[name], 0, place, out=found[name]) for name in found}
        for name, value in found.items():
            if len(here):
                value.index_copy_(0, here, self.rows[name].index_select(0, place))
            if len(never):
                value[never] = self.first[name]

        def read(j: int) -> None:
            self.file.read(clients[j], [value[j : j + 1] for value in found.values()])

        self._each(read, there)
        return found

    def put(self, ids: Ids, states: State) -> None:
        if not self.bytes:
            return
        if not self.rows:  # memory that nobody has written to is not taken yet
            self.rows = {name: value.new_empty(self.room, *value.shape) for name, value in self.first.items()}
        clients = ids.tolist()
        for client in clients:
            if client not in self.place and len(self.place) < self.room:
                self.place[client] = len(self.place)
            elif client not in self.place:
                self.file.claim(client)
        here, place, there, _ = self._where(clients)
        for name, value in self.rows.items():
            new = states[name] if len(here) == len(clients) else states[name].index_select(0, here)
            value.index_copy_(0, place, new)

        def write(j: int) -> None:
            self.file.write(clients[j], [states[name][j : j + 1] for name in self.first])

        self._each(write, there)
        self.changed.update(client for client in clients if client in self.place)

    def _where(self, clients: Sequence[int]) -> tuple[Tensor, Tensor, list[int], list[int]]:
        """The indices of clients in memory and their places there; the indices of those in the file, and nowhere."""
        place = torch.tensor([self.place.get(client, -1) for client in clients], dtype=torch.int64)
        here = (place >= 0).nonzero()[:, 0]
        others = [j for j, client in enumerate(clients) if client not in self.place]
        there = [j for j in others if clients[j] in self.file.slots]
        never = [j for j in others if clients[j] not in self.file.slots]
        return here.to(self.device), place[here].to(self.device), there, never

    def flush(self, newest: tuple[Ids, State] | None) -> dict[str, Any]:
        """All rows into the file; its table."""
        if self.bytes:
            ids, states = newest or (np.zeros(0, np.int64), {})
            for client in self.changed.difference(ids.tolist()):
                place = self.place[client]
                self._save(client, [value[place : place + 1] for value in self.rows.values()])
            for j, client in enumerate(ids.tolist()):
                self._save(client, [states[name][j : j + 1] for name in self.first])
            self.file.sync()
            self.changed.clear()
        return self.file.table()

    def _save(self, client: int, row: Sequence[Tensor]) -> None:
        self.file.claim(client)
        self.file.write(client, row)

    def _each(self, work: Callable[[int], None], rows: Sequence[int]) -> None:
        """`work` on rows, on as many threads as torch may use where they are long."""
        if len(rows) * self.bytes > 2**22:
            for _ in each(work, rows, self.device.type):
                pass
        else:
            for row in rows:
                work(row)
