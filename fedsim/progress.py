"""Live progress of a run: round, accuracy, epsilon spent, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0  # without a terminal, a line at most this often


class Live:
    """A progress bar on a terminal or in a notebook that has ipywidgets, a line now and then elsewhere.

    On standard error, so that output stays clean.
    """

    def __init__(self, label: str, rounds: int, quiet: bool = False) -> None:
        self.label, self.rounds = label, rounds
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.began = self.printed = time.monotonic()
        self.first: int | None = None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(compact=True),
        )
        widgets = self.console.is_jupyter and find_spec("ipywidgets") is not None
        self.drawn = self.console.is_terminal or widgets
        self.bar = Progress(*columns, console=self.console, disable=not self.drawn)
        self.task = self.bar.add_task(label, total=rounds, facts="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, round: int, metrics: dict[str, Any]) -> None:
        facts = f"{round}/{self.rounds}" + figures(metrics)
        self.bar.update(self.task, completed=round, facts=facts)  # in 80 columns beside a label of 25
        now = time.monotonic()
        self.first = self.first or round
        if not self.drawn and (now - self.printed > PLAIN_SECONDS or round == self.rounds):
            done = round - self.first + 1
            left = (now - self.began) / done * (self.rounds - round)
            self.console.print(f"{self.label}: round {facts}, {lasting(left)} left")
            self.printed = now


def lasting(seconds: float) -> str:
    """A time in words, as short as it is rough: 42 s, 7 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def figures(metrics: Mapping[str, Any]) -> str:
    """The newest figures of a run, as far as there are any, each after a comma; an accuracy in percent."""
    shown = {"pilot": "pilot runs {:.0%}", "accuracy": "accuracy {:.1%}", "epsilon": "epsilon {:.2f}"}
    parts = [form.format(metrics[name]) for name, form in shown.items() if metrics.get(name) is not None]
    return "".join(f", {part}" for part in parts)
