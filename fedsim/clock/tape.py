"""The arrivals of a run on devices, as its record keeps them: so that any engine makes the same run again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite
from pathlib import Path
from typing import Any, ClassVar

from fedsim.check import File, Invalid
from fedsim.clock.presence import NEVER
from fedsim.clock.spell import Load, Spell, Timing
from fedsim.keys import Keys


@dataclass(frozen=True)
class Line:
    """An attempt of a client that is over: its message came at `seconds`.

    left  it failed then, and the client was handed the model anew at `seconds`; None where a message came
    """

    client: int
    attempt: int
    seconds: float
    left: float | None = None

    def text(self) -> str:
        """One line of JSON, in which floats are what they are to the bit."""
        failed = {} if self.left is None else {"left": self.left}
        told = {"client": self.client, "attempt": self.attempt, "seconds": self.seconds, **failed}
        return json.dumps(told) + "\n"

    @classmethod
    def of(cls, text: str) -> Line:
        """Raises `ValueError` for anything else than a line's text."""
        read = json.loads(text)
        if not isinstance(read, dict) or not {"client", "attempt", "seconds"} <= set(read) <= set(
            cls.__annotations__
        ):
            raise ValueError("must be a table of client, attempt, seconds and, where it failed, left")
        whole = all(type(read[name]) is int and read[name] >= 0 for name in ("client", "attempt"))
        if not whole or not all(map(_seconds, (read["seconds"], read.get("left", 0)))):
            raise ValueError("client and attempt must be whole numbers from 0 on, seconds finite ones")
        if read.get("left", 0) > read["seconds"]:
            raise ValueError("left comes after seconds")
        return cls(**read)


@dataclass(frozen=True)
class Tape(Timing):
    """The `tape.jsonl` of a deployment's record: the run's arrivals, in order, when they came.

    With it the loop engine makes a run in test mode again to the bit. Attempts that are not on it came to nothing.
    Raises `Invalid` for a file that is no tape of so many clients.
    """

    deadline: ClassVar[None] = None
    late: ClassVar[str] = "cut"
    file: File

    @property
    def end(self) -> float:
        return inf

    def absence(self, keys: Keys, client: int, since: float, until: float) -> tuple[float, float]:
        return NEVER

    def spell(
        self, keys: Keys, client: int, attempt: int, now: float, load: Load, *, hostile: bool = False
    ) -> Spell:
        clients, lines = _read(
            self.file, Path(self.file).stat().st_mtime_ns if Path(self.file).exists() else 0
        )
        if clients > keys.clients:
            raise Invalid(
                f"Tape.file = {self.file}: has client {clients - 1}, the experiment {keys.clients} clients"
            )
        line = lines.get((client, attempt))
        if line is None or line.left is not None:  # what was asked may have been answered: it counts as sent
            return Spell(now, now, inf, *_absent(line))
        return Spell(now, now, line.seconds)


def _absent(line: Line | None) -> tuple[float, float]:
    return NEVER if line is None or line.left is None else (line.left, line.seconds)


@lru_cache(maxsize=4)
def _read(file: str, changed: int) -> tuple[int, dict[tuple[int, int], Line]]:
    """How many clients a tape has at least, and its lines."""
    try:
        texts = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"Tape.file = {file}: cannot be read ({error})") from None
    lines: dict[tuple[int, int], Line] = {}
    last = -inf
    for number, text in enumerate(texts, 1):
        try:
            line = Line.of(text)
        except ValueError as error:
            raise Invalid(f"Tape.file = {file}: line {number}: {error}") from None
        if line.seconds <= last or (line.client, line.attempt) in lines:
            raise Invalid(f"Tape.file = {file}: line {number}: comes twice, or before the line above it")
        lines[line.client, line.attempt], last = line, line.seconds
    return 1 + max((client for client, _ in lines), default=-1), lines


def _seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0
