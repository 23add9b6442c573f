"""Real processes: a SuperLink and SuperNodes on the loopback address, over gRPC with TLS and keys.

A short trial runs always, the long ones where FEDSIM_LONG is set: FEDSIM_LONG=1 pytest tests/flower/test_deployment.py
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsim.deploy import fork, pki, roles
from fedsim.deploy.local import (
    Running,
    difference,
    fitted,
    free_ports,
    launch,
    outcome,
    run_there,
    running,
    try_out,
)
from fedsim.deploy.local import site as make
from fedsim.deploy.site import Site, Uplink
from fedsim.deploy.spent import Spent
from fedsim.deploy.trial import Trial
from fedsim.experiments.resolve import resolve
from fedsim.spec import Experiment

long = pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="takes minutes: set FEDSIM_LONG to run it")
TEST = Trial(test_mode=True, red_team=True, timeout=40.0, fast=True)


def experiment(devices: int, rounds: int) -> Experiment:
    """The quickstart with as many clients as devices, the last of them Byzantine."""
    return fitted(resolve("quickstart").main, devices, rounds)


def test_a_deployment_is_the_loop(tmp_path: Path) -> None:
    """`fedsim deploy up` on 3 devices: gRPC, TLS, keys, a red-team client; the loop engine's model to the bit."""
    words = [
        "up",
        "--local",
        "3",
        "--recipe",
        "quickstart",
        "--rounds",
        "2",
        "--test-mode",
        "--fast",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "fedsim", "deploy", *words, "--dir", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["transport"], summary["tls"], summary["keys"]) == ("grpc", True, True)
    assert summary["max_abs_difference_from_loop"] == 0.0
    assert summary["epsilon"] is None
    assert not summary["set_aside"]
    log = (tmp_path / "site" / "devices" / "0" / "fork.log").read_text()
    assert log.count("exit code 0") == 2  # both messages by the fork server


def processes() -> dict[int, int]:
    """The parent of each process of this machine that is not over."""
    words = ["ps", "-eo", "pid=,ppid=,stat="]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in listed.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in lines if "Z" not in state}


def below(*pids: int) -> set[int]:
    """The processes that these started, and those that they did."""
    found = {pid for pid, parent in processes().items() if parent in pids}
    return found | below(*found) if found else found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_command_leaves_nothing_behind(number: int, tmp_path: Path) -> None:
    """An owner who kills a device's command wants the device to be gone, whatever Flower started for it."""
    site, null = make(tmp_path / "site", 1, TEST), subprocess.DEVNULL
    commands = [
        subprocess.Popen([sys.executable, "-m", "fedsim", "deploy", *words], stdout=null, stderr=null)
        for words in (["link", str(site.folder)], ["device", str(site.device(0))])
    ]
    link, device = (command.pid for command in commands)
    started: set[int] = set()
    try:
        until(
            lambda: len(below(link)) >= 2 and len(below(device)) >= 3, 60.0
        )  # a SuperExec of each among them
        started = below(link, device)
        for command in commands:
            command.send_signal(number)
        assert [command.wait(60) for command in commands] == [130, 130]
        until(lambda: not started & set(processes()), 15.0)
    finally:
        for pid in {link, device, *started} & set(processes()):
            os.kill(pid, signal.SIGKILL)


@long
def test_five_devices_learn_in_private(tmp_path: Path) -> None:
    """Normal mode: each device draws its own noise, its ledger says what the server's accountant says; it learns."""
    e = replace(experiment(5, 30), privacy=replace(resolve("quickstart").main.privacy, epsilon=20.0))
    summary = try_out(make(tmp_path / "site", 5, Trial()), e, Trial(red_team=True, fast=True))
    assert summary["accuracy"] > 0.6
    assert summary["epsilon"] == pytest.approx(20.0, rel=1e-3)
    for i in range(4):
        spent = Spent.load(tmp_path / "site" / "devices" / str(i) / "ledger.json")
        assert spent.epsilon(1e-4) == pytest.approx(summary["epsilon"], rel=1e-9)


