"""A deployment's folder, and what `fedsim deploy check` says when something is wrong with it."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsim.check import Invalid
from fedsim.cli.app import app
from fedsim.deploy import check, fork, pki, roles
from fedsim.deploy.agreement import Agreement
from fedsim.deploy.site import Link, Site, Uplink, init
from fedsim.experiments.resolve import resolve


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init(
        tmp_path / "site", Link(host="localhost", port=9192, control=9193, devices=2), {"max_rounds": 7}
    )


def wrong(folder: Path, reach: bool = False) -> str:
    return " | ".join(f"{each.what}: {each.wrong}" for each in check.check(folder, reach) if each.wrong)


def test_a_new_deployment_is_in_order(site: Site) -> None:
    assert wrong(site.folder) == wrong(site.device(0)) == wrong(site.device(1)) == ""
    assert Agreement.load(site.device(1) / "device.toml") == Agreement(client=1, max_rounds=7)
    for secret in (site.authority[1], site.server / "server.key", site.device(0) / "key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert {path.name for path in site.device(0).iterdir()} == {
        "key",
        "key.pub",
        "ca.crt",
        "device.toml",
        "uplink.toml",
    }
    assert {path.name for path in site.app.iterdir()} == {"pyproject.toml"}
    with pytest.raises(Invalid, match="holds a deployment already"):
        init(site.folder, Link())


def test_the_control_port_is_for_this_machine_alone(site: Site) -> None:
    Link(host="example.org", port=9192, control=9193).save(site.settings)
    words = list(roles.link(site).words)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--fleet-api-address") + 1] == "0.0.0.0:9192"
    assert words[words.index("--fleet-api-type") + 1] == "grpc-rere"
    assert "--enable-supernode-auth" in words
    assert "--disable-runtime-dependency-installation" in words
    assert {
        roles.QUIET["FLWR_TELEMETRY_ENABLED"],
        roles.QUIET["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"],
    } == {"0", "1"}


def expire(site: Site) -> None:
    pki.server(site.server / "server.pem", site.server / "server.key", site.authority, ["localhost"], 0)


def another_authority(site: Site) -> None:
    other = site.folder / "other.crt", site.folder / "other.key"
    pki.authority(*other, 9)
    pki.server(site.server / "server.pem", site.server / "server.key", other, ["localhost"], 9)


def another_host(site: Site) -> None:
    pki.server(site.server / "server.pem", site.server / "server.key", site.authority, ["example.org"], 9)


SERVER: dict[str, tuple[Callable[[Site], object], str]] = {
    "expired": (expire, "server certificate: expired on"),
    "another authority": (another_authority, "was not signed by this authority"),
    "another host": (another_host, "the certificate is for example.org, devices connect to localhost"),
    "another key": (
        lambda s: shutil.copy(s.authority[1], s.server / "server.key"),
        "server.key is not the key of server.pem",
    ),
    "settings": (lambda s: s.settings.write_text("prot = 3"), "'prot' is unknown; did you mean port?"),
    "no certificate": (lambda s: (s.server / "server.pem").unlink(), "No such file"),
}


@pytest.mark.parametrize("case", SERVER)
def test_what_is_wrong_with_a_server(case: str, site: Site) -> None:
    spoil, said = SERVER[case]
    spoil(site)
    assert said in wrong(site.folder)


def data(device: Path, content: bytes | dict[str, Any] | None) -> None:
    """Terms that name a file in the device's folder, and the file."""
    Agreement(client=0, data="own.npz").save(device / "device.toml")
    if isinstance(content, bytes):
        (device / "own.npz").write_bytes(content)
    elif content:
        np.savez(device / "own.npz", **content)


DEVICE: dict[str, tuple[Callable[[Path], object], str]] = {
    "open key": (lambda d: (d / "key").chmod(0o644), "others on this machine may read it"),
    "another's key": (
        lambda d: shutil.copy(d.parent / "1" / "key.pub", d / "key.pub"),
        "the server knows this device by key.pub, and will refuse key",
    ),
    "terms": (
        lambda d: (d / "device.toml").write_text("client = 0\nmin_nois = 1.0"),
        "did you mean min_noise?",
    ),
    "no client": (lambda d: (d / "device.toml").write_text("min_noise = 1.0"), "client is missing"),
    "a bad term": (lambda d: (d / "device.toml").write_text("client = 0\nepsilon = -1.0"), "epsilon = -1.0"),
    "ledger": (lambda d: (d / "ledger.json").write_text("{"), "ledger is not readable"),
    "no data": (lambda d: data(d, None), "own.npz: not an .npz file with arrays x and y"),
    "half a file": (lambda d: data(d, b"PK\3\4 and so on"), "own.npz: not an .npz file with arrays x and y"),
    "no labels": (lambda d: data(d, {"x": np.zeros((3, 2))}), "y is not a file in the archive"),
    "a label too high": (lambda d: data(d, {"x": np.zeros((3, 2)), "y": [0, 1, 10]}), "labels from 0 to 9"),
    "as many": (lambda d: data(d, {"x": np.zeros((3, 2)), "y": [0]}), "inputs (3, 2), labels (1,)"),
    "NaN": (
        lambda d: data(d, {"x": [[0, 1], [np.nan, 1], [1e99, 1]], "y": [0, 1, 2]}),
        "2 of 3 examples with NaN",
    ),
    "address": (lambda d: Uplink(superlink="nowhere").save(d / "uplink.toml"), "must be host:port"),
}


