"""Arrivals of an asynchronous run on devices, on the server's disk: a tape to replay, and messages until they count."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.clock.tape import Line
from fedsim.machine.files import write_whole, writing

TAPE = "tape.jsonl"


@dataclass
class Arrivals:
    """The tape in a record's folder, and beside it the message (d,) of each of its last lines.

    An arrival is on the disk before anything follows from it: a server that dies takes up from its last checkpoint the
    arrivals after that as they were, and asks no device for a message that it has sent.
    """

    folder: Path
    lines: list[Line] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, resume: bool) -> Arrivals:
        """What is there, or none where the run begins anew; a last line that was cut off is none."""
        made = cls(folder)
        with writing(folder):
            if not resume:
                made.tape.unlink(missing_ok=True)
                rmtree(made.rows, ignore_errors=True)
            made.rows.mkdir(parents=True, exist_ok=True)
            text = made.tape.read_text() if made.tape.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                write_whole(made.tape, whole.encode())
        try:
            made.lines = [Line.of(line) for line in whole.splitlines()]
        except ValueError as error:
            raise Invalid(f"{made.tape}: is damaged ({error}); allowed is a new folder") from None
        return made

    @property
    def tape(self) -> Path:
        return self.folder / TAPE

    @property
    def rows(self) -> Path:
        return self.folder / "arrivals"

    def append(self, line: Line, row: Tensor | None) -> None:
        """One more line; its message is written first."""
        with writing(self.folder):
            if row is not None:
                content = BytesIO()
                np.save(content, row.cpu().numpy())
                write_whole(self._row(len(self.lines)), content.getvalue())
            with self.tape.open("a") as file:
                file.write(line.text())
                file.flush()
                os.fsync(file.fileno())
        self.lines.append(line)

    def row(self, number: int) -> Tensor:
        """The message of a line; raises `Invalid` where it is not there any more."""
        try:
            return torch.from_numpy(np.load(self._row(number)))
        except (OSError, ValueError) as error:
            raise Invalid(f"{self._row(number)}: cannot be read ({error}); allowed is a new folder") from None

    def forget(self, before: int) -> None:
        """No checkpoint needs the messages of lines before this one any more."""
        for path in self.rows.glob("*.npy"):
            if int(path.stem) < before:
                path.unlink(missing_ok=True)

    def _row(self, number: int) -> Path:
        return self.rows / f"{number}.npy"
