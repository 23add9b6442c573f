"""Batches: which of its examples a client uses in which step, and how much one example can weigh.

Every choice has an address (seed, round, step, client), so a client draws the same alone and among others.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.accounting import Release, Sampling, grouped
from fedsim.check import Component, Count, Invalid, Share
from fedsim.keys import Keys
from fedsim.types import Round

__all__ = ["Epochs", "Fixed", "Full", "Poisson"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]
Adjacency = Literal["replace-one", "add-or-remove"]


class Batches(Component):
    """How a client with m examples forms the batch of each local step."""

    adjacency: ClassVar[Adjacency] = "replace-one"
    sampling: ClassVar[Sampling] = "none"  # what an accountant may make of it

    @abstractmethod
    def place(self, keys: Keys, ids: Ints, sizes: Ints, steps: Ints) -> tuple[Ints, Ints, Words | None]:
        """Where the batches (k, s) lie, for ids and sizes (k, 1) and steps (s,) or (k, s) counted from the run's start.

        A batch is `count` examples from `first` on in the shuffle of range(m) that `order` names, or in
        range(m) itself where that is None. Returns count, first, order; each broadcasts to (k, s).
        """

    @abstractmethod
    def expected(self, sizes: Ints) -> Floats:
        """The expected number of examples in a batch, (k,)."""

    def chance(self, m: int) -> float:
        """The chance that an example of m is in a batch, where that chance amplifies privacy; otherwise 1."""
        return 1.0

    def releases(self, steps: Ints, z: Floats, m: int) -> tuple[Release, ...]:
        """What the batches of `steps` (s,), released with noise multipliers z (s,), are to one example of m."""
        return grouped(z, self.sampling, self.chance(m))

    def unlike(self, sizes: Ints) -> tuple[int, ...]:
        """Sizes of clients that may pay more than the smallest does, one for each way of paying."""
        return ()

    def share(self, sizes: Ints) -> Floats:
        """How far one example can move the batch gradient, (k,), in units of the clip.

        2 / b where an example is replaced by another, 1 / b where it is added or removed (b expected).
        """
        return (2.0 if self.adjacency == "replace-one" else 1.0) / self.expected(sizes)

    def width(self, keys: Keys, round: Round, ids: Ints, sizes: Ints, steps: int) -> Ints:
        """The examples (k,) of each client's largest batch of a round, at least 1."""
        count, _, _ = self.place(keys, ids[:, None], sizes[:, None], _steps(round, steps))
        return np.asarray(np.broadcast_to(count, (len(ids), steps)).max(1).clip(1))

    def draw(
        self, keys: Keys, round: Round, ids: Ints, sizes: Ints, steps: int
    ) -> tuple[Ints, NDArray[np.float32]]:
        """Indices into each client's own examples and their weights, both (k, steps * b).

        The batches of `steps` local steps lie one after the other, each padded to width b by index 0 at
        weight 0. A real example weighs 1 / |batch|, under Poisson sampling 1 / (expected size).
        """
        count, first, order = self.place(keys, ids[:, None], sizes[:, None], _steps(round, steps))
        column = np.arange(max(1, count.max()))
        real = np.broadcast_to(column < count[..., None], (len(ids), steps, len(column)))
        index = np.where(real, first[..., None] + column, 0)
        if order is not None:
            index = np.where(real, shuffled(index, sizes[:, None, None], order[..., None]), 0)
        weight = real / self.expected(sizes)[:, None, None]
        return index.reshape(len(ids), -1), weight.reshape(len(ids), -1).astype(np.float32)


@dataclass(frozen=True)
class Full(Batches):
    """All examples of the client in every step."""

    def place(self, keys: Keys, ids: Ints, sizes: Ints, steps: Ints) -> tuple[Ints, Ints, Words | None]:
        return np.broadcast_to(sizes, (len(ids), steps.shape[-1])), np.zeros_like(ids), None

    def expected(self, sizes: Ints) -> Floats:
        return sizes.astype(float)


@dataclass(frozen=True)
class Fixed(Batches):
    """`size` different examples, drawn afresh for every step; all of them where a client has fewer."""

    sampling: ClassVar[Sampling] = "fixed"
    size: Count

    def place(self, keys: Keys, ids: Ints, sizes: Ints, steps: Ints) -> tuple[Ints, Ints, Words | None]:
        order = keys.of("batch", 0, ids + steps * keys.clients)
        return np.minimum(sizes, self.size), np.zeros_like(ids), order

    def expected(self, sizes: Ints) -> Floats:
        return np.minimum(sizes, self.size).astype(float)

    def chance(self, m: int) -> float:
        return min(1.0, self.size / m)