@pytest.mark.parametrize("case", DEVICE)
def test_what_is_wrong_with_a_device(case: str, site: Site) -> None:
    spoil, said = DEVICE[case]
    spoil(site.device(0))
    assert said in wrong(site.device(0))


def test_data_that_are_in_order_and_terms_that_allow_all(site: Site) -> None:
    folder = site.device(0)
    data(folder, {"x": np.zeros((3, 2)), "y": [0, 1, 9]})
    assert wrong(folder) == ""
    said = "\n".join(map(str, check.check(folder, reach=False)))
    assert "NOTE   what the terms allow: any experiment, also without noise, and no budget" in said
    for less in ({"min_noise": 1.0}, {"epsilon": 3.0}, {"fingerprint": "0" * 16}):
        Agreement(client=0, **less).save(folder / "device.toml")  # type: ignore[arg-type]
        assert "NOTE" not in "\n".join(map(str, check.check(folder, reach=False)))


def test_ports(site: Site) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        Uplink(superlink=f"localhost:{port}").save(site.device(0) / "uplink.toml")
        assert "not reachable" in wrong(site.device(0), reach=True)
        listener.listen()

        def rude() -> None:
            caller, _ = listener.accept()
            caller.recv(1)
            caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            caller.close()

        thread = threading.Thread(target=rude)
        thread.start()
        assert "does not speak TLS" in wrong(site.device(0), reach=True)
        thread.join()


def test_versions(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "version", lambda name: "1.42.0")
    assert "1.42.0: devices speak gRPC from 1.38 to 1.39" in wrong(site.device(0))


def test_the_command(site: Site, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["deploy", "check", "--offline", str(site.folder)]).exit_code == 0
    expire(site)
    said = runner.invoke(app, ["deploy", "check", "--offline", str(site.folder)])
    assert (said.exit_code, "WRONG  server certificate: expired" in said.output) == (2, True)
    assert runner.invoke(app, ["deploy", "check", str(tmp_path)]).exit_code == 2
    made = runner.invoke(app, ["deploy", "init", str(tmp_path / "new"), "--devices", "3", "--no-keys"])
    assert made.exit_code == 0
    assert "whoever reaches the port can be any device" in made.output
    assert "fedsim deploy device devices/i" in made.output
    words = shlex.split(made.output[made.output.index("quickstart --set") :].splitlines()[0])
    assert resolve(words[0], words[2::2]).main.clients == 3
    assert not Site(tmp_path / "new").link.keys


def test_a_host_or_port_that_cannot_be_makes_no_deployment(tmp_path: Path) -> None:
    for words, said in (
        (["--host", "bad host"], "Link.host = 'bad host': must be a name"),
        (["--port", "99999"], "Link.port = 99999: must be less than or equal to 65535"),
        (["--port", "0"], "Link.port = 0"),
        (["--port", "65535"], "Link.control = 65536"),
        (["--port", "65531"], "Link.control = 65532 with 5 devices"),
    ):
        done = CliRunner().invoke(app, ["deploy", "init", str(tmp_path / "new"), *words])
        assert (done.exit_code, said in done.output) == (2, True), done.output
        assert not (tmp_path / "new").exists()
    Link(host="fed-1.example.org", port=65529, control=65530)


def test_the_server_gets_what_it_needs_and_not_the_authority(site: Site, tmp_path: Path) -> None:
    """The parts that the README names are enough for its check."""
    said = (site.folder / "README.md").read_text()
    there = tmp_path / "server"
    for part in ("deploy.toml", "server", "fedsim-app", "devices/0/key.pub", "devices/1/key.pub"):
        assert f"`{part.replace('0', 'i').replace('1', 'i')}`" in said
        (there / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (site.folder / part).is_dir() else shutil.copy)(site.folder / part, there / part)
    assert wrong(there) == ""
    assert "gets this folder" not in said


def test_without_a_link_nothing_is_registered(site: Site) -> None:
    done = CliRunner().invoke(app, ["deploy", "register", str(site.folder)])
    assert done.exit_code == 2
    assert "Connection to the SuperLink is unavailable" in done.output
    assert "is `fedsim deploy link` running?" in done.output
    assert roles.registered(site) == {}


def test_a_bad_setting_of_a_run_is_named_before_anything_is_started(site: Site) -> None:
    words = ["deploy", "run", str(site.folder), "quickstart"]
    for bad, said in (
        (["--payload", "int8"], "Trial.payload = 'int8'"),
        (["--timeout", "-1"], "Trial.timeout = -1.0"),
        ([], "exercise, with --red-team"),
    ):
        done = CliRunner().invoke(app, [*words, *bad])
        assert (done.exit_code, said in done.output) == (2, True)


def test_without_its_fork_server_a_device_takes_flowers_way(tmp_path: Path) -> None:
    """The command says so, and is Flower's own: here it explains its arguments."""
    command = fork.shim(tmp_path) / fork.COMMAND
    done = subprocess.run(
        [command, "--help"],
        env=os.environ | {fork.SOCKET: str(tmp_path / "nobody")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "fork server does not answer" in done.stderr
    assert "Run a Flower ClientApp" in done.stdout
    assert sys.executable in command.read_text()
