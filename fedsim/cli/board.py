"""Live progress of a sweep: a line for the whole, with the time left, and one for each worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fedsim.experiments.sweep.workers import Event, Job
from fedsim.progress import PLAIN_SECONDS, figures, lasting


class Board:
    """Bars on a terminal, a line now and then elsewhere; on standard error. Work left is counted in rounds."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.stage, self.total, self.printed = "", 0, 0.0
        self.over, self.done_rounds, self.began = 0, 0, 0.0
        self.left: dict[str, int] = {}  # rounds of jobs that are not over
        self.seen: dict[str, int] = {}  # where each running job was first and last heard of
        self.whole: TaskID | None = None
        self.lines: list[TaskID] = []

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, stage: str, total: int, jobs: Sequence[Job], workers: int) -> None:
        for line in [*self.lines, *([self.whole] if self.whole is not None else [])]:
            self.bars.remove_task(line)
        self.stage, self.total, self.over = stage, total, total - len(jobs)
        self.left = {str(job.folder): job.rounds for job in jobs}
        self.seen, self.done_rounds = {}, 0
        self.began = time.monotonic()
        self.whole = self.bars.add_task(stage, total=total, completed=self.over, facts="")
        self.lines = [
            self.bars.add_task(f"  worker {k + 1}", total=1, facts="") for k in range(min(workers, len(jobs)))
        ]
        found = f", {self.over} there already" if self.over else ""
        self.console.print(
            f"{stage}: {total} runs{found}, {workers} at once" if jobs else f"{stage}: nothing to do"
        )

    def __call__(self, event: Event) -> None:
        name, rounds = str(event.job.folder), event.job.rounds
        at = event.round if event.kind == "round" else rounds
        self.done_rounds += at - self.seen.get(name, at if event.kind == "round" else 0)
        self.seen[name] = at
        self.left[name] = rounds - at
        self.over += event.kind != "round"
        facts = f"{event.job.experiment.fingerprint} round {at}/{rounds}{figures(event.metrics or {})}"
        if event.kind == "failed":
            facts = f"{event.job.experiment.fingerprint} failed: {event.reason}"
            self.console.print(facts)
        line = self.lines[event.worker]
        self.bars.update(line, total=rounds, completed=at, facts=facts)
        if self.whole is not None:
            self.bars.update(self.whole, completed=self.over, facts=self._facts())
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.printed > PLAIN_SECONDS or self.over == self.total):
            self.console.print(f"{self.stage}: {self._facts()}; worker {event.worker + 1}: {facts}")
            self.printed = now

    def _facts(self) -> str:
        facts = f"{self.over}/{self.total} runs"
        if self.done_rounds:
            left = sum(self.left.values()) * (time.monotonic() - self.began) / self.done_rounds
            facts += f", {lasting(left)} left"
        return facts
