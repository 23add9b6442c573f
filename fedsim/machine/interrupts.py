"""Ctrl-C waits until what must stay whole is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held() -> Iterator[list[bool]]:
    """KeyboardInterrupt comes at the end of the body; until then the list, empty at first, says that it will.

    Only the main thread gets signals; in any other the body runs as it is.
    """
    asked: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: Any = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt
