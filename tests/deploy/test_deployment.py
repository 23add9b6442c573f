"""Real processes on the loopback address: a server, and devices that dial in by gRPC with certificates."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.datasets.load import Digits
from fedsim.deploy.local import Yard, difference, fitted, free_port, prepare, running, try_out
from fedsim.deploy.server import run_there
from fedsim.deploy.spent import Spent
from fedsim.deploy.status import status
from fedsim.deploy.terms import Terms
from fedsim.deploy.trial import Trial
from fedsim.experiments.resolve import resolve
from fedsim.flower.arrivals import TAPE
from fedsim.spec import Experiment
from fedsim.strategies import AsyncSGD, Mean

TEST = Trial(test_mode=True, red_team=True, timeout=300.0)


def experiment(devices: int, rounds: int) -> Experiment:
    """The quickstart with as many clients as devices, the last of them Byzantine."""
    return fitted(resolve("quickstart").main, devices, rounds)


def until(true: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def rounds_done(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def events(yard: Yard, i: int) -> list[dict[str, Any]]:
    """What a device logged."""
    lines = (yard.place(i).folder / "log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Three devices that stay up for the tests of this file; each is as the test before left it."""
    yard = prepare(tmp_path_factory.mktemp("live") / "site", 3, trial=TEST)
    with running(yard):
        yield yard


def test_a_deployment_is_the_loop() -> None:
    """`fedsim deploy up` on 2 devices: gRPC, certificates, a red-team client; the loop engine's model to the bit."""
    words = ["up", "--local", "2", "--recipe", "quickstart", "--rounds", "3", "--test-mode", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "fedsim", "deploy", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["transport"], summary["tls"]) == ("grpc", "mutual")
    assert summary["max_abs_difference_from_loop"] == 0.0
    assert summary["epsilon"] is None
    assert not summary["set_aside"]


OWN = "import numpy as np\n\ndef load():\n    held = np.load('own0.npz')\n    return held['x'], held['y']\n"


def own_data(folder: Path, devices: int) -> list[Terms]:
    """Terms of devices with data of their own, in a file of each kind or by a function that the working directory has.

    Each has two of the ten digits, and as many examples as nobody else.
    """
    data, terms = Digits().load(), []
    for i in range(devices):
        mine = np.flatnonzero(np.isin(data.train.y.numpy(), (2 * i, 2 * i + 1)))[: 200 + 10 * i]
        x, y = data.train.x[mine].numpy(), data.train.y[mine].numpy()
        kind = ("function", ".npz", ".csv", ".parquet", ".npz")[i]
        held = "my_digits:load" if kind == "function" else f"{folder}/own{i}{kind}"
        if kind in (".npz", "function"):
            np.savez(folder / f"own{i}.npz", x=x, y=y)
            (folder / "my_digits.py").write_text(OWN)
        else:
            table = pd.DataFrame(x.reshape(len(x), -1)).rename(columns=str).assign(y=y)
            table.to_csv(held, index=False) if kind == ".csv" else table.to_parquet(held)
        terms.append(Terms(client=i, data=held, epsilon=50.0, delta=1e-4))
    return terms


def private(devices: int, rounds: int) -> Experiment:
    """The quickstart without an attack, at a noise multiplier that is given."""
    e = experiment(devices, rounds)
    privacy = replace(e.privacy, epsilon=None, noise=2.0)
    return replace(e, byzantine=0, attack=None, privacy=privacy, batches=Fixed(20))


def test_five_devices_with_data_of_their_own_keep_their_ledgers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten rounds of real processes: each ledger is what the accountant says for that device's own examples, to 1e-9."""
    e = private(5, 10)
    monkeypatch.chdir(tmp_path)  # of the devices too: where the function stands
    yard = prepare(tmp_path / "site", 5, own_data(tmp_path, 5))
    summary = try_out(yard, e, Trial(timeout=300.0))
    assert not summary["set_aside"]
    assert summary["rounds"] == 10
    assert summary["epsilon"] is None  # the server does not know the devices' data
    spent = [Spent.load(yard.place(i).folder / "ledger.json") for i in range(5)]
    for i, each in enumerate(spent):
        assert each.rounds == 10
        assert each.epsilon(1e-4) == pytest.approx(expected(e, 200 + 10 * i, 10), rel=1e-9)
    assert (
        len({each.epsilon(1e-4) for each in spent}) == 5
    )  # as many examples as nobody else: an epsilon of its own
    text = "\n".join(status(yard.place(0).folder))
    assert f"{spent[0].epsilon(1e-4):.4g} spent of epsilon = 50 at delta = 0.0001" in text


def expected(e: Experiment, examples: int, rounds: int) -> float:
    """Epsilon of a client with so many examples after so many rounds, by a federation in which it has them."""
    from fedsim.accounting import ACCOUNTANTS
    from fedsim.deploy.device import DeviceFederation
    from fedsim.types import Dataset, Examples

    data = Digits().load().train
    dataset = Dataset(Examples(data.x[:examples], data.y[:examples]), Examples(data.x[:0], data.y[:0]), 10)
    terms = Terms(client=0, epsilon=None, delta=None, data="own.npz")
    ledger = DeviceFederation(e, terms, 1, False, dataset).ledger
    assert ledger is not None
    releases = ledger.privacy.bill(ledger.plan, tuple(range(rounds)), examples)
    fitting = [a for a in ("exact", "rdp") if {r.sampling for r in releases} <= ACCOUNTANTS[a].valid]
    return min(ACCOUNTANTS[name].epsilon(releases, 1e-4) for name in fitting)


def ledger_of(yard: Yard, i: int, e: Experiment) -> Any:
    """The entry of an experiment's only run in a device's ledger."""
    spent = Spent.load(yard.place(i).folder / "ledger.json")
    (entry,) = (each for each in spent.entries.values() if each.fingerprint == e.fingerprint)
    return entry


def test_prometheus_and_people_see_how_it_goes(live: Yard, tmp_path: Path) -> None:
    """At a port of the loopback address, while it runs; afterwards the folder alone tells."""
    e, seen = experiment(3, 30), list[str]()
    replace(live.site.link, metrics=free_port()).save(live.site.settings)

    def look() -> None:
        until(lambda: rounds_done(tmp_path / "run") > 2)
        seen.extend(status(live.site.folder))

    watcher = threading.Thread(target=look)
    watcher.start()
    summary = run_there(live.site, e, TEST, tmp_path / "run")
    watcher.join()
    assert "of 30 rounds" in seen[0]
    assert sum("online" in line for line in seen) >= 2
    assert not summary["set_aside"]
    assert difference(e, tmp_path / "run") == 0.0
    assert "no run now" in status(live.site.folder)[0]
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", live.site.link.metrics))
        held.listen()
        with pytest.raises(Invalid, match=r"metrics = .*: that port cannot be opened"):
            run_there(live.site, e, TEST, tmp_path / "other")
    replace(live.site.link, metrics=0).save(live.site.settings)
    assert "unknown: deploy.toml has metrics = 0" in status(live.site.folder)[0]
    assert "30 of 10000 answered" in status(live.place(0).folder)[2]


def test_a_slow_device_holds_no_asynchronous_run_and_the_tape_is_the_run(live: Yard, tmp_path: Path) -> None:
    """One of three real devices hangs from the middle of the run on: the others go on, and what came is replayed."""
    e, out = replace(experiment(3, 40), byzantine=0, attack=None, privacy=None, rule=Mean()), tmp_path / "run"
    e = replace(e, method=AsyncSGD(lr=0.1), evaluate_every=10, seed=5)

    def stop() -> None:
        until(lambda: (out / TAPE).exists() and len((out / TAPE).read_text().splitlines()) >= 3)
        for pid in [live.processes[2].pid, *children(live.processes[2].pid)]:
            os.kill(pid, signal.SIGSTOP)

    stopper = threading.Thread(target=stop)
    stopper.start()
    summary = run_there(live.site, e, TEST, out)
    stopper.join()
    for pid in [*children(live.processes[2].pid), live.processes[2].pid]:
        os.kill(pid, signal.SIGCONT)
    assert summary["rounds"] == 40
    assert difference(e, out) == 0.0
    came = [json.loads(line)["client"] for line in (out / TAPE).read_text().splitlines()]
    assert set(came[10:]) == {0, 1}


def children(pid: int) -> list[int]:
    words = ["pgrep", "-P", str(pid)]
    return [
        int(each)
        for each in subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    ]


