"""Rounds over Flower's own SuperLink and SuperNodes on this machine, with TLS; prints the seconds of each as JSON.

python superlink_peer.py DEVICES PARAMETERS ROUNDS FOLDER        # with ca.crt, server.pem and server.key
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

BIN = Path(sys.executable).parent
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
PROJECT = """
[project]
name = "echo-app"
version = "0.1.0"
description = "sends back what it gets"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "echo:server"
clientapp = "echo:client"

[tool.flwr.app.config]
devices = 2
parameters = 1
rounds = 1
out = ""
"""
APP = """
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.train()
def train(message, context):
    return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

@server.main()
def main(grid, context):
    config, times = context.run_config, []
    while len(nodes := list(grid.get_node_ids())) < config["devices"]:
        time.sleep(0.5)
    content = RecordDict({"arrays": ArrayRecord({"x": Array(np.arange(config["parameters"], dtype=np.float32))})})
    for _ in range(config["rounds"]):
        began = time.perf_counter()
        replies = list(grid.send_and_receive([Message(content, node, "train") for node in nodes], timeout=600))
        rows = [reply.content["arrays"]["x"].numpy() for reply in replies]
        assert len(rows) == config["devices"]
        times.append(time.perf_counter() - began)
    with open(config["out"], "w") as file:
        json.dump(times, file)
"""


def ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def opened(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a program accepts connections."""
    while process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    sys.exit("the SuperLink ended")


def start(place: Path, name: str, words: list[str]) -> subprocess.Popen[bytes]:
    """A program in a group of its own, with a home of its own."""
    environment = os.environ | QUIET | {"FLWR_HOME": str(place / name), "PATH": f"{BIN}:{os.environ['PATH']}"}
    (place / name).mkdir()
    with (place / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            words, env=environment, cwd=place, stdout=log, stderr=log, start_new_session=True
        )


def main(devices: int, parameters: int, rounds: int, held: Path) -> None:
    grpc = tuple(map(int, version("flwr").split(".")[:2])) < (1, 40)  # devices speak HTTP from there on
    fleet, control, *nodes = ports(2 + devices)
    started: list[subprocess.Popen[bytes]] = []
    with TemporaryDirectory(prefix="superlink-") as folder:
        place, app = Path(folder), Path(folder) / "echo-app"
        app.mkdir()
        (app / "pyproject.toml").write_text(PROJECT)
        (app / "echo.py").write_text(APP)
        words = [str(BIN / "flower-superlink"), "--host", "127.0.0.1", "--port", str(control)]
        files = {"certfile": "server.pem", "keyfile": "server.key", "ca-certfile": "ca.crt"}
        for option, name in files.items():
            words += [f"--ssl-{option}", str(held / name)]
        words += (
            ["--fleet-api-type", "grpc-rere", "--fleet-api-address", f"127.0.0.1:{fleet}"] if grpc else []
        )
        try:
            started.append(start(place, "link", words))
            opened(control, started[0])
            for i, port in enumerate(nodes):
                words = [
                    str(BIN / "flower-supernode"),
                    "--root-certificates",
                    str(held / "ca.crt"),
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ]
                words += ["--grpc-rere"] if grpc else []
                words += ["--superlink", f"127.0.0.1:{fleet if grpc else control}"]
                started.append(start(place, f"node{i}", words))
            home = place / "cli"
            home.mkdir()
            here = f'address = "127.0.0.1:{control}"\nroot-certificates = "{held / "ca.crt"}"\n'
            address = f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{here}'
            (home / "config.toml").write_text(address)
            out = place / "times.json"
            config = f'devices={devices} parameters={parameters} rounds={rounds} out="{out}"'
            done = subprocess.run(
                [str(BIN / "flwr"), "run", str(app), "here", "--run-config", config, "--stream"],
                env=os.environ | QUIET | {"FLWR_HOME": str(home)},
                capture_output=True,
                text=True,
                check=False,
            )
            if not out.exists():
                sys.exit((done.stdout + done.stderr)[-600:] or "no rounds")
            print(json.dumps(json.loads(out.read_text())))
        finally:
            for sent in (signal.SIGTERM, signal.SIGKILL):  # some do not end at the first
                for process in started:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, sent)
                if sent == signal.SIGTERM:
                    time.sleep(2)
            for process in started:
                process.wait()


if __name__ == "__main__":
    counts = [int(each) for each in sys.argv[1:4]]
    main(counts[0], counts[1], counts[2], Path(sys.argv[4]))
