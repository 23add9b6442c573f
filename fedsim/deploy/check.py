"""What is wrong with a deployment's folder, in words."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedsim.check import Invalid
from fedsim.config.catalog import imported
from fedsim.deploy.data import examples
from fedsim.deploy.pki import load_key
from fedsim.deploy.site import Link, Place, Site
from fedsim.deploy.spent import Spent
from fedsim.deploy.terms import Terms

OPEN = (
    "any experiment, also without noise, and no budget: set epsilon, min_noise or fingerprint to allow less"
)
OLDEST = (1, 38)  # of flwr
SOON = timedelta(days=30)
Looks = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what is wrong with it, or to be known of it; both empty where nothing is."""

    what: str
    wrong: str = ""
    note: str = ""

    def __str__(self) -> str:
        mark = "WRONG" if self.wrong else "NOTE " if self.note else "ok   "
        return f"{mark}  {': '.join(filter(None, (self.what, self.wrong or self.note)))}"


def check(folder: Path, reach: bool = True) -> list[Finding]:
    """Look at a device's or a server's folder; raises `Invalid` where it is neither. `reach`: try the ports too."""
    if (folder / "uplink.toml").exists():
        looks, certificate = _device(Place(folder.resolve()), reach), folder / "device.crt"
    elif (folder / "deploy.toml").exists():
        looks, certificate = _server(Site(folder.resolve()), reach), folder / "server" / "server.pem"
    else:
        raise Invalid(f"{folder}: neither a device's folder (uplink.toml) nor a deployment's (deploy.toml)")
    findings = [_found(what, look) for what, look in ({"version of flwr": flower_version} | looks).items()]
    return [*findings, *_notes(folder, certificate)]


class Away(Invalid):
    """What is not there now, and need not be."""


def _found(what: str, look: Callable[[], object]) -> Finding:
    try:
        look()
    except Away as error:
        return Finding(what, note=str(error))
    except (Invalid, OSError, ValueError, InvalidSignature) as error:
        return Finding(what, wrong=str(error) or type(error).__name__)
    return Finding(what)


def _notes(folder: Path, certificate: Path) -> list[Finding]:
    found = []
    terms = _terms(Place(folder)) if (folder / "uplink.toml").exists() else None
    if terms is not None and terms.wide_open:
        found.append(Finding("what the terms allow", note=OPEN))
    if certificate.exists() and not _found("certificate", lambda: valid(certificate)).wrong:
        ends = _load(certificate).not_valid_after_utc
        if ends < datetime.now(UTC) + SOON:
            found.append(Finding("certificate", note=f"ends on {ends:%Y-%m-%d}: fedsim deploy renew"))
    return found


def _device(place: Place, reach: bool) -> Looks:
    looks: Looks = {
        "terms (device.toml)": lambda: place.terms,
        "ledger": lambda: Spent.of(place.folder),
        "server address (uplink.toml)": lambda: place.uplink,
        "authority (ca.crt)": lambda: valid(place.authority),
        "key": lambda: private(place.key),
        "certificate": lambda: enrolled(place),
    }
    terms = _terms(place)
    if terms is not None:
        looks["app"] = lambda: imported(terms.app, "app")
        if terms.own_data:
            looks["data"] = lambda: examples(terms)
    if reach:
        looks["server"] = lambda: reachable(*place.uplink.address, place)
    return looks


def _terms(place: Place) -> Terms | None:
    """The terms of a device, None where they cannot be read."""
    try:
        return place.terms
    except Invalid:
        return None


def _server(site: Site, reach: bool) -> Looks:
    held = site.server
    looks: Looks = {
        "settings (deploy.toml)": lambda: site.link,
        "authority (ca.crt)": lambda: valid(held / "ca.crt"),
        "server certificate": lambda: valid(held / "server.pem"),
        "certificate and authority": lambda: signed(held / "server.pem", held / "ca.crt"),
        "certificate and host": lambda: for_host(held / "server.pem", site.link),
        "certificate and key": lambda: belongs(held / "server.pem", held / "server.key"),
        "devices (devices.json)": lambda: some(site),
    }
    if reach:
        looks["port"] = lambda: free(site.link)
    return looks


