"""Making a deployment's folder and a device's, and letting devices in and out. No private key leaves its machine."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from fedsim.check import Invalid
from fedsim.deploy import pki, units
from fedsim.deploy.site import Link, Place, Site, Uplink
from fedsim.deploy.terms import Terms
from fedsim.link.identity import digest_of, identity_of
from fedsim.machine.files import write_whole, writing

ADVICE = """# The terms of this device. The server cannot change them; `fedsim deploy check` says what is wrong here.
# After a change: fedsim deploy check, and then kill -HUP the running device (systemctl reload fedsim-device).
# app          the Flower ClientApp that answers, as module:app; it is installed here, and no other code runs
# data         "partition": this device's part of the experiment's data set (a trial), or a file of this device with
#              x and y (.npz; without x all other arrays are inputs, by name), or with a column y (.csv, .parquet), or
#              module:function, installed here, that returns x and y
# classes      how many classes there are, where data is the device's own: labels run from 0 to classes - 1; 0: numbers
# components   models and losses of your own, as module:name, installed here, that an experiment may name
# epsilon      its privacy budget over all runs, at delta; "none" for both for no budget
# min_noise    the least noise multiplier that it answers with
# max_rounds   the most rounds that it answers, ever
# fingerprint  the one experiment that it takes part in, or "any"
# test_mode    accept noise that the server can derive: nothing is private then
# red_team     play a Byzantine client where an experiment asks for one
# seconds, bytes, memory                of an answer, a message, the app's process (GiB, 0: no limit): the most
# rounds, clients, parameters           of an experiment: the most
# node_config, run_config               what an app of Flower's finds in its context
"""


def init(folder: Path, link: Link) -> Site:
    """Make the folder of a deployment; raises `Invalid` where there is one."""
    site = Site(folder.resolve())
    if site.settings.exists():
        raise Invalid(f"{folder}: holds a deployment already; allowed is a new folder")
    with writing(folder):
        for each in (site.server, site.authority[0].parent, site.certificate(0).parent):
            each.mkdir(parents=True, exist_ok=True)
        site.authority[1].parent.chmod(0o700)
        pki.authority(*site.authority, 10 * link.days)
        (site.server / "ca.crt").write_bytes(site.authority[0].read_bytes())
        certify_server(site, link)
        invitation = {"server": f"{link.host}:{link.port}", "authority": site.authority[0].read_text()}
        site.invitation.write_text(tomli_w.dumps(invitation, multiline_strings=True))
        units.write(site.folder, "server", link.port)
        (site.folder / "README.md").write_text(_readme(link))
        link.save(site.settings)
    return site


def certify_server(site: Site, link: Link) -> None:
    """A new key and a new certificate for the server."""
    names = list(dict.fromkeys([link.host, "localhost", "127.0.0.1"]))
    pki.server(site.server / "server.pem", site.server / "server.key", site.authority, names, link.days)


def join(folder: Path, invitation: Path, terms: Terms, metrics: int = 0) -> str:
    """Make the folder of a device, with a key and a request for its certificate; the digest of the key."""
    place = Place(folder.resolve())
    try:
        said: dict[str, Any] = tomllib.loads(invitation.read_text())
        server, authority = str(said["server"]), str(said["authority"])
    except (OSError, ValueError, KeyError) as error:
        raise Invalid(f"{invitation}: not an invitation from `fedsim deploy init` ({error})") from None
    if (place.folder / "device.toml").exists():
        raise Invalid(f"{folder}: holds a device already; allowed is a new folder")
    with writing(folder):
        place.folder.mkdir(parents=True, exist_ok=True)
        place.folder.chmod(0o700)
        place.authority.write_text(authority)
        Uplink(server=server, metrics=metrics).save(place.folder / "uplink.toml")
        units.write(place.folder, "device")
        digest = ask(place, terms.client)
        terms.save(place.folder / "device.toml", ADVICE)
    return digest


def ask(place: Place, client: int) -> str:
    """A request for a certificate, signed with the device's key, made where there is none; the key's digest."""
    pki.request(place.request, place.key, f"client {client}")
    return digest_of(pki.requested(place.request.read_bytes())[1])


def add(site: Site, request: Path) -> tuple[int, str, Path]:
    """Let in the device of a request: its client, the digest of its key, and where its certificate lies."""
    try:
        content = request.read_bytes()
    except OSError as error:
        raise Invalid(f"{request}: cannot be read ({error.strerror})") from None
    name, key = pki.requested(content)
    word, _, number = name.partition(" ")
    if word != "client" or not number.isdecimal() or len(number) > 9:
        raise Invalid(f"{request}: a request of {name[:40]!r}, must be of a client and its number")
    client = int(number)
    certificate = pki.certify(name, key, site.authority, site.link.days)
    with writing(site.folder):
        site.registry.add(client, identity_of(certificate))
        write_whole(site.certificate(client), certificate)
    return client, digest_of(key), site.certificate(client)


def renew(site: Site, client: int | None) -> Path:
    """A new certificate for the key of a client's device, or with a new key for the server; where it lies."""
    if client is None:
        certify_server(site, site.link)
        return site.server / "server.pem"
    site.registry.find(client)
    path = site.certificate(client)
    certificate = pki.certify(f"client {client}", pki.key_of(path), site.authority, site.link.days)
    with writing(site.folder):
        site.registry.add(client, identity_of(certificate))
        write_whole(path, certificate)
    return path


def _readme(link: Link) -> str:
    return f"""# A deployment of fedsim

The server is {link.host}, port {link.port} (gRPC with TLS, certificates on both sides). No private key leaves its
machine.

1. Each device, with fedsim installed and `invitation.toml` from this folder, makes its own key and terms:

       fedsim deploy init device --join invitation.toml --client 0 --data own.npz

   It asks for a privacy budget, and prints a key. Its owner sends `device/request.csr` here, and reads the key out.

2. Where the authority is, which is this folder:

       fedsim deploy add . request.csr           # compare the key that it prints with what the owner read out

   The certificate, `certificates/0.crt`, goes back to the device as `device/device.crt`; it is not secret.

3. On the device:

       fedsim deploy check device
       fedsim deploy device device               # or units/fedsim-device.service, or compose.yaml

4. On the server, which needs `deploy.toml` and `server` of this folder:

       fedsim deploy check .
       fedsim deploy run . quickstart --set clients=5 --set attack=none --set byzantine=0
       fedsim deploy status .

`fedsim deploy revoke . 0` shuts a device out at once; `fedsim deploy renew . 0` makes it a new certificate, and
`fedsim deploy renew .` the server. `authority/ca.key` signs all certificates: keep it off every machine that can do
without.
"""
