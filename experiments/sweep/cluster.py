"""A sweep's runs as tasks on an existing Ray cluster; the records come back as bytes, no shared folder is needed."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim.check import Invalid
from fedsim.experiments.sweep.workers import Event, Job, Word, work

Files = dict[str, bytes]


class Cluster:
    """The cluster at an address, as a crew for `Sweep`: one task a run, one core each.

    The package and the data (FEDSIM_DATA) must be at hand on every node. Raises `Invalid` where Ray is not installed or
    no cluster answers.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise Invalid(
                f"ray_address = {address!r}: Ray is not installed; pip install 'fedsim-robust[ray]'"
            ) from None
        self.ray: Any = ray
        try:
            ray.init(address=address, logging_level="error", log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise Invalid(
                f"ray_address = {address!r}: no cluster there ({str(error).splitlines()[0]})"
            ) from None

    @property
    def cores(self) -> int:
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def __call__(self, jobs: Sequence[Job], workers: int) -> Generator[Event]:
        """Run the jobs, `workers` of them at a time; closing the iterator cancels what is under way."""
        remote = self.ray.remote(num_cpus=1, max_retries=0)(away)
        waiting, free, running = deque(jobs), deque(range(workers)), dict[Any, tuple[int, Job]]()
        try:
            while waiting or running:
                while waiting and free:
                    job = waiting.popleft()
                    running[remote.remote(job, _files(job.folder))] = (free.popleft(), job)
                (done,), _ = self.ray.wait(list(running), num_returns=1)
                worker, job = running.pop(done)
                free.append(worker)
                yield self._event(done, worker, job)
        finally:
            for task in running:
                self.ray.cancel(task, force=True)

    def _event(self, task: Any, worker: int, job: Job) -> Event:
        try:
            word, files = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return Event(worker, job, "failed", reason=str(error).splitlines()[0])
        job.folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(files, key=lambda n: n == "model.pt"):  # the model says that the record is whole
            (job.folder / name).write_bytes(files[name])
        return Event(worker, job, *word)


def away(job: Job, begun: Files) -> tuple[Word, Files]:
    """A job in a folder of the node's own, from the files it had on: its last word, and the files that it left."""
    import torch

    torch.set_num_threads(1)
    words: list[Word] = []
    with tempfile.TemporaryDirectory(prefix="fedsim-") as place:
        folder = Path(place) / job.folder.name
        folder.mkdir()
        for name, content in begun.items():
            (folder / name).write_bytes(content)
        work(replace(job, folder=folder), words.append)
        return words[-1], _files(folder)


def _files(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.is_dir() else {}
