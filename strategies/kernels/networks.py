"""Networks of minima and maxima that bring wanted ranks of columns to their places.

A network that sorts is thinned out until no comparator can be missed. The m numbers stand in a table with q to a row:
first its columns are sorted, then its rows and diagonals, then all by Batcher's merge exchange. From the last to the
first, each comparator is left out without which the wanted ranks are still right. That is so where it is so for zeros
and ones (Knuth, TAOCP 3, 5.3.4, theorem Z), and zeros and ones in sorted columns are few. Of several q the best is
taken: 99 comparators for the median of 25, where Batcher's network has 113 that matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, reduce
from math import prod
from operator import and_, or_

import numpy as np

Wanted = tuple[tuple[int, int], ...]
Network = list[tuple[int, int]]
Kept = list[tuple[int, int, bool, bool]]  # comparators, and whether the minimum and the maximum are needed
TABLES = range(2, 9)  # numbers in a row of the table
SLOPES = ((1, 0), (1, 1), (2, 1))  # rows and diagonals: (row, column) times this is the same all along
INPUTS = 2**17  # of zeros and ones that are tried


def exchange(z: np.ndarray, wanted: Wanted) -> None:
    """Bring the wanted ranks of the columns of z (m, b) to their places by minima and maxima of whole rows."""
    rows = [*z, np.empty_like(z[0])]
    for smaller, a, b, to in steps(len(z), wanted):
        (np.minimum if smaller else np.maximum)(rows[a], rows[b], out=rows[to])


@cache
def steps(m: int, wanted: Wanted) -> list[tuple[bool, int, int, int]]:
    """What `exchange` does, as (minimum or maximum, row a, row b, row for the result); row m is there to spare.

    A minimum goes to the row to spare, and its own row is the next to spare; in the end the rows are named so that each
    wanted rank is in its place.
    """
    kept = min((_needed(m, network, wanted) for network in _networks(m, wanted)), key=_count)
    place, spare, done = list(range(m)), m, list[tuple[bool, int, int, int]]()
    for i, j, low, high in kept:
        a, b = place[i], place[j]
        if low and high:
            done += [(True, a, b, spare), (False, a, b, b)]
            place[i], spare = spare, a
        else:
            done.append((low, a, b, a if low else b))
    if spare != m:
        done.append((True, m, m, spare))
        place[place.index(m)] = spare
    name = {row: rank for rank, row in enumerate(place)} | {m: m}
    return [(smaller, name[a], name[b], name[to]) for smaller, a, b, to in done]


def _count(kept: Kept) -> int:
    return sum(low + high for _, _, low, high in kept)


def _needed(m: int, network: Network, wanted: Wanted) -> Kept:
    """What of a network is needed.

    A comparator is left out where both its results go on unchanged to ranks that are wanted together, or to none; and
    half of it where one does.
    """
    group = {rank: start for start, stop in wanted for rank in range(start, stop)}
    goal: list[int | None] = [group.get(i, -1 - sum(i >= stop for _, stop in wanted)) for i in range(m)]
    live = [rank in group for rank in range(m)]
    kept: Kept = []
    for i, j in reversed(network):
        if (goal[i] is None or goal[i] != goal[j]) and (live[i] or live[j]):
            kept.append((i, j, live[i], live[j]))
            goal[i] = goal[j] = None
            live[i] = live[j] = True
    return kept[::-1]


def _networks(m: int, wanted: Wanted) -> Iterator[Network]:
    """Networks to choose from."""
    yield _batcher(m)
    for q in TABLES:
        columns = [range(first, m, q) for first in range(min(q, m))]
        if prod(len(column) + 1 for column in columns) <= INPUTS:
            yield _thinned(m, columns, wanted)


def _thinned(m: int, columns: list[range], wanted: Wanted) -> Network:
    """The columns of a table sorted, and what is needed from there on."""
    q = len(columns)
    lines = [
        [i for i in range(m) if a * (i // q) + b * (i % q) == product]
        for a, b in SLOPES
        for product in range(a * m + b * q)
    ]
    rest = [pair for line in lines for pair in _sorting(line)] + _batcher(m)
    ends = sorted({end for ends in wanted for end in ends} - {0, m})
    ones = np.indices([len(column) + 1 for column in columns]).reshape(q, -1)
    bits = [ones[i % q] >= len(columns[i % q]) - i // q for i in range(m)]
    values = [int.from_bytes(np.packbits(bit).tobytes()) for bit in bits]  # of a place, for all inputs
    before = []
    for pair in rest:
        before.append(values)
        values = _compared(values, [pair])
    kept: Network = []
    for pair, values in zip(reversed(rest), reversed(before), strict=True):
        after = _compared(values, kept)
        if any(reduce(or_, after[:end]) & ~reduce(and_, after[end:]) for end in ends):
            kept.insert(0, pair)
    return [pair for column in columns for pair in _sorting(column)] + kept


def _compared(values: list[int], network: Network) -> list[int]:
    values = list(values)
    for i, j in network:
        values[i], values[j] = values[i] & values[j], values[i] | values[j]
    return values


def _sorting(places: range | list[int]) -> Network:
    return [(places[i], places[j]) for i, j in _batcher(len(places))]


@cache
def _batcher(m: int) -> Network:
    """Comparators of Batcher's odd-even merge sort (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    pairs, p = [], 1
    while p < m:
        k = p
        while k >= 1:
            for j in range(k % p, m - k, 2 * k):
                for i in range(j, min(j + k, m - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        pairs.append((i, i + k))
            k //= 2
        p *= 2
    return pairs
