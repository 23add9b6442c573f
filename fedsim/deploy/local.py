"""A whole deployment on this machine, for a trial: devices as processes of their own on the loopback address."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom
from typing import Any

import torch

from fedsim.asynchronous import Asynchronous
from fedsim.clock import Tape
from fedsim.deploy import enrol
from fedsim.deploy.server import run_there
from fedsim.deploy.site import Link, Place, Site
from fedsim.deploy.terms import Terms
from fedsim.deploy.trial import Trial
from fedsim.flower.arrivals import TAPE
from fedsim.runner import run
from fedsim.spec import Experiment

FREE = 20_000, 32_768  # below what Linux and the IANA call ephemeral
ENDING = 30.0  # seconds that a process is given to end, with an answer that has begun


@dataclass
class Yard:
    """The folders of a deployment on this machine, and its processes."""

    site: Site
    devices: int
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def place(self, i: int) -> Place:
        return Place(self.site.folder / "devices" / str(i))

    def start(self, i: int) -> None:
        """Start device i, or start it again."""
        folder = self.place(i).folder
        words = [sys.executable, "-m", "fedsim", "deploy", "device", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as many processes share this machine
        with (folder / "log").open("ab") as log:
            self.processes[i] = subprocess.Popen(words, env=environment, stdout=log, stderr=log)

    def stop(self) -> None:
        """End all devices, those that do not listen too."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running(yard: Yard) -> Iterator[Yard]:
    """All devices of a yard, ended at the end."""
    try:
        for i in range(yard.devices):
            yard.start(i)
        yield yard
    finally:
        yard.stop()


def prepare(
    folder: Path, devices: int, terms: Sequence[Terms] | None = None, trial: Trial | None = None
) -> Yard:
    """A new deployment in `folder`, at a port that nobody uses, whose devices are all let in.

    terms  of each device; those of a `trial` otherwise, which ask for no privacy
    """
    trial = trial or Trial()
    asking = Terms(client=0, epsilon=None, delta=None, test_mode=trial.test_mode, red_team=trial.red_team)
    site = enrol.init(folder, Link(port=free_port(), metrics=0))
    yard = Yard(site, devices)
    for i in range(devices):
        place = yard.place(i)
        own = terms[i] if terms else replace(asking, client=i)
        enrol.join(place.folder, site.invitation, own)
        _, _, certificate = enrol.add(site, place.request)
        place.certificate.write_bytes(certificate.read_bytes())
    return yard


def try_out(yard: Yard, experiment: Experiment, trial: Trial) -> dict[str, Any]:
    """Bring the devices up, run the experiment on them, and compare with the loop engine where that can be equal."""
    trial.check(experiment)  # before anything is started
    out = yard.site.folder / "run"
    with running(yard):
        summary = run_there(yard.site, experiment, trial, out)
    lines = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    if len(lines) > 1:
        rounds = (len(lines) - 1) * experiment.evaluate_every
        summary["seconds_per_round"] = round((lines[-1] - lines[0]) / rounds, 3)
    if trial.test_mode:
        summary["max_abs_difference_from_loop"] = difference(experiment, out)
    return summary


def difference(experiment: Experiment, out: Path) -> float:
    """The largest difference of a parameter from the loop engine's, which an asynchronous run's tape tells when."""
    if isinstance(experiment.method, Asynchronous):
        experiment = replace(experiment, clock=Tape(str(out / TAPE)))
    model = torch.load(out / "model.pt", weights_only=True)
    truth = run(experiment, engine="loop", device="cpu").model
    return max(float((model[name] - value).abs().max()) for name, value in truth.items())


def fitted(experiment: Experiment, devices: int, rounds: int | None) -> Experiment:
    """The experiment with a client for each device, as large a share of them Byzantine, and other rounds."""
    byzantine = -(-experiment.byzantine * devices // experiment.clients)
    byzantine = min(byzantine, (devices - 1) // 2)
    return replace(
        experiment,
        clients=devices,
        byzantine=byzantine,
        attack=experiment.attack if byzantine else None,
        f=None,
        cohort=None,
        rounds=rounds or experiment.rounds,
        evaluate_every=1,
    )


def free_port() -> int:
    """A port that nobody uses now, and none of those that the system gives to connections by itself.

    One of these could be taken by somebody's connection before it is used, and by that of a device that dials too early
    even to itself.
    """
    while True:
        port = SystemRandom().randrange(*FREE)
        with suppress(OSError), socket.socket() as held:
            held.bind(("127.0.0.1", port))
            return port
