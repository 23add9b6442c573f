"""What each role of a deployment runs: Flower's own commands, with what is unsafe or slow by default switched off."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fedsim.check import Invalid
from fedsim.deploy import fork
from fedsim.deploy.site import Site, Uplink
from fedsim.machine.files import write_whole

BIN = Path(sys.executable).parent
NODES = "nodes.json"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",  # Flower's public setting; 1 s as shipped
}


@dataclass(frozen=True)
class Command:
    """A program, what its environment has beside this process's, and its working folder."""

    words: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    path: Sequence[Path] = field(default=(BIN,))

    def __str__(self) -> str:
        return shlex.join(map(str, self.words))

    def start(self, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """The process, in a group of its own, so that it ends with all that it started."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([*map(str, self.path), os.environ.get("PATH", "")])
        return subprocess.Popen(
            [str(word) for word in self.words],
            env=os.environ | QUIET | dict(self.environment) | {"PATH": path},
            cwd=self.folder,
            stdout=log,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )


def link(site: Site) -> Command:
    """The SuperLink: devices by gRPC on one port, control and run time on another, for this machine alone."""
    settings, folder = site.link, site.server
    words = [BIN / "flower-superlink", "--host", "127.0.0.1", "--port", settings.control]
    words += ["--fleet-api-type", "grpc-rere", "--fleet-api-address", f"{settings.bound}:{settings.port}"]
    words += ["--database", folder / "state.db", "--isolation", "subprocess"]
    words += ["--disable-runtime-dependency-installation"]
    if settings.tls:
        words += ["--ssl-ca-certfile", folder / "ca.crt", "--ssl-certfile", folder / "server.pem"]
        words += ["--ssl-keyfile", folder / "server.key"]
    else:
        words += ["--insecure"]
    if settings.keys:
        words += ["--enable-supernode-auth"]
    return Command([str(word) for word in words], {"FLWR_HOME": str(folder / "home")}, folder)


def node(folder: Path, fast: bool = False) -> Command:
    """The SuperNode of a device's folder. `fast`: see `fedsim.deploy.quick`."""
    uplink = Uplink.load(folder / "uplink.toml")
    program = [sys.executable, "-m", "fedsim.deploy.quick"] if fast else [str(BIN / "flower-supernode")]
    words = [
        *program,
        "--grpc-rere",
        "--superlink",
        uplink.superlink,
        "--host",
        "127.0.0.1",
        "--port",
        uplink.port,
    ]
    words += ["--root-certificates", folder / "ca.crt"] if uplink.tls else ["--insecure"]
    if uplink.keys:
        words += ["--auth-supernode-private-key", folder / "key"]
    words += ["--node-config", f"device={json.dumps(str(folder.resolve()))}"]
    return Command([str(word) for word in words], {"FLWR_HOME": str(folder / "home")}, folder)


@contextmanager
def forking(command: Command, log: IO[bytes] | None = None) -> Iterator[Command]:
    """The command of a SuperNode, with a fork server for its messages beside it."""
    with tempfile.TemporaryDirectory(prefix="fedsim-") as place:  # the path of a socket must be short
        socket = Path(place) / "fork"
        code = f"from pathlib import Path; from fedsim.deploy.fork import serve; serve(Path({str(socket)!r}))"
        server = Command([sys.executable, "-c", code], command.environment, command.folder).start(log)
        try:
            shim = fork.shim(Path(place) / "bin")
            environment = {**command.environment, fork.SOCKET: str(socket)}
            yield Command(command.words, environment, command.folder, (shim, *command.path))
        finally:
            stop(server)


def stop(process: subprocess.Popen[bytes], seconds: float = 5.0) -> None:
    """End a process and all that it started."""
    for signal in (15, 9):
        try:
            os.killpg(process.pid, signal)
            process.wait(seconds)
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue


def finish(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; end it where the waiting is interrupted."""
    try:
        return process.wait()
    except BaseException:
        stop(process)
        raise


def flower_command(site: Site, *words: str) -> Command:
    """A command of Flower's command line, against this deployment's control port."""
    settings, home = site.link, site.server / "cli"
    home.mkdir(exist_ok=True)
    safety = (
        f"root-certificates = {json.dumps(str(site.server / 'ca.crt'))}"
        if settings.tls
        else "insecure = true"
    )
    address = f'address = "127.0.0.1:{settings.control}"'
    config = f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{address}\n{safety}\n'
    write_whole(home / "config.toml", config.encode())
    return Command([str(BIN / "flwr"), *words], {"FLWR_HOME": str(home)}, site.folder)


def output(command: Command) -> str:
    """What a command says; raises `Invalid` where it fails."""
    with tempfile.TemporaryFile() as said:
        code = finish(command.start(said))
        said.seek(0)
        text = said.read().decode()
    if code:
        raise Invalid(f"{command}: {text.strip()[-600:]}")
    return text


def register_all(site: Site) -> dict[int, int]:
    """Have the server know the devices' keys, those that it does not know yet; the node of each device."""
    known = registered(site)
    register = ("supernode", "register")
    new = {
        i: flower_command(site, *register, str(site.device(i) / "key.pub"), "here", "--format", "json")
        for i in range(site.link.devices)
        if i not in known
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = pool.map(output, new.values())
        known |= {i: _node(text) for i, text in zip(new, said, strict=True)}
    write_whole(site.server / NODES, json.dumps(known).encode())
    return known


def _node(said: str) -> int:
    """The node that Flower made of a key; raises `Invalid`, with Flower's words, where it made none."""
    answer = json.loads(said[said.index("{") :])
    if "node-id" not in answer:
        words = " ".join(str(answer.get("error-message", said)).split())
        raise Invalid(f"no device was registered ({words}); is `fedsim deploy link` running?")
    return int(answer["node-id"])


def registered(site: Site) -> dict[int, int]:
    """The node of each device whose key the server knows."""
    path = site.server / NODES
    return {int(i): node for i, node in json.loads(path.read_text()).items()} if path.exists() else {}
