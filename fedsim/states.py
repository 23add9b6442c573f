"""What clients keep between rounds: a row for each that has taken part, in memory up to a budget, then in a file.

A round reads and writes the rows of those who take part and touches no other, so absent clients cost no time; one that
never took part costs no memory and no disk either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.check import Invalid
from fedsim.record import writing
from fedsim.spill import Space
from fedsim.threads import each
from fedsim.types import State

Ids = NDArray[np.int64]


class States:
    """The clients' states after a round; `after` gives those after the next. A state before the first round is `first`.

    The rows of the last round stay as they came, without a copy, until other clients are asked for. Only the newest
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
        self._settle()
        return self._shelf.get(ids)

    def after(self, ids: Ids, states: State) -> States:
        """The states once clients `ids` have the new ones (k, ...)."""
        if self._newest is not None and not np.array_equal(ids, self._newest[0]):
            self._settle()
        return States(self._shelf, (ids, states))

    @property
    def unsaved(self) -> int:
        """Bytes that a checkpoint would write."""
        return self._shelf.unsaved + self._shelf.bytes * (0 if self._newest is None else len(self._newest[0]))

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


class RowFile:
    """Rows of one size in a file. A slot that a checkpoint counts on is never written to: a row moves instead.

    Read and written by position, not mapped: a full disk is then an error that can be told, not a signal that kills,
    and the rows count as the system's cache, not as the process's memory.
    """

    def __init__(self, path: Path | None, size: int, saved: dict[str, Any] | None) -> None:
        self.path, self.size = path, size
        self.slots: dict[int, int] = {}  # of clients
        self.kept: set[int] = set()  # slots that the last checkpoint counts on
        self.free: list[int] = []
        self.end = 0
        self._file: Any = None
        if saved is not None and len(saved["ids"]):
            self._reopen(saved)

    def _reopen(self, saved: dict[str, Any]) -> None:
        assert self.path is not None
        self.slots = dict(zip(saved["ids"].tolist(), saved["slots"].tolist(), strict=True))
        length = self.path.stat().st_size if self.path.exists() else 0
        if saved["size"] != self.size or length < (1 + max(self.slots.values())) * self.size:
            raise Invalid(
                f"{self.path}: does not hold the clients' states that the checkpoint beside it counts on"
            )
        self._file = self.path.open("r+b")
        self.end = length // self.size
        self.keep()

    def claim(self, client: int) -> None:
        """A slot for a new row of the client."""
        slot = self.slots.get(client)
        if slot is None or slot in self.kept:
            if self._file is None:
                self._open()
            if self.free:
                self.slots[client] = self.free.pop()
            else:
                self.end += 1
                self.slots[client] = self.end - 1

    def write(self, client: int, row: Sequence[Tensor]) -> None:
        """Raises `Invalid` where the disk is full."""
        with writing(self._folder):
            if os.pwritev(self._file.fileno(), _bytes(row), self.slots[client] * self.size) < self.size:
                raise OSError("no space left for clients' states")

    def read(self, client: int, into: Sequence[Tensor]) -> None:
        here = [torch.empty_like(part, device="cpu") if part.is_cuda else part for part in into]
        if os.preadv(self._file.fileno(), _bytes(here), self.slots[client] * self.size) < self.size:
            raise Invalid(f"{self._folder}: ends before the state of client {client}")
        for part, came in zip(into, here, strict=True):
            if part is not came:
                part.copy_(came)

    def sync(self) -> None:
        if self._file is not None:
            with writing(self._folder):
                os.fsync(self._file.fileno())

    def table(self) -> dict[str, Any]:
        ids, slots = (torch.tensor(list(side)) for side in (self.slots, self.slots.values()))
        return {"ids": ids, "slots": slots, "size": self.size}

    def keep(self) -> None:
        """The table is in a checkpoint: what it names stays, all else is free."""
        self.kept = set(self.slots.values())
        self.free = [slot for slot in range(self.end) if slot not in self.kept]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def _folder(self) -> Path:
        return Path(gettempdir()) if self.path is None else self.path.parent

    def _open(self) -> None:
        with writing(self._folder):
            self._file = TemporaryFile() if self.path is None else self.path.open("w+b")  # noqa: SIM115


def _bytes(row: Sequence[Tensor]) -> list[memoryview]:
    """The memory of tensors (1, ...)."""
    return [part.cpu().contiguous().view(-1).view(torch.uint8).numpy().data for part in row]
