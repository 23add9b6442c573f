"""How training examples are dealt to n clients: each to exactly one client, and no client goes empty."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import isfunction
from math import cos, radians, sin
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedsim.check import Count, File, Invalid, NonNegative
from fedsim.check import Natural as Place
from fedsim.datasets.files import located
from fedsim.types import Dataset, Split, single

__all__ = [
    "IID",
    "Dirichlet",
    "EqualDirichlet",
    "Extreme",
    "FeatureShift",
    "GammaSimilarity",
    "Indices",
    "Natural",
    "QuantitySkew",
    "Shards",
]

Ids = NDArray[np.int64]
Concentration = Annotated[float, Ge(1e-6), Le(1e6)]
Degrees = Annotated[float, Ge(-360), Le(360)]


@dataclass(frozen=True)
class IID(Split):
    """At random, in parts whose sizes differ by one at most."""

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        return np.array_split(rng.permutation(enough(dataset, n)), n)


@dataclass(frozen=True)
class Dirichlet(Split):
    """Each class is dealt by shares ~ Dir(alpha, ..., alpha) over the n clients (Hsu et al.,
    arXiv:1909.06335).

    Small alpha: few classes a client. A client left with fewer than `min_size` examples takes the missing
    ones, at random, from whoever has the most then; so a split always exists and needs no second draw.
    """

    alpha: Concentration = 1.0
    min_size: Count = 1

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        enough(dataset, n * self.min_size)
        parts: list[list[Ids]] = [[] for _ in range(n)]
        for members in by_class(dataset, rng):
            shares = rng.dirichlet(np.full(n, self.alpha))
            for part, piece in zip(parts, cut(members, shares), strict=True):
                part.append(piece)
        return fill([np.concatenate(part) for part in parts], self.min_size, rng)


@dataclass(frozen=True)
class EqualDirichlet(Split):
    """Clients whose sizes differ by one at most, each with its own mixture of classes ~ Dir(alpha, ..., alpha).

    One client after the other, in random order, draws its examples' classes from its mixture, of the classes that are
    left; where its mixture has none of these, from what is left of all.
    """

    alpha: Concentration = 1.0

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        sizes, members = (
            [len(part) for part in np.array_split(range(enough(dataset, n)), n)],
            by_class(dataset, rng),
        )
        left = np.array([len(each) for each in members])
        parts: list[Ids] = [np.zeros(0, np.int64)] * n
        for client in rng.permutation(n):
            mixture, rest = rng.dirichlet(np.full(len(left), self.alpha)), left.copy()
            while missing := sizes[client] - int((left - rest).sum()):
                free = mixture * (rest > 0)
                shares = free / free.sum() if free.sum() > 1e-12 else rest / rest.sum()
                rest = np.maximum(rest - rng.multinomial(missing, shares), 0)
            parts[client] = np.concatenate(
                [m[to:since] for m, since, to in zip(members, left, rest, strict=True)]
            )
            left = rest
        return parts


@dataclass(frozen=True)
class Shards(Split):
    """Sorted by label, cut into n * per_client shards, dealt at random (McMahan et al., arXiv:1602.05629)."""

    per_client: Count = 2

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        enough(dataset, n * self.per_client)
        shards = np.array_split(np.concatenate(by_class(dataset, rng)), n * self.per_client)
        dealt = rng.permutation(len(shards)).reshape(n, self.per_client)
        return [np.concatenate([shards[shard] for shard in mine]) for mine in dealt]


@dataclass(frozen=True)
class QuantitySkew(Split):
    """At random, in parts of very different size: sizes ~ Dir(alpha, ..., alpha) (Li et al.,
    arXiv:2102.02079).
    """

    alpha: Concentration = 0.5

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        order = rng.permutation(enough(dataset, n))
        return fill(cut(order, rng.dirichlet(np.full(n, self.alpha))), 1, rng)


@dataclass(frozen=True)
class GammaSimilarity(Split):
    """A share gamma of the examples is dealt at random; the rest is sorted by label and cut into n parts.

    gamma = 1 is IID, gamma = 0 sorted by label (the "non-iid" of arXiv:2006.09365, ByzFL's "extreme"); Hsieh
    et al., arXiv:1910.00189. Which client gets which part of the sorted rest is drawn.
    """

    gamma: Annotated[float, Ge(0), Le(1)] = 0.5

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        size = enough(dataset, n)
        at_random = np.zeros(size, np.bool_)
        at_random[rng.permutation(size)[: round(self.gamma * size)]] = True
        ranked = np.concatenate(by_class(dataset, rng))
        sorted_parts = np.array_split(ranked[~at_random[ranked]], n)
        mixed_parts = np.array_split(rng.permutation(np.flatnonzero(at_random)), n)[
            ::-1
        ]  # evens out the sizes
        parts = [np.concatenate(pair) for pair in zip(sorted_parts, mixed_parts, strict=True)]
        return [parts[i] for i in rng.permutation(n)]


@dataclass(frozen=True)
class Extreme(Split):
    """One class a client. Classes get clients in proportion to their size, at least one each; who holds which
    is drawn.

    With fewer clients than classes each client holds several whole classes.
    """

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        enough(dataset, n)
        classes = [members for members in by_class(dataset, rng) if len(members)]
        if n <= len(classes):
            return whole(classes, n, rng)
        owners = np.ones(len(classes), np.int64)
        for _ in range(n - len(classes)):  # the next client goes to the class with most examples a client
            owners[np.argmax([len(members) / k for members, k in zip(classes, owners, strict=True)])] += 1
        parts = [
            part for members, k in zip(classes, owners, strict=True) for part in np.array_split(members, k)
        ]
        return [parts[i] for i in rng.permutation(n)]


@dataclass(frozen=True)
class Natural(Split):
    """By the examples' own owners (`Dataset.groups`): each owner's examples stay together.

    Owners are dealt at random, in numbers that differ by one at most. MNIST's owners are its 539 writers.
    Raises `Invalid` where the data set names no owners, or fewer than clients.
    """

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        if dataset.groups is None:
            raise Invalid(
                "Natural: the data set names no owners of its examples; Arrays, Npz, Table and HuggingFace have a "
                "field owner, Text and FEMNIST have owners, and MNIST where QMNIST/raw/qmnist-train-labels-idx2-int.gz "
                "lies beside it"
            )
        groups = dataset.groups.numpy()
        order = np.argsort(groups, kind="stable")
        owners = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        if len(owners) < n:
            raise Invalid(f"clients: Natural has {len(owners)} owners of examples, too few for {n} clients")
        return whole(owners, n, rng)


@dataclass(frozen=True)
class Indices(Split):
    """A split of one's own: the training examples of each client by their places, or a .json file with such lists.

    Indices([[0, 2, 4], [1, 3]]); each example to one client at most, and an example to every client.
    """

    parts: tuple[tuple[Place, ...], ...] | File

    def __post_init__(self) -> None:
        if not isinstance(self.parts, str):
            lists = tuple(tuple(np.asarray(part).tolist()) for part in self.parts)
            object.__setattr__(self, "parts", lists)
        super().__post_init__()

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        parts = self._read(self.parts) if isinstance(self.parts, str) else self.parts
        if len(parts) != n:
            raise Invalid(f"clients: {n} hold data, and Indices has {len(parts)} lists; must be one for each")
        return [np.array(part, np.int64) for part in parts]

    def _read(self, path: str) -> tuple[tuple[int, ...], ...]:
        where = located(path, "Indices.parts")
        try:
            found = json.loads(where.read_text())
            if not all(isinstance(i, int) and i >= 0 for part in found for i in part):
                raise TypeError("a place must be a whole number from 0 on")
        except (OSError, ValueError, TypeError) as error:
            raise Invalid(f"Indices.parts = {path!r}: not a list of lists in JSON ({error})") from None
        return tuple(map(tuple, found))


class Own(Split):
    """A split that is a user's function deal(dataset, n, rng) -> index arrays, known by the place where that stands."""

    function: ClassVar[Callable[[Dataset, int, np.random.Generator], list[Ids]]]

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        name = type(self).__name__
        try:
            parts = [np.asarray(part) for part in type(self).function(dataset, n, rng)]
        except Invalid:
            raise
        except Exception as error:
            raise Invalid(f"split = {name}: raises {type(error).__name__}: {str(error)[:200]}") from error
        if len(parts) != n or any(p.ndim != 1 or (len(p) and p.dtype.kind not in "iu") for p in parts):
            raise Invalid(
                f"split = {name}: gives {len(parts)} parts; must be {n} lists of places (whole numbers)"
            )
        return [part.astype(np.int64) for part in parts]


@cache
def own(function: Callable[..., Any]) -> type[Split]:
    """The split that a function is, as a component."""
    place = {"__module__": function.__module__, "__qualname__": function.__qualname__}
    members = {**place, "__doc__": function.__doc__, "function": staticmethod(function)}
    return dataclass(frozen=True)(type(function.__name__, (Own,), members))


@dataclass(frozen=True)
class FeatureShift(Split):
    """Clients that see the same world differently: client i's inputs are turned and made noisy, more so for
    larger i.

    `split` deals the examples. Pictures of client i turn by rotation * i / (n - 1) degrees,
    counter-clockwise, and all inputs get N(0, noise^2 * i / (n - 1)) added (Li et al., arXiv:2102.02079, use
    the variance in this way).
    """

    split: Split = IID()
    rotation: Degrees = 0.0
    noise: NonNegative = 0.0

    def __post_init__(self) -> None:
        if isfunction(deal := cast(object, self.split)):
            object.__setattr__(self, "split", own(deal)())
        super().__post_init__()

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Ids]:
        if self.rotation and single(dataset.train.x, "FeatureShift").dim() != 4:
            raise Invalid(f"FeatureShift.rotation = {self.rotation}: only pictures can be turned, use 0")
        return self.split.deal(dataset, n, rng)

    def shift(self, x: Tensor, client: int, n: int, rng: np.random.Generator) -> Tensor:
        share = client / max(1, n - 1)
        if self.rotation * share:
            x = turn(x, self.rotation * share)
        if self.noise * share:
            x = x + torch.from_numpy(rng.normal(0, self.noise * share**0.5, x.shape)).to(x)
        return x


