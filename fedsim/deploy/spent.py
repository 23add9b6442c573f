"""A device's own ledger: what it has answered, in which run, and what that cost it, over all runs."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from fedsim.accounting import ACCOUNTANTS, Release
from fedsim.check import Invalid
from fedsim.federation import Federation
from fedsim.flower.order import Order
from fedsim.machine.files import write_whole
from fedsim.privacy.ledger import Ledger

LEDGER = "ledger.json"


@dataclass(frozen=True)
class Entry:
    """The answers of one run. `derived`: its noise hid nothing, and it is accounted for by no epsilon.

    size    of the device's data: what it pays depends on it
    secret  what its batches are drawn from: those of an epoch are disjoint for as long as it stays the same
    """

    fingerprint: str
    derived: bool
    adjacency: str | None = None  # which data sets its epsilon calls neighbours
    rounds: tuple[int, ...] = ()
    releases: tuple[Release, ...] = ()
    size: int | None = None
    secret: int | None = None

    @property
    def bare(self) -> bool:
        """Whether messages went out that nothing hides."""
        return bool(self.rounds) and not self.releases and not self.derived


@dataclass(frozen=True)
class Spent:
    """The entries by run."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Rounds answered, over all runs."""
        return sum(len(entry.rounds) for entry in self.entries.values())

    def booked(self, order: Order) -> bool:
        """Whether this round of this run has been paid for."""
        return order.run in self.entries and order.round in self.entries[order.run].rounds

    def secret(self, order: Order) -> int | None:
        """What the batches of this run are drawn from, where it has begun; a memory may be lost, the ledger is kept."""
        return self.entries[order.run].secret if order.run in self.entries else None

    def charge(self, order: Order, fed: Federation) -> Spent:
        """With one more round answered. A round is paid for once: the same answer sent again tells nobody more."""
        entry = self.entries.get(order.run, Entry(order.fingerprint, order.derived))
        if (entry.fingerprint, entry.derived) != (order.fingerprint, order.derived):
            raise Invalid(
                f"run {order.run}: began as experiment {entry.fingerprint}, with derived = {entry.derived}"
            )
        rounds, ledger = tuple(sorted({*entry.rounds, order.round})), hiding(fed)
        if ledger is None or order.derived:
            bare = replace(entry, rounds=rounds, adjacency=None, releases=())
            return Spent({**self.entries, order.run: bare})
        privacy, plan, size = ledger.privacy, ledger.plan, int(fed.sizes[order.client])
        if entry.size not in (None, size):
            raise Invalid(
                f"run {order.run}: began with another number of examples on this device: what it has paid is no longer "
                "known; allowed is a new run"
            )
        if entry.secret not in (None, fed.choice.seed):
            raise Invalid(
                f"run {order.run}: its batches were drawn from another secret until now, so that an example may come "
                "twice in what the ledger counts as one epoch; allowed is a new run"
            )
        adjacency = privacy.adjacency(plan.batches)
        for other in self.entries.values():
            if other.adjacency not in (None, adjacency):
                raise Invalid(
                    f"experiment {order.fingerprint} counts by {adjacency}, this device's ledger by {other.adjacency}: "
                    "the two have no common epsilon; allowed is one of them"
                )
        paid = privacy.bill(plan, rounds, size)
        entry = replace(entry, rounds=rounds, releases=paid, adjacency=adjacency)
        return Spent({**self.entries, order.run: replace(entry, size=size, secret=fed.choice.seed)})

    def epsilon(self, delta: float) -> float:
        """Epsilon of everything released so far, runs composed; the lowest of the bounds that hold for all of it.

        Infinite once a round was answered without privacy. Derived answers are left out.
        """
        if any(entry.bare for entry in self.entries.values()):
            return inf
        history = [release for entry in self.entries.values() for release in entry.releases]
        kinds = {release.sampling for release in history}
        return min(
            ACCOUNTANTS[name].epsilon(history, delta)
            for name in ("exact", "rdp")
            if kinds <= ACCOUNTANTS[name].valid
        )

    @staticmethod
    @contextmanager
    def alone(path: Path) -> Iterator[None]:
        """In the body no other process that asks for this changes the ledger: what is read there is the last word."""
        with path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def save(self, path: Path) -> None:
        write_whole(
            path, json.dumps({run: asdict(entry) for run, entry in self.entries.items()}, indent=1).encode()
        )

    @classmethod
    def of(cls, folder: Path) -> Spent:
        """The ledger of a device's folder; raises `Invalid` also where it is gone, and answers are kept that it had."""
        path = folder / LEDGER
        if not path.exists() and any(folder.glob("memory-*.pt")):
            raise Invalid(
                "this device's privacy ledger is gone, while it keeps what it answered, so nothing more is answered"
            )
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Spent:
        """The ledger in a file, a new one where there is none; raises `Invalid` for one that cannot be read.

        A device whose ledger is damaged answers nothing more: what it has spent is not known.
        """
        try:
            saved = json.loads(path.read_text())
            return cls({run: _entry(entry) for run, entry in saved.items()})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Invalid(  # the server reads it: no path
                f"this device's privacy ledger is not readable ({type(error).__name__}), so nothing more is answered"
            ) from None


def hiding(fed: Federation) -> Ledger | None:
    """The accounting of an experiment whose clients add noise themselves; None where their messages go out bare."""
    ledger = fed.ledger
    return None if ledger is None or ledger.privacy.level == "central" else ledger


def _entry(saved: Any) -> Entry:
    releases = tuple(Release(**each) for each in saved["releases"])
    return Entry(**{**saved, "rounds": tuple(saved["rounds"]), "releases": releases})
