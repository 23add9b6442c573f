"""The two kinds of folder: the server's, with its authority, and a device's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from fedsim.check import Count, Finite, Invalid
from fedsim.deploy.registry import Registry
from fedsim.deploy.settings import Settings
from fedsim.deploy.terms import Terms

LAST = 65535
Port = Annotated[int, Ge(1), Le(LAST)]
Optional = Annotated[int, Ge(0), Le(LAST)]  # 0 for none
NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Link(Settings):
    """The server's settings, in `deploy.toml`.

    host, port  under which devices reach it, by gRPC; metrics: the port of the loopback address that Prometheus reads,
                0 for none
    bytes       of an answer, and budget: bytes of answers that are received at the same time: the most
    grace       seconds that a device may be away before a round goes on without it
    days        that certificates are valid
    """

    host: str = "127.0.0.1"
    port: Port = 9092
    metrics: Optional = 9464
    bytes: Count = 1 << 28
    budget: Count = 1 << 31
    grace: Finite = 30.0
    days: Count = 365

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.host) > 253 or not NAME.fullmatch(self.host):
            raise Invalid(f"Link.host = {self.host!r}: must be a name in the network or an IPv4 address")

    @property
    def bound(self) -> str:
        """The address at which devices' connections are accepted."""
        local = self.host in ("127.0.0.1", "localhost")
        return f"{'127.0.0.1' if local else '0.0.0.0'}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Uplink(Settings):
    """A device's side, in `uplink.toml`: the server, as host:port, and the port of its own that Prometheus reads."""

    server: str
    metrics: Optional = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        host, _, port = self.server.rpartition(":")
        if not NAME.fullmatch(host) or not port.isdecimal() or not 1 <= int(port) <= LAST:
            raise Invalid(f"Uplink.server = {self.server!r}: must be host:port")

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.server.rpartition(":")
        return host, int(port)


@dataclass(frozen=True)
class Site:
    """The paths of a deployment's folder."""

    folder: Path

    @property
    def settings(self) -> Path:
        return self.folder / "deploy.toml"

    @property
    def authority(self) -> tuple[Path, Path]:
        return self.folder / "authority" / "ca.crt", self.folder / "authority" / "ca.key"

    @property
    def server(self) -> Path:
        """What the server needs beside its settings: server.pem, server.key, ca.crt, devices.json."""
        return self.folder / "server"

    @property
    def invitation(self) -> Path:
        """What a device needs to know of the server, nothing of it secret."""
        return self.folder / "invitation.toml"

    @property
    def link(self) -> Link:
        return Link.load(self.settings)

    @property
    def registry(self) -> Registry:
        return Registry(self.server / "devices.json")

    def certificate(self, client: int) -> Path:
        """Where the certificate of a client's device lies until it is brought there."""
        return self.folder / "certificates" / f"{client}.crt"


@dataclass(frozen=True)
class Place:
    """The paths of a device's folder."""

    folder: Path

    @property
    def terms(self) -> Terms:
        return Terms.of(self.folder)

    @property
    def uplink(self) -> Uplink:
        return Uplink.load(self.folder / "uplink.toml")

    @property
    def key(self) -> Path:
        return self.folder / "device.key"

    @property
    def certificate(self) -> Path:
        return self.folder / "device.crt"

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def request(self) -> Path:
        return self.folder / "request.csr"
