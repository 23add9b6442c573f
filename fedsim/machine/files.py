"""Files written whole or not at all, and what goes wrong with them said in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.check import Invalid


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while writing (a full disk, a read-only folder) into one sentence."""
    try:
        yield
    except OSError as error:
        raise Invalid(f"out = {folder}: cannot be written ({error.strerror or error})") from None


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file so that it holds the old content or the new one, whenever the process or the machine dies."""
    write_parts(path, [content])


def write_parts(path: Path, parts: Iterable[bytes | memoryview], durable: bool = True) -> None:
    """As `write_whole`, with the parts one after the other. Not `durable`: only a process may die, not the machine."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            for part in parts:
                file.write(part)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
        if not durable:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # what the new file takes the place of may be overwritten from here on
        finally:
            os.close(folder)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
