"""The folder of a deployment: certificates, a folder for each device, the Flower app, and where the server is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from annotated_types import Ge, Le

from fedsim.check import Count, Invalid
from fedsim.deploy import pki
from fedsim.deploy.agreement import Agreement
from fedsim.deploy.settings import Settings

DAYS = 365
LAST = 65535
Port = Annotated[int, Ge(1), Le(LAST)]
NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)
ADVICE = """# The terms of this device. The server cannot change them; `fedsim deploy check` says what is wrong here.
# data         "partition": this device's part of the experiment's data set (a trial), or an .npz file with x and y
# classes      how many classes the experiment has, where `data` is a file: labels run from 0 to classes - 1
# min_noise    the least noise multiplier that it answers with
# max_rounds   the most rounds that it answers, ever
# epsilon      its privacy budget at `delta`, over all runs; "none" for no budget
# fingerprint  the one experiment that it takes part in, or "any"
# test_mode    accept noise that the server can derive: nothing is private then
# red_team     play a Byzantine client where an experiment asks for one
"""


@dataclass(frozen=True, kw_only=True)
class Link(Settings):
    """The server's side. Devices reach `host`:`port` by gRPC; the control port is for this machine alone.

    Whoever reaches the control port can have code run on every device, so it binds to the loopback address.
    """

    host: str = "127.0.0.1"
    port: Port = 9092
    control: Port = 9093
    devices: Count = 5
    tls: bool = True
    keys: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.host) > 253 or not NAME.fullmatch(self.host):
            raise Invalid(f"Link.host = {self.host!r}: must be a name in the network or an IPv4 address")
        if self.control + self.devices > LAST:
            raise Invalid(
                f"Link.control = {self.control} with {self.devices} devices: these take the ports that follow, "
                f"which must be at most {LAST}"
            )

    @property
    def bound(self) -> str:
        """The address that devices' connections are accepted at."""
        return "127.0.0.1" if self.host in ("127.0.0.1", "localhost") else "0.0.0.0"


@dataclass(frozen=True, kw_only=True)
class Uplink(Settings):
    """A device's side: where the server is, and the port of the SuperNode's own API, on the loopback address."""

    superlink: str
    tls: bool = True
    keys: bool = True
    port: Port = 9094


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
        """What goes to the server: server.pem, server.key, ca.crt."""
        return self.folder / "server"

    @property
    def app(self) -> Path:
        return self.folder / "fedsim-app"

    def device(self, i: int) -> Path:
        """What goes to device i, and nowhere else."""
        return self.folder / "devices" / str(i)

    @property
    def link(self) -> Link:
        return Link.load(self.settings)


def init(folder: Path, link: Link, terms: Mapping[str, Any] = MappingProxyType({})) -> Site:
    """Make the folder of a deployment, `terms` among those of its devices; raises `Invalid` where there is one."""
    site = Site(folder.resolve())
    if site.settings.exists():
        raise Invalid(f"{folder}: holds a deployment already; allowed is a new folder")
    try:
        for each in (site.server, site.authority[0].parent, *(site.device(i) for i in range(link.devices))):
            each.mkdir(parents=True, exist_ok=True)
        site.authority[1].parent.chmod(0o700)
        pki.authority(*site.authority, DAYS)
        names = list(dict.fromkeys([link.host, "localhost", "127.0.0.1"]))
        pki.server(site.server / "server.pem", site.server / "server.key", site.authority, names, DAYS)
        shutil.copy(site.authority[0], site.server)
        shutil.copytree(Path(__file__).parent / "bundle", site.app)
        for i in range(link.devices):
            _device(site, link, i, terms)
        (site.folder / "README.md").write_text(_readme(site, link))
        link.save(site.settings)
    except OSError as error:
        raise Invalid(f"{folder}: cannot be written ({error.strerror or error})") from None
    return site


def _device(site: Site, link: Link, i: int, changes: Mapping[str, Any]) -> None:
    folder = site.device(i)
    pki.device(folder / "key")
    shutil.copy(site.authority[0], folder)
    Uplink(
        superlink=f"{link.host}:{link.port}", tls=link.tls, keys=link.keys, port=link.control + 1 + i
    ).save(folder / "uplink.toml")
    Agreement(client=i, **changes).save(folder / "device.toml", ADVICE)


def _readme(site: Site, link: Link) -> str:
    tls = "with TLS" if link.tls else "UNENCRYPTED: everybody on the way reads and changes messages"
    keys = "by its key" if link.keys else "by NOTHING: anybody can be any device"
    return f"""# A deployment of fedsim with {link.devices} devices

Every machine has fedsim installed; no code travels but the folder `fedsim-app`, which has none.

1. The server ({link.host}) gets `deploy.toml`, `server`, `fedsim-app`, and of `devices` only the public keys,
   `devices/i/key.pub`. In two terminals, in the folder that holds these:

       fedsim deploy link .
       fedsim deploy register .

2. Device i gets `devices/i` and nothing else. Set its terms in `device.toml`, then

       fedsim deploy check devices/i
       fedsim deploy device devices/i

3. On the server, with an experiment (a recipe's name, or its TOML file) that has a client for each device:

       fedsim deploy check .
       fedsim deploy run . quickstart --set clients={link.devices} --set attack=none --set byzantine=0

Devices connect to port {link.port} by gRPC, {tls}; the server knows each {keys}.
Port {link.control} is bound to the server's loopback address: whoever reaches it can have code run on every device.
`authority` stays where it is: its `ca.key` signs server certificates; keep it off every machine that is on the network.
"""
