"""The two apps of a deployment, on fedsim's own link as on a SuperLink of Flower's, and what both servers do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from logging import INFO
from pathlib import Path
from secrets import token_hex
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedsim.asynchronous import Asynchronous
from fedsim.deploy.device import Device
from fedsim.deploy.trial import Trial
from fedsim.federation import Federation
from fedsim.flower.arrivals import Arrivals
from fedsim.flower.calls import Live
from fedsim.flower.client import Host, Simulated, federation_of, respond
from fedsim.flower.order import OWN_DATA
from fedsim.flower.remote import Remote, Wire, discover
from fedsim.link import journal
from fedsim.machine.files import write_whole
from fedsim.progress import figures
from fedsim.record import Record
from fedsim.result import Result
from fedsim.runner import drive
from fedsim.spec import Experiment

client = ClientApp()
server = ServerApp()
EVERY_ROUND = 0.0  # seconds between checkpoints: devices are at most one round ahead of the server's disk


@lru_cache(maxsize=1)
def _device(folder: str) -> Device:
    return Device(Path(folder))


def _host(context: Context) -> Host:
    """The device's own folder where its node was started with one; otherwise a simulated client."""
    folder = context.node_config.get("device")
    if folder is not None:
        return _device(str(folder))
    return Simulated(lambda order: federation_of(order.experiment, order.fingerprint))


@client.train()
def train(message: Message, context: Context) -> Message:
    return respond(_host(context), message, context)


@client.query()
def query(message: Message, context: Context) -> Message:
    number = MetricRecord({"client": int(context.node_config["partition-id"])})
    return Message(RecordDict({"metrics": number}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """On a SuperLink of Flower's: the experiment of a run configuration, on nodes that say which client they are."""
    config: Mapping[str, Any] = context.run_config
    trial = Trial(
        test_mode=bool(config["test-mode"]),
        red_team=bool(config["red-team"]),
        timeout=float(config["timeout"]),
    )
    experiment = _experiment(config)
    trial.check(experiment)
    fed, wire = Federation(experiment), Wire(trial.payload, trial.timeout)
    out = Path(str(config["out"]))
    result, remote = serve(grid, fed, trial, discover(grid, fed.computing, wire), out, bool(config["resume"]))
    record_outcome(out, result, remote)


def serve(
    grid: Grid, fed: Federation, trial: Trial, nodes: Mapping[int, int], out: Path, resume: bool
) -> tuple[Result, Remote]:
    """Run a federation over a Grid, each client on its node, from the record's checkpoint on where `resume` says so."""
    fed.accounted = not trial.test_mode
    record = Record.open(fed.experiment, out, resume)
    run, wire = _name(out, resume), Wire(trial.payload, trial.timeout)
    kind = Live if isinstance(fed.experiment.method, Asynchronous) else Remote
    remote = kind(grid, nodes, run=run, derived=trial.test_mode, wire=wire)
    if isinstance(remote, Live):
        remote.arrivals = Arrivals.open(out, resume)
    journal.ROUNDS.set(fed.experiment.rounds)

    said = 0

    def report(round: int, metrics: Mapping[str, Any]) -> None:
        nonlocal said
        journal.ROUND.set(round)
        for each in remote.set_aside[said:]:
            journal.SET_ASIDE.labels(str(each.node)).inc()
        said = len(remote.set_aside)
        log(INFO, "after round %d%s", round, figures(metrics))

    result = _stated(drive(fed, remote, record, report, EVERY_ROUND))
    if isinstance(remote, Live):
        remote.arrivals.forget(len(remote.arrivals.lines))
    missing = [
        f"set aside whenever asked since the server began: device {', '.join(map(str, clients))}: {reason}"
        for reason, clients in remote.silent().items()
    ]
    return replace(result, notes=[*result.notes, *missing]), remote


def record_outcome(out: Path, result: Result, remote: Remote) -> dict[str, Any]:
    """What a run came to, also as `summary.json` beside its record."""
    summary = result.summary | {
        "notes": result.notes,
        "bytes": int(result.frame["bytes"].iloc[-1]),
        "set_aside": [f"round {each.round}: node {each.node}: {each.reason}" for each in remote.set_aside],
    }
    write_whole(out / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def _stated(result: Result) -> Result:
    """The result without the epsilon that the experiment's own partition would have cost, where devices have others."""
    if OWN_DATA not in result.frame:
        return result
    note = (
        f"no epsilon: {int(result.frame[OWN_DATA].max())} of the devices hold data of their own, and each one's ledger "
        "says what the run cost it; any other note on privacy is on the experiment's partition"
    )
    summary = result.summary | {"epsilon": None, "noise_multiplier": None}
    return replace(result, summary=summary, notes=[note, *result.notes[1:]])


def _experiment(config: Mapping[str, Any]) -> Experiment:
    """The experiment as JSON in the configuration, or the recipe that it names."""
    if config["experiment"]:
        return Experiment.from_json(str(config["experiment"]))
    from fedsim.experiments.resolve import resolve

    return resolve(str(config["recipe"])).main


def _name(out: Path, resume: bool) -> str:
    """The run's name in the memories of its devices: new where the record begins anew.

    Where it is resumed, also before its first checkpoint, devices are asked what they may have answered already.
    """
    path = out / "run"
    if not (resume and path.exists()):
        write_whole(path, token_hex(8).encode())
    return path.read_text()
