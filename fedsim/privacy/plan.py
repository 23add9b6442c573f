"""Who takes part in which rounds of a run, and so pays for them: all that accounting needs to know of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedsim.batches import Batches

Ids = NDArray[np.int64]
Rounds = tuple[int, ...]  # those that a client took part in
Payers = Ids | None  # those who pay for a round; None: every honest client


def payments(paid: Sequence[Payers]) -> tuple[Ids, Ids, Rounds]:
    """Who paid in which round, (p,) and (p,), and the rounds that everyone paid for."""
    some = {t: ids for t, ids in enumerate(paid) if ids is not None}
    who = np.concatenate([np.zeros(0, np.int64), *some.values()])
    when = np.repeat(np.array(list(some), np.int64), [len(ids) for ids in some.values()])
    return who, when, tuple(t for t, ids in enumerate(paid) if ids is None)


def histories(paid: Sequence[Payers], clients: int, counted: bool, of: Payers = None) -> frozenset[Rounds]:
    """The different rounds that clients paid for, all of them or those of `of`: who has the same pays the same.

    `counted`: only the number of the rounds matters, so that one history stands for all of its length.
    """
    who, when, always = payments(paid)
    if of is not None:
        mine = np.isin(who, of)
        who, when, clients = who[mine], when[mine], len(of)
    if counted:
        times = np.bincount(who)
        different = set(np.unique(times[times > 0]).tolist()) | (
            {0} if (times > 0).sum() < clients else set()
        )
        return frozenset(tuple(range(len(always) + count)) for count in different)
    order = np.argsort(who, kind="stable")
    parts = np.split(when[order], np.flatnonzero(np.diff(who[order])) + 1) if len(who) else []
    found = {tuple(sorted((*always, *part.tolist()))) for part in parts}
    return frozenset(found | {always} if len(parts) < clients else found)


@dataclass(frozen=True)
class Plan:
    """What accounting needs to know of a run; everything is public, nothing depends on the data."""

    rounds: frozenset[Rounds]  # of the honest clients, as planned
    steps: int  # batches that a client draws in a round
    batches: Batches
    smallest: int  # examples of the smallest client
    clients: int  # honest ones, whose messages come together
    active: float  # the chance, at most, of an honest client to take part in a round
    secret: bool = field(default=True, kw_only=True)  # whether nothing tells later who took part in a round
    parameters: int
    others: tuple[int, ...] = ()  # sizes of clients that may pay more than the smallest
    gradients: int = 1  # on each batch, which are released together

    def of_size(self, m: int) -> Plan:
        """The plan as it is to a client of m examples."""
        return replace(self, smallest=m, others=())

    def by_size(self) -> Iterator[Plan]:
        """The plan of each client that may pay most."""
        yield from map(self.of_size, (self.smallest, *self.others))
