"""Seconds a round of messages between a server and devices: fedsim's link, Flower's SuperLink, NVFlare's simulator.

Devices send back what they get: what is timed is everything but the training. fedsim's are light ones, fronts as
threads of one process beside the server's, each with a certificate, a stream and a file of its own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fedsim.check import Invalid
from fedsim.deploy import enrol
from fedsim.deploy.local import free_port
from fedsim.deploy.site import Link, Place, Site
from fedsim.deploy.terms import Terms
from fedsim.experiments.bench.against import SCRIPTS, python
from fedsim.experiments.bench.process import MIB, proc_bytes

SWARM = "fedsim.experiments.bench.swarm"
DEVICE = {"fedsim": 1, "flower": 320, "nvflare": 160}  # MiB of memory that a device takes, about
COPIES = 3  # of a message, in the memory of all at the same time
HOURS = 0.25  # for all rounds of a peer, the most


def bench_devices(
    counts: Iterable[int],
    parameters: Iterable[int],
    rounds: int,
    against: Iterable[str] = (),
    peers: Path = Path("peers"),
    memory: float = 8.0,
) -> Iterator[dict[str, Any]]:
    """A line for each number of devices and of parameters, and for each system; what is beyond `memory` GiB is said."""
    systems = ["fedsim", *against]
    for unknown in set(systems) - set(DEVICE):
        raise Invalid(f"against = {unknown!r}: allowed are flower and nvflare")
    interpreters = {"flower": Path(sys.executable)}
    if "nvflare" in systems:
        interpreters["nvflare"] = python("nvflare", peers)
    for n in counts:
        for d in parameters:
            for system in systems:
                about = {"system": system, "devices": n, "parameters": d}
                needed = n * (DEVICE[system] + COPIES * 4 * d / MIB) / 1024
                if needed > memory:
                    yield about | {"left_out": f"about {needed:.0f} GiB, beyond {memory:g}"}
                elif system == "fedsim":
                    yield about | fedsim(n, d, rounds)
                else:
                    yield about | peer(system, interpreters[system], n, d, rounds)


def fedsim(n: int, d: int, rounds: int) -> dict[str, Any]:
    """Rounds over a `LinkGrid` in this process, the first one left out; times, bytes and this process's growth."""
    from flwr.app import Array, ArrayRecord, Message, RecordDict

    from fedsim.deploy.server import serving
    from fedsim.flower.arrays import Layout
    from fedsim.link import journal

    with TemporaryDirectory(prefix="fedsim-") as place:
        site = deployment(Path(place) / "site", n)
        before = proc_bytes("VmRSS")
        with serving(site) as grid, swarm(site.folder, n):
            began = time.perf_counter()
            while len(nodes := sorted(grid.get_node_ids())) < n:
                time.sleep(0.01)
            connecting = time.perf_counter() - began
            idle = proc_bytes("VmRSS") - before
            content = RecordDict({"arrays": ArrayRecord({"x": Array(np.arange(d, dtype=np.float32))})})
            layout, times, sizes = Layout.of(content.array_records["arrays"]), list[float](), list[float]()
            for _ in range(rounds + 1):
                counted, began = _bytes(journal), time.perf_counter()
                replies = grid.send_and_receive(
                    [Message(content, node, "train") for node in nodes], timeout=600
                )
                rows = [layout.vector(reply.content.array_records["arrays"]) for reply in replies]
                times.append(time.perf_counter() - began)
                sizes.append(_bytes(journal) - counted)
                if len(rows) < n or any(float(row[-1]) != d - 1 for row in rows):
                    raise Invalid(f"{n - len(rows)} of {n} devices did not answer")
    told = {"bytes_a_round": sizes[-1], "connecting_seconds": connecting, "idle_mib": idle / MIB}
    return _seconds(times) | told


def deployment(folder: Path, n: int) -> Site:
    """A server on this machine's loopback address and n devices with certificates, in folders `devices/0` and so on."""
    site = enrol.init(folder, Link(port=free_port(), metrics=0))
    for i in range(n):
        device = Place(folder / "devices" / str(i))
        enrol.join(device.folder, site.invitation, Terms(client=i, epsilon=None, delta=None))
        _, _, certificate = enrol.add(site, device.request)
        device.certificate.write_bytes(certificate.read_bytes())
    return site


def peer(system: str, interpreter: Path, n: int, d: int, rounds: int) -> dict[str, Any]:
    """The same rounds over a peer as it is shipped, the first one left out; or why there are none."""
    script = {"flower": "superlink_peer.py", "nvflare": "nvflare_peer.py"}[system]
    words = [str(interpreter), str(SCRIPTS / script), *map(str, (n, d, rounds + 1))]
    with TemporaryDirectory(prefix="fedsim-") as place:
        if system == "flower":
            words.append(str(enrol.init(Path(place) / "site", Link(metrics=0)).server))
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=3600 * HOURS)
        except subprocess.TimeoutExpired:
            return {"left_out": f"not over in {60 * HOURS:g} minutes"}
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if any(map(str.isalnum, line))]
        return {"left_out": f"it failed: {said[-1].strip() if said else done.returncode}"}
    return _seconds(json.loads(done.stdout.splitlines()[-1]))


def _seconds(times: list[float]) -> dict[str, Any]:
    times = times[1:]
    return {"seconds_a_round": float(np.median(times)), "fastest": min(times), "slowest": max(times)}


def _bytes(journal: Any) -> float:
    return sum(float(journal.BYTES.labels("server", way)._value.get()) for way in ("in", "out"))


@contextlib.contextmanager
def swarm(folder: Path, n: int) -> Iterator[None]:
    """So many light devices in a process of their own, which dial from here on, until the end of the block."""
    words = [sys.executable, "-m", SWARM, str(folder), str(n)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        print(file=process.stdin, flush=True)
        try:
            yield
        finally:
            process.terminate()
