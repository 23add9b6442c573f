"""Certificates, grids and devices for the tests of the link, on the loopback address."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.deploy import pki
from fedsim.deploy.local import free_port
from fedsim.link.device import Answer, Device, device_credentials
from fedsim.link.frame import Limits, header_of, seal
from fedsim.link.grid import LinkGrid
from fedsim.link.identity import identity_of, node_of, server_credentials


def echo(frame: bytearray, seconds: float) -> bytes:
    """A ClientApp that sends back what came."""
    header, body = header_of(frame)
    return b"".join(seal({"records": header["records"]}, [body]))


class Yard:
    """An authority, a server, and devices' folders."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.folder = folder
        self.by = folder / "ca.crt", folder / "ca.key"
        pki.authority(*self.by, 365)
        pki.server(folder / "server.pem", folder / "server.key", self.by, ["localhost", "127.0.0.1"], 365)
        self.keys = [self.enrol(str(i)) for i in range(devices)]
        self.port = free_port()

    def enrol(self, name: str, days: int = 365) -> str:
        """A device's folder with its key and certificate; the digest of the key."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        pki.request(place / "request.csr", place / "device.key", name)
        _, key = pki.requested((place / "request.csr").read_bytes())
        (place / "device.crt").write_bytes(pki.certify(name, key, self.by, days))
        return identity_of((place / "device.crt").read_bytes()).digest

    @property
    def nodes(self) -> list[int]:
        return [node_of(key) for key in self.keys]

    def grid(self, **options: Any) -> LinkGrid:
        read = [(self.folder / name).read_bytes() for name in ("server.key", "server.pem", "ca.crt")]
        known = options.pop("known", lambda: set(self.keys))
        return LinkGrid(f"127.0.0.1:{self.port}", server_credentials(*read), known, **options)

    def device(self, i: int | str, answer: Answer = echo, port: int | None = None, **options: Any) -> Device:
        place = self.folder / str(i)
        credentials = device_credentials(place / "device.key", place / "device.crt", self.folder / "ca.crt")
        return Device(f"127.0.0.1:{port or self.port}", credentials, answer, place / "last", **options)


@contextmanager
def running(*devices: Device) -> Iterator[None]:
    """Devices that serve in threads of this process, until the end of the block."""
    threads = [threading.Thread(target=each.forever, daemon=True) for each in devices]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each in devices:
            each.stop()
        for thread in threads:
            thread.join(20)


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def message(node: int, content: RecordDict | None = None, kind: str = "train", ttl: float = 60.0) -> Message:
    return Message(content if content is not None else numbers(), node, kind, ttl=ttl)


def numbers(count: int = 1000) -> RecordDict:
    """A content with everything that a content can have."""
    return RecordDict(
        {
            "arrays": ArrayRecord(
                {"w": Array(np.arange(count, dtype=np.float32)), "b": Array(np.zeros((2, 0)))}
            ),
            "metrics": MetricRecord({"loss": 0.5, "n": [1, 2, 3], "f": [1.0, 2.5]}),
            "config": ConfigRecord(
                {"lr": 0.1, "on": True, "name": "é\ud800"[:1], "raw": b"\x00\xff", "many": [b"a", b""]}
            ),
        }
    )


LIMITS = Limits(size=1 << 24)
