"""The authority of a deployment, the server's certificate, and devices' requests and certificates."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.check import Invalid
from fedsim.machine.files import write_whole

SKEW = timedelta(hours=12)  # a device whose clock is behind by less finds its certificates valid


def authority(certificate: Path, key: Path, days: int) -> None:
    """A self-signed certificate authority."""
    private = ec.generate_private_key(ec.SECP384R1())
    name = _called("fedsim deployment")
    built = (
        _certificate(name, name, private.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA384())
    )
    certificate.write_bytes(built.public_bytes(Encoding.PEM))
    write_secret(key, _pem(private))


def server(certificate: Path, key: Path, by: tuple[Path, Path], hosts: Sequence[str], days: int) -> None:
    """A certificate for a server reached under `hosts` (names or addresses), with a new key."""
    signer, signer_key = _signer(by)
    private = ec.generate_private_key(ec.SECP384R1())
    built = (
        _certificate(_called(hosts[0]), signer.subject, private.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_issued_by(signer_key), critical=False)
        .sign(signer_key, hashes.SHA384())
    )
    write_secret(key, _pem(private))
    write_whole(certificate, built.public_bytes(Encoding.PEM))


def request(path: Path, key: Path, name: str) -> None:
    """A request for a device's certificate, signed with its key, which is made where there is none."""
    if not key.exists():
        write_secret(key, _pem(ec.generate_private_key(ec.SECP384R1())))
    built = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_called(name))
        .sign(load_key(key), hashes.SHA384())
    )
    path.write_bytes(built.public_bytes(Encoding.PEM))


def requested(content: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    """The name and the key in a request; raises `Invalid` where it is none, or not signed with that key."""
    try:
        held = x509.load_pem_x509_csr(content)
        (name,) = held.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = held.public_key()
        if not held.is_signature_valid:
            raise ValueError("not signed with its own key")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Invalid(f"not a request for a certificate ({error})") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size < 256:
        raise Invalid("a request with another kind of key: allowed are elliptic curves of 256 bits and more")
    return str(name.value), key


def certify(name: str, key: ec.EllipticCurvePublicKey, by: tuple[Path, Path], days: int) -> bytes:
    """A certificate for a device's key, as PEM. It names no host: a device cannot pass for the server."""
    signer, signer_key = _signer(by)
    built = (
        _certificate(_called(name), signer.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .add_extension(_issued_by(signer_key), critical=False)
        .sign(signer_key, hashes.SHA384())
    )
    return built.public_bytes(Encoding.PEM)


def key_of(certificate: Path) -> ec.EllipticCurvePublicKey:
    """The key in a device's certificate."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _signer(by: tuple[Path, Path]) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    return x509.load_pem_x509_certificate(by[0].read_bytes()), load_key(by[1])


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _issued_by(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def write_secret(path: Path, content: bytes) -> None:
    """A file that only its owner may read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
