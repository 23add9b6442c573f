"""A whole deployment on this machine, for a trial: server and devices as separate processes on the loopback address."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import tomli_w
import torch

from fedsim.check import Invalid
from fedsim.deploy import roles
from fedsim.deploy.site import Link, Site, Uplink, init
from fedsim.deploy.trial import Trial
from fedsim.runner import run
from fedsim.spec import Experiment

STARTING = 60.0  # seconds that a SuperLink is given


@dataclass
class Running:
    """A deployment that runs: its processes."""

    site: Site
    link: subprocess.Popen[bytes]
    devices: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[int, roles.Command] = field(default_factory=dict)

    def start(self, i: int) -> None:
        """Start device i, or start it again."""
        with (self.site.device(i) / "node.log").open("ab") as log:
            self.devices[i] = self.commands[i].start(log)

    def stop_devices(self) -> None:
        for process in self.devices.values():
            roles.stop(process)


@contextmanager
def running(site: Site, fast: bool = False) -> Iterator[Running]:
    """The SuperLink of a deployment and all its SuperNodes; ended, with all that they started, at the end."""
    # Many processes share this machine.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ExitStack() as stack:
        log = stack.enter_context((site.server / "link.log").open("ab"))
        now = Running(site, roles.link(site).start(log))
        stack.callback(roles.stop, now.link)
        stack.callback(now.stop_devices)
        ids = range(site.link.devices)
        for i in ids:
            log = stack.enter_context((site.device(i) / "fork.log").open("ab"))
            now.commands[i] = stack.enter_context(roles.forking(roles.node(site.device(i), fast), log))
        _wait(site, now.link)
        roles.register_all(site)
        for i in ids:
            now.start(i)
        yield now


def launch(
    site: Site, experiment: Experiment, trial: Trial, out: Path, resume: bool = False
) -> subprocess.Popen[bytes]:
    """Start the experiment on a running deployment; the process ends when the run does, its log is in `out`."""
    trial.check(experiment)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)
    path = out / "run.toml"
    path.write_text(tomli_w.dumps(trial.config(experiment, roles.registered(site), out, resume)))
    command = roles.flower_command(site, "run", str(site.app), "here", "--run-config", str(path), "--stream")
    with (out / "run.log").open("ab") as log:
        return command.start(log)


def outcome(out: Path) -> dict[str, Any]:
    """What a run came to; raises `Invalid`, with the end of its log, where it came to nothing."""
    path = out / "summary.json"
    if not path.exists():
        raise Invalid(f"the run failed:\n{(out / 'run.log').read_text()[-1500:]}")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def run_there(
    site: Site, experiment: Experiment, trial: Trial, out: Path, resume: bool = False
) -> dict[str, Any]:
    """Run the experiment on a deployment that is up, to its end; what it came to."""
    roles.finish(launch(site, experiment, trial, out, resume))
    return {"transport": "grpc", "tls": site.link.tls, "keys": site.link.keys, **outcome(out)}


def try_out(site: Site, experiment: Experiment, trial: Trial) -> dict[str, Any]:
    """Bring the deployment up, run the experiment there, and compare with the loop engine where that can be equal."""
    trial.check(experiment)  # before anything is started
    out = site.folder / "run"
    with running(site, trial.fast):
        summary = run_there(site, experiment, trial, out)
    lines = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    if len(lines) > 1:
        summary["seconds_per_round"] = round(
            (lines[-1] - lines[0]) / ((len(lines) - 1) * experiment.evaluate_every), 3
        )
    if trial.test_mode:
        summary["max_abs_difference_from_loop"] = difference(experiment, out)
    return summary


def difference(experiment: Experiment, out: Path) -> float:
    """The largest difference of a parameter from the loop engine's."""
    model = torch.load(out / "model.pt", weights_only=True)
    truth = run(experiment, engine="loop", device="cpu").model
    return max(float((model[name] - value).abs().max()) for name, value in truth.items())


def site(folder: Path, devices: int, trial: Trial, tls: bool = True, keys: bool = True) -> Site:
    """A new deployment in `folder` for devices of this machine, on ports that nobody uses."""
    port, control, *others = sorted(free_ports(devices + 2))  # so that enough ports follow the second
    made = init(folder, Link(port=port, control=control, devices=devices, tls=tls, keys=keys), trial.terms)
    for i, free in enumerate(others):
        path = made.device(i) / "uplink.toml"
        replace(Uplink.load(path), port=free).save(path)
    return made


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


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait(site: Site, link: subprocess.Popen[bytes]) -> None:
    settings = site.link
    context = ssl.create_default_context(cafile=str(site.server / "ca.crt")) if settings.tls else None
    url = f"{'https' if settings.tls else 'http'}://127.0.0.1:{settings.control}/health"
    until = time.monotonic() + STARTING
    while time.monotonic() < until and link.poll() is None:
        try:
            with urlopen(url, context=context, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise Invalid(f"the SuperLink did not start:\n{(site.server / 'link.log').read_text()[-1500:]}")
