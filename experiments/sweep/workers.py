"""Many runs at once: warm processes that import and load data once, each with one thread, fed one job at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Literal

from fedsim.check import Invalid
from fedsim.experiments.load import FAILURE
from fedsim.record import Metrics
from fedsim.spec import Experiment
from fedsim.types import Data, Dataset

TELL_SECONDS = 0.25  # between two words of a worker on the same job
STOP_SECONDS = 20.0  # for a worker that was asked to stop to write its checkpoint


Word = tuple[Literal["round", "done", "failed"], int, Metrics | None, str]


@dataclass(frozen=True)
class Job:
    """A run to be made, as far as round `until` or to its end, and the folder of its record."""

    experiment: Experiment
    folder: Path
    engine: str = "vector"
    device: str = "auto"
    until: int | None = None

    @property
    def rounds(self) -> int:
        """The round after which the job is done."""
        return min(self.until or self.experiment.rounds, self.experiment.rounds)


class Reached(KeyboardInterrupt):
    """(round, accuracy): a run is where its job ends. Like any interrupt it leaves a checkpoint, to go on from."""


@dataclass(frozen=True)
class Event:
    """What a worker says: a round is over, the job is done, or failed and why."""

    worker: int
    job: Job
    kind: Literal["round", "done", "failed"]
    round: int = 0
    metrics: Metrics | None = None
    reason: str = ""


def processes(jobs: Sequence[Job], workers: int) -> Generator[Event]:
    """Run the jobs in `workers` processes. One that dies takes its job with it, as a failure, and is replaced.

    Closing the iterator stops all: each worker writes a checkpoint and ends. Jobs on the same data follow one another,
    so that a worker loads them once.
    """
    waiting = deque(sorted(jobs, key=lambda job: repr(job.experiment.task.data)))
    crew = [_Worker(number) for number in range(min(workers, len(jobs)))]
    try:
        for member in crew:
            member.take(waiting)
        while busy := [member for member in crew if member.job]:
            for pipe in wait([member.pipe for member in busy]):
                member = next(m for m in busy if m.pipe is pipe)
                event = member.hear()
                if event.kind != "round":
                    member.take(waiting)
                yield event
    finally:
        for member in crew:
            member.stop()


class _Worker:
    """A process and the job that it has."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.job: Job | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fedsim.experiments.sweep.workers", "fedsim.runner"])
        self.pipe, theirs = context.Pipe()
        self.process: ForkServerProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def take(self, waiting: deque[Job]) -> None:
        self.job = waiting.popleft() if waiting else None
        if self.job:
            self.pipe.send(self.job)

    def hear(self) -> Event:
        assert self.job is not None
        try:
            kind, at, metrics, reason = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            reason = f"the worker ended with exit code {self.process.exitcode}"
            kind, at, metrics = "failed", 0, None
            self.pipe.close()
            self._start()
        return Event(self.number, self.job, kind, at, metrics, reason)

    def stop(self) -> None:
        """End an idle worker by closing its pipe, a busy one by an interrupt."""
        if self.job and self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)
        self.pipe.close()
        self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()


def _serve(pipe: Connection) -> None:
    """The life of a worker: jobs in, events out, until the pipe closes."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        while True:
            work(pipe.recv(), lambda word: _tell(pipe, word))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return  # whoever asked is gone, or asks no more


def _tell(pipe: Connection, word: Word) -> None:
    try:
        pipe.send(word)
    except ConnectionError:
        raise SystemExit from None  # nobody listens; not an error of the job


def _interrupt_once(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would interrupt the checkpoint
    raise KeyboardInterrupt


def work(job: Job, tell: Callable[[Word], None]) -> None:
    """Make the run of a job, or go on with it, saying how it goes; whatever goes wrong is a word too.

    A run at its end keeps no checkpoint.
    """
    from fedsim.runner import run

    said = 0.0

    def progress(at: int, metrics: Metrics) -> None:
        nonlocal said
        if time.monotonic() - said >= TELL_SECONDS:
            said = time.monotonic()
            tell(("round", at, metrics, ""))
        if job.rounds <= at < job.experiment.rounds:
            raise Reached(at, metrics.get("accuracy"))

    note = job.folder / FAILURE
    try:
        try:
            result = run(
                job.experiment,
                engine=job.engine,
                device=job.device,
                out=job.folder,
                resume=True,
                progress=progress,
                keep=False,
                dataset=loaded(job.experiment.task.data),
            )
            forget(job.folder)
            at, accuracy = result.summary["rounds"], result.summary["accuracy"]
        except Reached as reached:
            at, accuracy = reached.args
        note.unlink(missing_ok=True)
        tell(("done", at, {"accuracy": accuracy}, ""))
    except Exception as error:
        with suppress(OSError):  # on a full disk the event alone tells
            job.folder.mkdir(parents=True, exist_ok=True)
            note.write_text(traceback.format_exc())
        kind = "" if isinstance(error, Invalid) else f"{type(error).__name__}: "
        tell(("failed", 0, None, f"{kind}{error}"))


def forget(folder: Path) -> None:
    """Remove what a run could go on from."""
    for name in ("checkpoint.pt", "clients.bin"):
        (folder / name).unlink(missing_ok=True)


@lru_cache(maxsize=1)
def loaded(data: Data) -> Dataset:
    """The data set that jobs in this process share, one at a time."""
    return data.load()