def enough(dataset: Dataset, needed: int) -> int:
    """The number of training examples; raises `Invalid` where it is below the number needed."""
    size = len(dataset.train)
    if size < needed:
        raise Invalid(f"clients: the split needs {needed} training examples or more, the data set has {size}")
    return size


def by_class(dataset: Dataset, rng: np.random.Generator) -> list[Ids]:
    """The training examples of each class, in random order."""
    if dataset.train.y.dim() != 1 or dataset.train.y.is_floating_point():
        raise Invalid(
            "split: deals by class, and the data set's examples are of no one class; allowed are IID, QuantitySkew, "
            "Natural, Indices or one of one's own"
        )
    labels = dataset.train.y.numpy()
    return [rng.permutation(np.flatnonzero(labels == label)) for label in range(dataset.classes)]


def cut(members: Ids, shares: NDArray[np.float64]) -> list[Ids]:
    """`members` in consecutive pieces in proportion to the shares."""
    edges = np.rint(np.cumsum(shares)[:-1] / shares.sum() * len(members)).astype(np.int64)
    return np.split(members, edges)


def fill(parts: list[Ids], least: int, rng: np.random.Generator) -> list[Ids]:
    """Parts of at least `least` examples each: the largest part gives to one that has too few."""
    for poor in range(len(parts)):
        while len(parts[poor]) < least:
            rich = max(range(len(parts)), key=lambda i: len(parts[i]))
            spare = min(least - len(parts[poor]), len(parts[rich]) - least)
            given = rng.permutation(parts[rich])
            parts[poor] = np.concatenate([parts[poor], given[:spare]])
            parts[rich] = given[spare:]
    return parts


def whole(bundles: list[Ids], n: int, rng: np.random.Generator) -> list[Ids]:
    """n parts of whole bundles, whose numbers of bundles differ by one at most."""
    dealt = np.array_split(rng.permutation(len(bundles)), n)
    return [np.concatenate([bundles[i] for i in mine]) for mine in dealt]


def turn(x: Tensor, degrees: float) -> Tensor:
    """Pictures (k, channels, height, width) turned counter-clockwise about their middle; corners fill with
    0.
    """
    angle = radians(degrees)
    k, _, height, width = x.shape
    # grid coordinates run from -1 to 1 on both axes, so a picture that is not square needs its sides' ratio
    matrix = [[cos(angle), -sin(angle) * height / width, 0], [sin(angle) * width / height, cos(angle), 0]]
    grid = affine_grid(torch.tensor(matrix).expand(k, 2, 3), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)
