"""Who is who on the link: a node's id is the digest of its public key; certificates are looked at more than once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


@dataclass(frozen=True)
class Identity:
    """The key of a certificate, as the SHA-256 of its public half, and how long the certificate is valid."""

    digest: str
    begins: datetime
    ends: datetime

    @property
    def node(self) -> int:
        return node_of(self.digest)

    @property
    def current(self) -> bool:
        """Whether the certificate is valid now; TLS asks this when a connection begins, and never again."""
        return self.begins <= datetime.now(UTC) < self.ends


@lru_cache(maxsize=4096)
def identity_of(pem: bytes) -> Identity:
    """The identity in a certificate."""
    held = x509.load_pem_x509_certificate(pem)
    return Identity(digest_of(held.public_key()), held.not_valid_before_utc, held.not_valid_after_utc)


def digest_of(key: PublicKeyTypes) -> str:
    """64 hexadecimal digits that name a public key."""
    public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def node_of(digest: str) -> int:
    """The node id of a key, 60 bits: the same after every restart, without a database."""
    return int(digest[:15], 16)


def server_credentials(key: bytes, certificate: bytes, authority: bytes) -> grpc.ServerCredentials:
    """TLS in which a device shows a certificate of the authority, or gets no connection."""
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