def flower_version() -> None:
    try:
        held = version("flwr")
    except PackageNotFoundError:
        raise Invalid("Flower is not installed: pip install fedsim-robust") from None
    if tuple(int(part) for part in held.split(".")[:2]) < OLDEST:
        raise Invalid(f"{held}: fedsim needs {'.'.join(map(str, OLDEST))} or newer")


def valid(path: Path) -> None:
    """Raise `Invalid` for a certificate that is not valid now."""
    held = _load(path)
    now = datetime.now(UTC)
    if now >= held.not_valid_after_utc:
        raise Invalid(f"expired on {held.not_valid_after_utc:%Y-%m-%d}: fedsim deploy renew")
    if now < held.not_valid_before_utc:
        raise Invalid(
            f"valid only from {held.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on: is this machine's clock right?"
        )


def signed(path: Path, authority: Path) -> None:
    """Raise `Invalid` for a certificate of another authority."""
    try:
        _load(path).verify_directly_issued_by(_load(authority))
    except (ValueError, TypeError, InvalidSignature):
        raise Invalid("was not signed by this authority: the other side will refuse it") from None


def for_host(path: Path, link: Link) -> None:
    """Raise `Invalid` for a server's certificate that is for another host."""
    names = _load(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    if link.host not in known:
        raise Invalid(f"the certificate is for {', '.join(known)}, devices connect to {link.host}")


def belongs(path: Path, key: Path) -> None:
    if _load(path).public_key() != load_key(key).public_key():
        raise Invalid(f"{key.name} is not the key of {path.name}")


def private(key: Path) -> None:
    """Raise `Invalid` for a key that others may read."""
    load_key(key)
    if key.stat().st_mode & 0o077:
        raise Invalid(f"{key}: others on this machine may read it: chmod 600 {key}")


def enrolled(place: Place) -> None:
    """Raise `Invalid` where a device has no certificate yet, or one that its server will refuse."""
    if not place.certificate.exists():
        raise Invalid(
            f"none yet: have {place.request.name} signed, and put what comes back here as {place.certificate.name}"
        )
    valid(place.certificate)
    signed(place.certificate, place.authority)
    belongs(place.certificate, place.key)


def some(site: Site) -> None:
    if not site.registry.nodes():
        raise Invalid("no device was added yet: fedsim deploy add")


def free(link: Link) -> None:
    """Raise `Invalid` where another program has the port."""
    host, port = link.bound.rsplit(":", 1)
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, int(port)))
        except OSError as error:
            raise Invalid(f"{link.bound}: {error.strerror}; a run that goes on has it") from None


def reachable(host: str, port: int, place: Place) -> None:
    """Raise `Away` where nobody listens, `Invalid` where somebody does whose certificate the authority did not sign."""
    try:
        with socket.create_connection((host, port), timeout=5) as plain:
            context = ssl.create_default_context(cafile=str(place.authority))
            context.load_cert_chain(place.certificate, place.key)
            context.set_alpn_protocols(["h2"])
            with context.wrap_socket(plain, server_hostname=host):
                pass
    except ssl.SSLCertVerificationError as error:
        raise Invalid(f"{host}:{port}: its certificate is refused ({error.verify_message})") from None
    except ssl.SSLError as error:
        raise Invalid(f"{host}:{port}: does not speak TLS ({error.reason})") from None
    except (ConnectionRefusedError, TimeoutError):
        raise Away(f"{host}:{port}: nobody listens now; there is a server while a run lasts") from None
    except OSError as error:
        raise Invalid(f"{host}:{port}: not reachable ({error.strerror or error})") from None


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())
