"""The two apps that Flower starts on a deployment, and on `flwr run` with the app folder that fedsim ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from logging import INFO, WARNING
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedsim.check import Invalid
from fedsim.deploy.device import Device
from fedsim.deploy.trial import Trial
from fedsim.federation import Federation
from fedsim.flower.client import Host, Simulated, federation_of, respond
from fedsim.flower.order import OWN_DATA
from fedsim.flower.remote import Remote, Wire, discover
from fedsim.machine.files import write_whole
from fedsim.record import Record
from fedsim.runner import Result, drive
from fedsim.spec import Experiment

client = ClientApp()
server = ServerApp()
EVERY_ROUND = 0.0  # seconds between checkpoints: devices are at most one round ahead of the server's disk


@lru_cache(maxsize=1)
def _device(folder: str) -> Device:
    return Device(Path(folder))


def _host(context: Context) -> Host:
    """The device's own folder where the SuperNode was started with one; otherwise a simulated client."""
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
    config: Mapping[str, Any] = context.run_config
    result, remote = serve(grid, config)
    for note in result.notes:
        log(INFO, note)
    summary = result.summary | {
        "notes": result.notes,
        "bytes": int(result.frame["bytes"].iloc[-1]),
        "set_aside": [f"round {each.round}: node {each.node}: {each.reason}" for each in remote.set_aside],
    }
    write_whole(Path(str(config["out"])) / "summary.json", json.dumps(summary, indent=1).encode())


def serve(grid: Grid, config: Mapping[str, Any]) -> tuple[Result, Remote]:
    """Run the experiment of a run configuration over a Grid, from its record's checkpoint on where `resume` says so.

    Raises `Invalid` for an experiment that a deployment does not run.
    """
    experiment, test = _experiment(config), bool(config["test-mode"])
    trial = Trial(test, bool(config["red-team"]), config["payload"], float(config["timeout"]))
    trial.check(experiment)
    fed = Federation(experiment)
    fed.accounted = not test
    wire = Wire(trial.payload, trial.timeout, float(config["poll"]) or None)
    out = Path(str(config["out"]))
    record = Record.open(experiment, out, bool(config["resume"]))
    nodes = _nodes(grid, str(config["clients"]), fed, wire)
    remote = Remote(grid, nodes, run=_name(out, record), derived=test, wire=wire)
    result = _stated(drive(fed, remote, record, _report, EVERY_ROUND))
    missing = [
        f"set aside whenever asked since the server began: device {', '.join(map(str, clients))}: {reason}"
        for reason, clients in remote.silent().items()
    ]
    return replace(result, notes=[*result.notes, *missing]), remote


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


def _name(out: Path, record: Record) -> str:
    """The run's name in the memories of its devices: kept with the record, new where the record starts anew."""
    path = out / "run"
    if not path.exists() or not (out / "checkpoint.pt").exists():
        write_whole(path, token_hex(8).encode())
    return path.read_text()


def _nodes(grid: Grid, clients: str, fed: Federation, wire: Wire) -> dict[int, int]:
    """The node of each client: by the keys that were registered, or, in a simulation, by asking."""
    if not clients:
        return discover(grid, fed.computing, wire)
    nodes = {int(i): int(node) for i, node in json.loads(clients).items()}
    missing = sorted(set(range(fed.computing)) - set(nodes))
    if missing:
        raise Invalid(
            f"client {missing[0]} has no device: the experiment has {fed.computing} clients that compute"
        )
    until = monotonic() + wire.timeout
    while (
        away := {nodes[i] for i in range(fed.computing)} - set(grid.get_node_ids())
    ) and monotonic() < until:
        sleep(0.5)
    if away:
        log(WARNING, "%d devices are not online after %g s: going on without them", len(away), wire.timeout)
    return nodes


def _report(round: int, metrics: Mapping[str, Any]) -> None:
    shown = {name: metrics[name] for name in ("accuracy", "epsilon") if metrics.get(name) is not None}
    log(INFO, "after round %d: %s", round, ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