def rounds_done(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def until(true: Callable[[], bool], seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@long
def test_a_killed_device_comes_back(tmp_path: Path) -> None:
    """Killed with SIGKILL in the middle of a round, started again after a minute: the run ends, with its memory intact.

    The model is that of a run in which the device was not asked in the rounds that it missed.
    """
    from fedsim.federation import Federation
    from fedsim.flower.client import Simulated, client_app
    from fedsim.flower.grid import FIRST_NODE, InProcessGrid
    from fedsim.flower.remote import Remote
    from fedsim.runner import drive

    e, site, out = experiment(5, 40), make(tmp_path / "site", 5, TEST), tmp_path / "run"
    with running(site, fast=True) as now:
        process = launch(site, e, replace(TEST, timeout=20.0), out)
        until(lambda: rounds_done(out) >= 3)
        os.killpg(now.devices[1].pid, signal.SIGKILL)
        now.devices[1].wait()
        killed = time.monotonic()
        until(
            lambda: time.monotonic() > killed + 70
        )  # a SuperLink refuses a node that it still believes online
        now.start(1)
        roles.finish(process)
    summary = outcome(out)
    assert summary["rounds"] == 40
    missed = {int(line.split(":")[0].removeprefix("round ")) for line in summary["set_aside"]}
    assert missed
    assert max(missed) < 39
    fed = Federation(e)
    fed.accounted = False

    def lost(message: object) -> bool:
        return message.metadata.dst_node_id == FIRST_NODE + 1 and int(message.metadata.group_id) - 1 in missed  # type: ignore[attr-defined]

    grid = InProcessGrid(client_app(Simulated(lambda order: fed)), 5, lost=lost)
    truth = drive(fed, Remote(grid, {i: FIRST_NODE + i for i in range(5)}, run="a")).model
    model = torch.load(out / "model.pt", weights_only=True)
    assert all(torch.equal(model[name], value) for name, value in truth.items())


@long
def test_a_killed_server_goes_on(tmp_path: Path) -> None:
    """The server application dies with SIGKILL in a round; resumed, it ends with the model of the loop engine.

    A SuperNode that was about to fetch a message of the killed run lets go of it after about a minute.
    """
    trial = replace(TEST, timeout=120.0)
    e, site, out = experiment(3, 8), make(tmp_path / "site", 3, trial), tmp_path / "run"
    with running(site, fast=True):
        process = launch(site, e, trial, out)
        until(lambda: rounds_done(out) >= 3)
        subprocess.run(["kill", "-9", *children(site)], check=True)
        roles.stop(process)
        assert rounds_done(out) < 8
        summary = run_there(site, e, trial, out, resume=True)
    assert summary["rounds"] == 8
    assert difference(e, out) == 0.0


def children(site: Site) -> list[str]:
    """The process of the server application, by its command and this deployment's port."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    port = f":{site.link.control}"
    return [line.split()[0] for line in listed.splitlines() if "flwr-serverapp" in line and port in line]


@long
def test_a_killed_fork_server_costs_speed_alone(tmp_path: Path) -> None:
    e, site, out = experiment(3, 6), make(tmp_path / "site", 3, TEST), tmp_path / "run"
    with running(site, fast=True) as now:
        process = launch(site, e, TEST, out)
        until(lambda: rounds_done(out) >= 2)
        path = now.commands[0].environment[fork.SOCKET]
        Path(path).unlink()
        roles.finish(process)
    assert outcome(out)["rounds"] == 6
    assert difference(e, out) == 0.0
    assert "fork server does not answer" in (site.device(0) / "node.log").read_text()


class BadNetwork:
    """Proxies before the server, one a device: 20 ms each way; a tenth of all pieces is lost and comes 200 ms later, as
    TCP would send it again; now and then a connection breaks. `cut` devices reach nobody.
    """

    def __init__(self, server: int, ports: list[int]) -> None:
        self.server, self.ports, self.cut = server, ports, set[int]()
        self.chance, self.lost = random.Random(0), 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        self.over = asyncio.Event()
        servers = [
            await asyncio.start_server(lambda r, w, i=i: self._relay(i, r, w), "127.0.0.1", port)  # type: ignore[misc]
            for i, port in enumerate(self.ports)
        ]
        await self.over.wait()
        for server in servers:
            server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _relay(self, i: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self.server)
            pumps = [
                asyncio.ensure_future(self._pump(i, *ends)) for ends in ((reader, back), (there, writer))
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for end in (writer, back):
                end.close()

    async def _pump(self, i: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while piece := await reader.read(4096):
                await asyncio.sleep(0.02)
                if self.chance.random() < 0.1:
                    self.lost += 1
                    await asyncio.sleep(0.2)
                if i in self.cut or self.chance.random() < 0.002:
                    return
                writer.write(piece)
                await writer.drain()

    def __enter__(self) -> BadNetwork:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()
        self.loop.close()


@long
def test_a_bad_network(tmp_path: Path) -> None:
    """10 rounds over 5 devices with latency, 10 % loss and one device cut off for a while."""
    e, site, out = experiment(5, 10), make(tmp_path / "site", 5, TEST), tmp_path / "run"
    ports = free_ports(5)
    for i, port in enumerate(ports):
        path = site.device(i) / "uplink.toml"
        replace(Uplink.load(path), superlink=f"127.0.0.1:{port}").save(path)
    with BadNetwork(site.link.port, ports) as network, running(site, fast=True):
        process = launch(site, e, replace(TEST, timeout=25.0), out)
        until(lambda: rounds_done(out) >= 2)
        network.cut.add(1)
        until(lambda: rounds_done(out) >= 4)
        network.cut.clear()
        roles.finish(process)
        assert network.lost > 100
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 11))
    answered = [line["answered"] for line in lines]
    assert min(answered) >= 2  # of the four that are asked; the red team speaks for the fifth
    assert answered[0] == 4 > min(answered)


@long
@pytest.mark.parametrize("wrong", ["another key", "no key", "another authority"])
def test_who_is_not_known_is_refused(tmp_path: Path, wrong: str) -> None:
    site = make(tmp_path / "site", 1, TEST)
    stranger = tmp_path / "stranger"
    shutil.copytree(site.device(0), stranger)
    if wrong == "another authority":
        pki.authority(stranger / "ca.crt", tmp_path / "ca.key", 9)
    else:
        pki.device(stranger / "key")
    command = roles.node(stranger)
    if wrong == "no key":
        place = command.words.index("--auth-supernode-private-key")
        command = replace(command, words=[*command.words[:place], *command.words[place + 2 :]])
    with running(site) as now, (tmp_path / "log").open("wb") as log:
        process = command.start(log)
        until(lambda: process.poll() is not None or "handshake" in (tmp_path / "log").read_text().lower(), 60)
        code = process.poll()
        roles.stop(process)
        online = roles.output(roles.flower_command(site, "supernode", "list", "here", "--format", "json"))
    assert code != 0
    assert online.count('"node-id"') == 1
    assert isinstance(now, Running)
