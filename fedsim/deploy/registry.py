"""The devices of a deployment, as the server knows them: by their keys."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fedsim.check import Invalid
from fedsim.link.identity import Identity, node_of
from fedsim.link.journal import say
from fedsim.machine.files import write_whole


@dataclass(frozen=True)
class Entry:
    """A device: the digest of its key, when its newest certificate ends, and since when it is revoked."""

    client: int
    key: str
    ends: str
    revoked: str | None = None

    @property
    def node(self) -> int:
        return node_of(self.key)


class Registry:
    """The file with the entries. It is read again when it has changed, so a running server knows at once."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, (0, 0)
        self._entries: tuple[Entry, ...] = ()
        self._known: frozenset[str] = frozenset()

    def entries(self) -> tuple[Entry, ...]:
        """All of them, revoked ones too; raises `Invalid` where the file is damaged."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._seen, self._entries, self._known = (0, 0), (), frozenset()
            return ()
        if (stat.st_mtime_ns, stat.st_size) != self._seen:
            try:
                self._entries = tuple(Entry(**each) for each in json.loads(self._path.read_text()))
            except (OSError, ValueError, TypeError) as error:
                raise Invalid(f"{self._path}: not a readable list of devices ({error})") from None
            self._known = frozenset(each.key for each in self._entries if each.revoked is None)
            self._seen = stat.st_mtime_ns, stat.st_size
        return self._entries

    def known(self) -> frozenset[str]:
        """The digests of the keys that are not revoked; none where the file is damaged."""
        try:
            self.entries()
        except Invalid as error:
            say("no device is served", logging.ERROR, reason=str(error))
            return frozenset()
        return self._known

    def nodes(self) -> Mapping[int, int]:
        """The node of each client whose key is not revoked."""
        return {each.client: each.node for each in self.entries() if each.revoked is None}

    def add(self, client: int, identity: Identity) -> None:
        """One more device, or a new certificate for the key of one; raises `Invalid` for a key of another."""
        for each in self.entries():
            if each.revoked is None and (each.client == client) != (each.key == identity.digest):
                raise Invalid(
                    f"client {each.client} has the key {each.key}: a client has one key, and a key one client; "
                    f"revoke {each.client} first where it changes"
                )
            if each.revoked is not None and each.key == identity.digest:
                raise Invalid(f"the key {each.key} was revoked: make a new one on the device")
        rest = [each for each in self.entries() if each.key != identity.digest]
        self._write([*rest, Entry(client, identity.digest, identity.ends.isoformat(timespec="seconds"))])

    def revoke(self, client: int) -> str:
        """No stream for this client's key from now on; the key's digest."""
        found = self.find(client)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._write([replace(each, revoked=now) if each == found else each for each in self.entries()])
        return found.key

    def find(self, client: int) -> Entry:
        """The entry of a client whose key is not revoked; raises `Invalid`."""
        for each in self.entries():
            if each.client == client and each.revoked is None:
                return each
        raise Invalid(f"client {client}: no device was added for it, or its key was revoked")

    def _write(self, entries: list[Entry]) -> None:
        entries.sort(key=lambda each: (each.client, each.revoked or ""))
        write_whole(self._path, json.dumps([asdict(each) for each in entries], indent=1).encode())
