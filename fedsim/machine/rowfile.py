"""Rows of one size in a file, by slots that a checkpoint may count on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.machine.files import writing


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
        here = [part if part.device.type == "cpu" else torch.empty_like(part, device="cpu") for part in into]
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