# ---------------------------------------------------------------- deaths
def run_process(yard: Yard, e: Experiment, out: Path, *words: str) -> subprocess.Popen[bytes]:
    """`fedsim deploy run` in a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    (out.parent / "experiment.toml").write_text(e.to_toml())
    command = [
        sys.executable,
        "-m",
        "fedsim",
        "deploy",
        "run",
        str(yard.site.folder),
        str(out.parent / "experiment.toml"),
    ]
    command += ["--out", str(out), "--timeout", "60", *words]
    with (out.parent / "log").open("ab") as log:
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)


def test_a_killed_device_is_back_at_once(live: Yard, tmp_path: Path) -> None:
    """Killed with SIGKILL in a round, started again at once: it is asked again, and gives the answer that it had kept.

    So nobody is set aside, no release is lost in flight, and the model is the loop's, at whatever moment it was killed.
    """
    e, out = replace(experiment(3, 30), seed=1), tmp_path / "run"

    def kill() -> None:
        until(lambda: rounds_done(out) >= 5)
        live.processes[1].kill()
        live.processes[1].wait()
        live.start(1)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run_there(live.site, e, TEST, out)
    killer.join()
    assert summary["set_aside"] == []
    assert difference(e, out) == 0.0
    assert ledger_of(live, 1, e).rounds == tuple(range(30))


def test_a_killed_server_goes_on(live: Yard, tmp_path: Path) -> None:
    """Killed once round 0 is booked, before the first checkpoint: resumed, nothing is paid for twice."""
    e, out = replace(experiment(3, 10), seed=2), tmp_path / "run"
    ledger = live.place(0).folder / "ledger.json"
    process = run_process(live, e, out, "--test-mode", "--red-team", "--resume")
    until(lambda: e.fingerprint in ledger.read_text())
    process.kill()
    process.wait()
    summary = run_there(live.site, e, TEST, out, resume=True)
    assert summary["set_aside"] == []
    assert difference(e, out) == 0.0
    assert len(ledger_of(live, 0, e).rounds) == 10  # one run, whatever died


def test_a_device_listens_to_signals(live: Yard, tmp_path: Path) -> None:
    """SIGHUP: terms read again, bad ones not; SIGTERM: a clean end, and nothing left behind."""
    place, process = live.place(0), live.processes[0]
    log = place.folder / "log"
    words = ["pgrep", "-P", str(process.pid)]
    good = (place.folder / "device.toml").read_text()
    (place.folder / "device.toml").write_text("nonsense = 1")
    process.send_signal(signal.SIGHUP)
    until(lambda: "the old ones stay" in log.read_text())
    (place.folder / "device.toml").write_text(good.replace("max_rounds = 10000", "max_rounds = 1"))
    process.send_signal(signal.SIGHUP)
    until(lambda: any(line["event"] == "terms read again" for line in events(live, 0)))
    summary = run_there(live.site, replace(experiment(3, 2), seed=3), TEST, tmp_path / "run")
    assert "this device agreed to 1, over all runs" in summary["set_aside"][0]
    children = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    assert children
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert events(live, 0)[-1]["event"] == "stopped"
    (place.folder / "device.toml").write_text(good)
    live.start(0)


def test_what_init_writes_is_what_runs(live: Yard) -> None:
    """A device and the server by the commands of their units, in a bare environment: a run, and a clean end."""
    until(
        lambda: [line["event"] for line in events(live, 0)][-1:] not in ([], ["stopped"])
    )  # it is up, and listens
    live.processes[0].terminate()
    assert live.processes[0].wait(60) == 0
    command, how = by_unit(live.place(0).folder, "device")
    with (live.place(0).folder / "log").open("ab") as log:
        live.processes[0] = subprocess.Popen(command, **how, stdout=log, stderr=log)
    (live.site.folder / "experiment.toml").write_text(replace(private(3, 2), seed=7).to_toml())
    command, how = by_unit(live.site.folder, "server")
    done = subprocess.run(command, **how, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads((live.site.folder / "deployed" / "summary.json").read_text())
    assert (summary["rounds"], summary["set_aside"]) == (2, [])
    live.processes[0].terminate()
    assert live.processes[0].wait(60) == 0
    live.start(0)


def test_revoked_while_it_runs(live: Yard, tmp_path: Path) -> None:
    """A key that was stolen: revoked on the server's disk, it gets no further question, without a restart."""
    e, out = replace(experiment(3, 25), seed=4), tmp_path / "run"

    def revoke() -> None:
        until(lambda: rounds_done(out) >= 3)
        live.site.registry.revoke(1)

    replace(live.site.link, grace=2.0).save(live.site.settings)
    revoker = threading.Thread(target=revoke)
    revoker.start()
    run_there(live.site, e, TEST, out)  # not its timeout but the grace ends a round's wait for it
    revoker.join()
    (said,) = {line["reason"] for line in events(live, 1) if line["event"] == "refused"}
    assert "it was revoked, or never added" in said
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["answered"] == 2  # of two; the red team speaks for the third
    assert lines[-1]["answered"] == 1


def by_unit(folder: Path, role: str) -> tuple[list[str], dict[str, Any]]:
    """The command of a role's systemd unit, and where and as what it is run: nothing is set but a path to programs.

    Nor is there a home to write to, as for a user of a service, or in a container that may only be read.
    """
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(folder / "units" / f"fedsim-{role}.service")
    service = unit["Service"]
    command = shlex.split(service["ExecStart"])
    composed = yaml.safe_load((folder / "compose.yaml").read_text())["services"][role]
    assert [*command[:1], *shlex.split(composed["command"])] == command
    assert composed["restart"] == service["Restart"]
    assert composed["stop_grace_period"] == f"{service['TimeoutStopSec']}s"
    bare = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/proc/nowhere"}
    return command, {"cwd": service["WorkingDirectory"], "env": bare}


def test_a_port_that_is_taken_is_said(live: Yard, tmp_path: Path) -> None:
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", live.site.link.port))
        held.listen()
        with pytest.raises(Invalid, match="cannot be opened, is another server running"):
            run_there(live.site, experiment(1, 1), TEST, tmp_path / "run")
