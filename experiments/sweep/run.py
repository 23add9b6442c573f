"""Sweeps: all cells of a study, many at once, each in a folder of its own; a second start does what is missing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedsim.check import Invalid
from fedsim.experiments import load
from fedsim.experiments.study import Cell, Failure, Study, Tuning
from fedsim.experiments.sweep import tuning
from fedsim.experiments.sweep.workers import Event, Job, forget, processes
from fedsim.machine.files import write_whole, writing
from fedsim.record import Record, read_manifest
from fedsim.spec import Experiment

Crew = Callable[[Sequence[Job], int], Generator[Event]]


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def begin(self, stage: str, total: int, jobs: Sequence[Job], workers: int) -> None: ...

    def __call__(self, event: Event) -> None: ...


class Silent:
    def begin(self, stage: str, total: int, jobs: Sequence[Job], workers: int) -> None:
        pass

    def __call__(self, event: Event) -> None:
        pass


@dataclass
class Outcome:
    """What a start of a sweep came to: runs made, runs that were there already, and cells that failed."""

    folder: Path
    cells: int = 0
    made: int = 0
    found: int = 0
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Sweep:
    """How the cells of a study are run.

    `crew` runs jobs: `processes` here, a `Cluster` on Ray. On a GPU one worker is the default,
    elsewhere one for each core.
    """

    out: Path
    workers: int | None = None
    engine: str = "vector"
    device: str = "auto"
    command: str = ""
    crew: Crew = processes
    watch: Watcher = field(default_factory=Silent)

    def __call__(self, study: Study) -> Outcome:
        """Run what is missing; raises `Invalid` where no cell can be. KeyboardInterrupt leaves checkpoints."""
        cells, refused = study.cells()
        outcome = Outcome(self.out, cells=len(cells) + len(refused), failures=refused)
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        if study.tuning:
            cells = self._tune(study.tuning, cells, outcome)
        self._describe(study, cells)
        reasons = self._run("cells", [cell.experiment for cell in cells], self.out, outcome)
        outcome.failures += [
            Failure(cell.labels, reasons[cell.experiment.fingerprint])
            for cell in cells
            if cell.experiment.fingerprint in reasons
        ]
        return outcome

    def _tune(self, how: Tuning, cells: Sequence[Cell], outcome: Outcome) -> list[Cell]:
        """The cells at their best points; what was tried goes to tuning.json, the trials' records to tuning/."""
        found, refused = tuning.searches(cells, how)
        outcome.failures += refused
        folder = self.out / "tuning"
        for end, keep in how.rungs or ((None, 1),):
            trials = [trial for search in found for trial in search.trials]
            stage = f"tuning to round {end}" if end else "tuning"
            self._run(stage, trials, folder, outcome, end)
            scores = {trial.fingerprint: score(folder / trial.fingerprint, end) for trial in trials}
            found = [search.halved(scores, end, keep) for search in found]
            left = {trial.fingerprint for search in found for trial in search.trials}
            for name in scores.keys() - (left if keep > 1 else set()):
                forget(folder / name)
        _write(self.out / "tuning.json", [search.report() for search in found])
        chosen, failed = tuning.tuned(cells, found)
        outcome.failures += failed
        return chosen

    def _run(
        self,
        stage: str,
        experiments: Sequence[Experiment],
        folder: Path,
        outcome: Outcome,
        until: int | None = None,
    ) -> dict[str, str]:
        """Make the runs that are missing in a folder; why those failed that did, by fingerprint."""
        wanted = {experiment.fingerprint: experiment for experiment in experiments}
        jobs = [
            Job(experiment, folder / name, self.engine, self.device, until)
            for name, experiment in wanted.items()
            if not finished(folder / name, until)
        ]
        outcome.found += len(wanted) - len(jobs)
        crew = min(self.workers or at_once(self.device), max(1, len(jobs)))
        self.watch.begin(stage, len(wanted), jobs, crew)
        reasons: dict[str, str] = {}
        if jobs:
            with closing(self.crew(jobs, crew)) as events:
                for event in events:
                    self.watch(event)
                    outcome.made += event.kind == "done"
                    if event.kind == "failed":
                        reasons[event.job.experiment.fingerprint] = event.reason
        return reasons

    def _describe(self, study: Study, cells: Sequence[Cell]) -> None:
        listed = [{"labels": dict(c.labels), "experiment": c.experiment.fingerprint} for c in cells]
        content = {
            "command": self.command,
            "axes": list(study.axes),
            "tuned": list(study.tuning.grid) if study.tuning else [],
            "cells": listed,
            "reported": [dict(line) for line in study.reported],
            "notes": list(study.notes),
            "score": study.score,
        }
        _write(self.out / load.STUDY, content)


def finished(folder: Path, until: int | None = None) -> bool:
    """Whether the record in a folder came to its end, or to a round; of a damaged one its run says what is wrong."""
    record = Record(folder, folder.name)
    try:
        there, lines = read_manifest(folder) is not None, record.metrics()
    except Invalid:
        return False
    return there and (
        record.finished or (until is not None and any(line["round"] >= until for line in lines))
    )


def score(folder: Path, until: int | None = None) -> float | None:
    """The accuracy at a record's end, or at a round that is evaluated; None where it did not come so far.

    Where labels are numbers, minus the loss; of a loss that is not finite minus infinity.
    """
    if not finished(folder, until):
        return None
    lines = Record(folder, folder.name).metrics()
    last = [line for line in lines if until is None or line["round"] <= until][-1]
    if "accuracy" in last:
        return float(last["accuracy"])
    return -math.inf if last["loss"] is None else -float(last["loss"])


def at_once(device: str) -> int:
    """How many workers a machine takes: one for each core, one alone where they would share a GPU."""
    from fedsim.runner import choose

    if choose(device) != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(path: Path, content: Any) -> None:
    with writing(path.parent):
        write_whole(path, json.dumps(content, indent=1).encode())
