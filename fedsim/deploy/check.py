"""What is wrong with a deployment's folder, in words."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedsim.check import Invalid
from fedsim.deploy.agreement import Agreement
from fedsim.deploy.device import examples
from fedsim.deploy.pki import load_key
from fedsim.deploy.site import Link, Site, Uplink
from fedsim.deploy.spent import Spent

OPEN = (
    "any experiment, also without noise, and no budget: set min_noise, epsilon or fingerprint to allow less"
)
OLDEST, NEWEST = (1, 38), (1, 40)  # of flwr, the newest left out: from there on devices speak HTTP


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what is wrong with it, or to be known of it; both empty where nothing is."""

    what: str
    wrong: str
    note: str = ""

    def __str__(self) -> str:
        mark = "WRONG" if self.wrong else "NOTE " if self.note else "ok   "
        return f"{mark}  {': '.join(filter(None, (self.what, self.wrong or self.note)))}"


def check(folder: Path, reach: bool = True) -> list[Finding]:
    """Look at a device's or a server's folder; raises `Invalid` where it is neither. `reach`: try the ports too."""
    if (folder / "uplink.toml").exists():
        looks = _device(folder, reach)
    elif (folder / "deploy.toml").exists():
        looks = _server(Site(folder), reach)
    else:
        raise Invalid(f"{folder}: neither a device's folder (uplink.toml) nor a deployment's (deploy.toml)")
    looks = {"version of flwr": flower_version, **looks}
    findings = [Finding(what, _said(look)) for what, look in looks.items()]
    own = _terms(folder)
    return [*findings, Finding("what the terms allow", "", OPEN)] if own and own.wide_open else findings


def _said(look: Callable[[], None]) -> str:
    try:
        look()
    except (Invalid, OSError, ValueError, InvalidSignature) as error:
        return str(error) or type(error).__name__
    return ""


def _device(folder: Path, reach: bool) -> dict[str, Callable[[], None]]:
    looks: dict[str, Callable[[], None]] = {
        "terms (device.toml)": lambda: _ignore(Agreement.load(folder / "device.toml")),
        "ledger": lambda: _ignore(Spent.load(folder / "ledger.json")),
        "server address (uplink.toml)": lambda: _ignore(_address(folder)),
        "authority (ca.crt)": lambda: valid(folder / "ca.crt"),
        "key": lambda: pair(folder / "key"),
    }
    own = _terms(folder)
    if own and own.own_data:
        looks["data"] = lambda: _ignore(examples(own))
    if reach:
        looks["server"] = lambda: reachable(
            *_address(folder), folder / "ca.crt", Uplink.load(folder / "uplink.toml").tls
        )
    return looks


def _terms(folder: Path) -> Agreement | None:
    """The terms of a device, None where they cannot be read."""
    try:
        return Agreement.of(folder)
    except Invalid:
        return None


def _server(site: Site, reach: bool) -> dict[str, Callable[[], None]]:
    looks: dict[str, Callable[[], None]] = {
        "settings (deploy.toml)": lambda: _ignore(site.link),
        "authority (ca.crt)": lambda: valid(site.server / "ca.crt"),
        "server certificate": lambda: valid(site.server / "server.pem"),
        "certificate and authority": lambda: signed(
            site.server / "server.pem", site.server / "ca.crt", site.link
        ),
        "certificate and key": lambda: belongs(site.server / "server.pem", site.server / "server.key"),
    }
    for i in range(_devices(site)):
        looks[f"key of device {i}"] = lambda i=i: pair(site.device(i) / "key")  # type: ignore[misc]
    if reach:
        looks["devices' port"] = lambda: reachable(
            "127.0.0.1", site.link.port, site.server / "ca.crt", site.link.tls
        )
    return looks


def flower_version() -> None:
    try:
        held = version("flwr")
    except PackageNotFoundError:
        raise Invalid("Flower is not installed: pip install fedsim") from None
    if not OLDEST <= tuple(int(part) for part in held.split(".")[:2]) < NEWEST:
        raise Invalid(f"{held}: devices speak gRPC from 1.38 to 1.39, and all machines need the same")


def valid(path: Path) -> None:
    """Raise `Invalid` for a certificate that is not valid today."""
    held = _load(path)
    now = datetime.now(UTC)
    if now >= held.not_valid_after_utc:
        raise Invalid(
            f"expired on {held.not_valid_after_utc:%Y-%m-%d}: make a new deployment, or a new certificate"
        )
    if now < held.not_valid_before_utc:
        raise Invalid(
            f"valid only from {held.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on: is this machine's clock right?"
        )


def signed(path: Path, authority: Path, link: Link) -> None:
    """Raise `Invalid` for a certificate of another authority, or for another host."""
    held = _load(path)
    try:
        held.verify_directly_issued_by(_load(authority))
    except (ValueError, TypeError, InvalidSignature):
        raise Invalid(
            "the certificate was not signed by this authority: devices will refuse the server"
        ) from None
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    if link.host not in known:
        raise Invalid(f"the certificate is for {', '.join(known)}, devices connect to {link.host}")


def belongs(path: Path, key: Path) -> None:
    if _load(path).public_key() != load_key(key).public_key():
        raise Invalid(f"{key.name} is not the key of {path.name}")


def pair(key: Path) -> None:
    """Raise `Invalid` where a device's key is missing, open to others, or not that of the .pub file beside it."""
    public = load_ssh_public_key(key.with_suffix(".pub").read_bytes())
    if not key.exists():
        return  # on the server, where private keys have no business
    if key.stat().st_mode & 0o077:
        raise Invalid(f"{key}: others on this machine may read it: chmod 600 {key}")
    private = load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    if private.public_key() != public:
        raise Invalid(
            f"{key}.pub is another key's: the server knows this device by {key.name}.pub, and will refuse {key.name}"
        )


def reachable(host: str, port: int, authority: Path, tls: bool) -> None:
    """Raise `Invalid` where nobody listens, or somebody whose certificate the authority did not sign."""
    try:
        with socket.create_connection((host, port), timeout=5) as plain:
            if tls:
                context = ssl.create_default_context(cafile=str(authority))
                context.set_alpn_protocols(["h2"])
                with context.wrap_socket(plain, server_hostname=host):
                    pass
    except ssl.SSLCertVerificationError as error:
        raise Invalid(f"{host}:{port}: its certificate is refused ({error.verify_message})") from None
    except ssl.SSLError as error:
        raise Invalid(f"{host}:{port}: does not speak TLS ({error.reason})") from None
    except OSError as error:
        raise Invalid(
            f"{host}:{port}: not reachable ({error.strerror or error}); is `fedsim deploy link` running?"
        ) from None


def _address(folder: Path) -> tuple[str, int]:
    said = Uplink.load(folder / "uplink.toml").superlink
    host, _, port = said.rpartition(":")
    if not host or not port.isdigit():
        raise Invalid(f"superlink = {said!r}: must be host:port")
    return host, int(port)


def _devices(site: Site) -> int:
    try:
        return site.link.devices
    except Invalid:
        return 0


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _ignore(_: object) -> None:
    """A look that is over once the value could be read."""
