"""Bits that are counted beside the bytes that travel, both ways, by gRPC between a server and devices with TLS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import sleep
from typing import Any

import numpy as np

from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.datasets.load import Digits
from fedsim.datasets.split import IID
from fedsim.deploy.server import serving
from fedsim.deploy.site import Place
from fedsim.experiments.bench.devices import deployment
from fedsim.experiments.load import expression
from fedsim.federation import Federation
from fedsim.flower.remote import Remote
from fedsim.link import journal
from fedsim.link.answering import Host, Installed
from fedsim.link.device import Device, device_credentials
from fedsim.link.frame import header_of
from fedsim.messages import (
    QSGD,
    All,
    BFloat16,
    ByLayer,
    Compressor,
    Float16,
    Float32,
    NaturalCompression,
    RandK,
    RankK,
    Signs,
    StochasticSigns,
    Ternary,
    Threshold,
    TopK,
    Votes,
)
from fedsim.models import MLP
from fedsim.runner import drive
from fedsim.spec import Experiment
from fedsim.strategies import EF21, Mean
from fedsim.strategies.methods.ef21 import Plain
from fedsim.task import Task

ARRAY, ROUND = 128, 8  # bytes of an array's own header, which NumPy writes, and of a round's number
APP = "fedsim.flower.client:SIMULATED"
BASE = Experiment(
    task=Task(data=Digits(), model=MLP(hidden=100)),
    split=IID(),
    clients=2,
    rule=Mean(),
    method=EF21(),
    batches=Fixed(32),
    rounds=3,
    evaluate_every=1,
)
CODERS = (
    *(Float32(), BFloat16(), Float16(), NaturalCompression(), Signs(), StochasticSigns()),
    *(StochasticSigns(1.0), QSGD(), Ternary(), Votes()),
)
COMPRESSORS: tuple[Compressor, ...] = (
    *map(All, CODERS),
    *(TopK(0.1), TopK(0.1, NaturalCompression()), TopK(0.1, Signs()), TopK(0.01)),
    *(RandK(0.1), RandK(0.1, unbiased=False, coder=NaturalCompression()), Threshold()),
    *(RankK(1), RankK(2, NaturalCompression()), ByLayer(TopK(0.1)), ByLayer(All(Signs()))),
)


@dataclass
class Tapped:
    """The answers of a device's app, and bytes of numbers in the messages that came (0) and went (1)."""

    host: Host
    seen: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, frame: bytearray, seconds: float) -> bytes:
        reply = self.host.answer(bytes(frame))
        self.seen.append((numbers_in(frame), numbers_in(reply)))
        return reply


def numbers_in(frame: bytes | bytearray) -> int:
    """Bytes of the arrays in a frame without NumPy's headers; of a difference without its round's number."""
    header, body = header_of(frame)
    count = sum(len(items) for _, kind, items in header["records"] if kind == "array")
    return len(body) - ARRAY * count - ROUND * (count - 1)


def bench_bits(
    compressors: Sequence[Compressor] = COMPRESSORS, base: Experiment = BASE
) -> Iterator[dict[str, Any]]:
    """A line a compressor, which works both ways in EF21: bits counted in the last round, and bytes that travelled.

    `up_bytes` and `down_bytes` are those of a message's numbers, `up_header` and `down_header` all others that the
    server received and sent, a message: names, NumPy's header of 128, and in a question the experiment itself.
    """
    with TemporaryDirectory(prefix="fedsim-") as place:
        site = deployment(Path(place) / "site", base.clients)
        with serving(site) as grid, tapped(site.folder, base.clients) as devices:
            while len(list(grid.get_node_ids())) < base.clients:
                sleep(0.01)
            for number, by in enumerate(compressors):
                fed = Federation(replace(base, method=EF21(up=by, move=Plain(0.1), down=by)))
                before = _bytes("out"), _bytes("in")
                frame = drive(fed, Remote(grid, site.registry.nodes(), run=str(number))).frame
                seen = np.array([device.seen for device in devices])[:, -base.rounds :]
                sent = np.array([_bytes("out"), _bytes("in")]) - before
                headers = (sent - seen.sum((0, 1))) / seen[..., 0].size
                if (seen[:, -1] != seen[0, -1]).any():
                    raise Invalid(f"messages of unlike sizes in one round: {seen[:, -1].tolist()}")
                down, up = seen[0, -1].tolist()
                yield {
                    "compressor": expression(by),
                    "numbers": fed.width,
                    "up_bits": fed.uplink_bits(base.rounds - 1),
                    "up_bytes": up,
                    "up_header": float(headers[1]),
                    "down_bits": int(frame["downlink_bits"].diff().iloc[-1]),
                    "down_bytes": down,
                    "down_header": float(headers[0]),
                }


def _bytes(way: str) -> float:
    """Bytes of the frames that the server has sent ("out") or received ("in")."""
    return float(journal.BYTES.labels("server", way)._value.get())


@contextmanager
def tapped(folder: Path, n: int) -> Iterator[list[Tapped]]:
    """The devices of a deployment as threads of this process, whose clients are simulated."""
    answers = [Tapped(Host(Installed(APP, node_config={"partition-id": i}))) for i in range(n)]
    devices = []
    for i, answer in enumerate(answers):
        place = Place(folder / "devices" / str(i))
        secret = device_credentials(place.key, place.certificate, place.authority)
        devices.append(Device(place.uplink.server, secret, answer, place.folder / "last"))
    threads = [Thread(target=device.forever, daemon=True) for device in devices]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        for device, thread in zip(devices, threads, strict=True):
            device.stop()
            thread.join(20)