@dataclass(frozen=True)
class Epochs(Batches):
    """Batches of `size` cut one after the other from the client's examples, shuffled afresh for every epoch.

    The rest of an epoch that does not fill a batch is left out, so that no example weighs more than 1 / size.
    """

    size: Count

    def place(self, keys: Keys, ids: Ints, sizes: Ints, steps: Ints) -> tuple[Ints, Ints, Words | None]:
        count = np.minimum(sizes, self.size)
        epoch, batch = np.divmod(steps, sizes // count)
        return count, batch * count, keys.of("epoch", 0, ids + epoch * keys.clients)

    def expected(self, sizes: Ints) -> Floats:
        return np.minimum(sizes, self.size).astype(float)

    def releases(self, steps: Ints, z: Floats, m: int) -> tuple[Release, ...]:
        # An example is in one batch of an epoch at most, and other batches do not depend on it: it pays once an
        # epoch, at the least noise that it may have met there.
        epochs, at = np.unique(steps // self._length(m), return_inverse=True)
        least = np.full(len(epochs), np.inf)
        np.minimum.at(least, at, z)
        return grouped(least)

    def unlike(self, sizes: Ints) -> tuple[int, ...]:
        # who takes part now and then may meet two of its own epochs where the smallest client meets one
        lengths = {self._length(m): m for m in np.unique(sizes).tolist()}
        lengths.pop(self._length(int(sizes.min())))
        return tuple(lengths.values())

    def _length(self, m: int) -> int:
        """Batches in an epoch of m examples."""
        return m // min(m, self.size)


@dataclass(frozen=True)
class Poisson(Batches):
    """Each example independently with one chance: `rate`, or what makes `size` examples expected.

    Give exactly one of the two; raises `Invalid` otherwise.
    """

    adjacency: ClassVar[Adjacency] = "add-or-remove"
    sampling: ClassVar[Sampling] = "poisson"
    rate: Share | None = None
    size: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rate is None) == (self.size is None):
            raise Invalid(f"Poisson: rate = {self.rate} and size = {self.size}: give exactly one of the two")

    def place(self, keys: Keys, ids: Ints, sizes: Ints, steps: Ints) -> tuple[Ints, Ints, Words | None]:
        address = ids + steps * keys.clients
        uniform = keys.uniform("count", 0, address.reshape(-1), 1).reshape(address.shape)
        count = binomial(uniform, sizes, self._rates(sizes))
        return count, np.zeros_like(ids), keys.of("batch", 0, address)

    def expected(self, sizes: Ints) -> Floats:
        return sizes * self._rates(sizes)

    def chance(self, m: int) -> float:
        return float(self._rates(np.array(m)))

    def _rates(self, sizes: Ints) -> Floats:
        if self.size is None:
            return np.full(sizes.shape, self.rate)
        return np.minimum(1.0, self.size / sizes)


def _steps(round: Round, steps: int) -> Ints:
    """The numbers (s,), or (k, s), of a round's batches from the run's start."""
    return np.asarray(np.asarray(round)[..., None] * steps + np.arange(steps, dtype=np.int64))


# ---------------------------------------------------------------- arithmetic
def binomial(uniform: Floats, trials: Ints, chance: Floats) -> Ints:
    """The smallest k with P(Binomial(trials, chance) <= k) >= uniform: uniform numbers to binomial ones."""
    from scipy.special import bdtr, bdtrik

    trials, inner = np.broadcast_to(trials, uniform.shape), np.minimum(chance, np.nextafter(1, 0))
    with np.errstate(invalid="ignore"):
        above = np.nan_to_num(np.ceil(bdtrik(uniform, trials, inner)))
    below = np.maximum(above - 1, 0)
    k = np.where(bdtr(below, trials, inner) >= uniform, below, above)
    return np.where(chance >= 1, trials, k).astype(np.int64)


_SALTS = tuple(np.uint64(0x9E3779B97F4A7C15 * odd & 0xFFFFFFFFFFFFFFFF) for odd in range(1, 17, 2))
_HALF = np.uint64(32)
_SIDE = 8  # smaller networks favour some subsets, by up to 30 % at 3 of 6 examples


def shuffled(position: Ints, size: Ints, order: Words) -> Ints:
    """Where each position of range(size) goes under the bijection that `order` names; the arrays broadcast.

    A Feistel network on range(a) x range(b) with a * b just above size; a position that lands outside of
    range(size) walks on (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). So a batch
    costs its own length, not the number of examples that it is drawn from.
    """
    shape = position.shape
    b = np.maximum(_SIDE, np.ceil(np.sqrt(size)).astype(np.int64))
    a = np.maximum(_SIDE, -(-size // b))
    spread = [np.broadcast_to(v, shape).reshape(-1).astype(np.uint64) for v in (size, a, b, order)]
    x = _feistel(position.reshape(-1).astype(np.uint64), *spread[1:])
    _walk_small(x, spread[0], spread[3])
    while len(outside := np.flatnonzero(x >= spread[0])):
        x[outside] = _feistel(x[outside], *(v[outside] for v in spread[1:]))
    return x.astype(np.int64).reshape(shape)


def _walk_small(x: Words, size: Words, key: Words) -> None:
    """The walk, in place, in ranges of at most half of the smallest network, where it is long.

    Each network is worked out whole, once. It is what a client with few examples needs who is asked alone, as in
    asynchronous runs: `fedsim bench events`.
    """
    walking = np.flatnonzero((x >= size) & (size <= np.uint64(_SIDE**2 // 2)))
    if not len(walking):
        return
    keys, network = np.unique(key[walking], return_inverse=True)
    whole, side = np.arange(_SIDE**2, dtype=np.uint64), np.full((1, 1), _SIDE, np.uint64)
    images = _feistel(np.broadcast_to(whole, (len(keys), len(whole))), side, side, keys[:, None])
    while len(walking):
        moved = images[network, x[walking]]
        x[walking] = moved
        outside = moved >= size[walking]
        walking, network = walking[outside], network[outside]


def _feistel(x: Words, a: Words, b: Words, key: Words) -> Words:
    left, right = np.divmod(x, b)
    for salt in _SALTS:
        bits = (right + key) * salt
        bits ^= bits >> _HALF
        bits *= np.uint64(0xBF58476D1CE4E5B9)
        left += ((bits >> _HALF) * a) >> _HALF
        left -= a * (left >= a)
        left, right, a, b = right, left, b, a
    return left * b + right
