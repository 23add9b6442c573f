"""Message attacks: a point origin + factor * direction; s is the honest mean, std the deviation around it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.check import NonNegative
from fedsim.types import Attack, Knowledge, View

OWN: frozenset[Knowledge] = frozenset({"own"})
HONEST: frozenset[Knowledge] = frozenset({"honest"})
CACHED = 2**17  # numbers of a column block, whose copy stays in a core's cache


class Line(Attack):
    """An attack that picks a point on a line, so that one number, the factor, says how hard it pushes."""

    @abstractmethod
    def line(self, view: View) -> tuple[Tensor, Tensor]:
        """Origin and direction, each (d,) where all Byzantine clients send the same, or (f, d)."""

    @abstractmethod
    def strength(self, view: View, origin: Tensor, direction: Tensor) -> float:
        """The factor of this round, on the line that `line` gave."""

    def forge(self, view: View) -> Tensor:
        origin, direction = self.line(view)
        return (origin + self.strength(view, origin, direction) * direction).expand(view.f, -1)


@dataclass(frozen=True)
class SignFlip(Line):
    """Each Byzantine client sends -factor times its own honest message (arXiv:1811.03761).

    The EPFL papers (arXiv:2302.01772) send minus the honest mean under the same name: that is
    `IPM(factor=1)`.
    """

    factor: NonNegative = 1.0
    needs: ClassVar[frozenset[Knowledge]] = OWN

    def line(self, view: View) -> tuple[Tensor, Tensor]:
        own = own_of(view)
        return own.new_zeros(()), -own

    def strength(self, view: View, origin: Tensor, direction: Tensor) -> float:
        return self.factor


@dataclass(frozen=True)
class IPM(Line):
    """Inner-product manipulation: -factor * s (Xie et al., arXiv:1903.03936).

    Default: the factor 10 of arXiv:2603.23472; arXiv:2006.09365 uses 0.1. Fall of empires (FOE) is the same
    family written (1 - eta) s: eta = 1 + factor.
    """

    factor: NonNegative = 10.0
    needs: ClassVar[frozenset[Knowledge]] = HONEST

    def line(self, view: View) -> tuple[Tensor, Tensor]:
        honest = honest_of(view)
        return honest.new_zeros(()), -honest.mean(0)

    def strength(self, view: View, origin: Tensor, direction: Tensor) -> float:
        return self.factor


@dataclass(frozen=True)
class ALIE(Line):
    """A little is enough: s - z * std, coordinate by coordinate (Baruch et al., arXiv:1902.06156, Algorithm
    3).

    z = None is the paper's largest value that hides: with k = floor(n/2 + 1) - f supporters needed among the
    n - f honest clients, z = Phi^-1((n - f - k) / (n - f)); negative where f is very small. In a cohort that
    happens to be half Byzantine or more f counts as the most below n/2.

    Conventions: `std` "population" divides by the count of rows (authors' code), "sample" by one less
    (ByzFL). `side` "-" subtracts (authors' code, arXiv:2006.09365), "+" adds (arXiv:2302.01772, ByzFL).
    `rows` "honest" takes s and std over the honest messages (omniscient, as in benchmarks), "own" over what
    the Byzantine clients would have sent themselves (the paper's weaker adversary).
    """

    z: NonNegative | None = None
    std: Literal["population", "sample"] = "population"
    side: Literal["-", "+"] = "-"
    rows: Literal["honest", "own"] = "honest"

    @property
    def needs(self) -> frozenset[Knowledge]:
        return HONEST if self.rows == "honest" else OWN

    def line(self, view: View) -> tuple[Tensor, Tensor]:
        rows = honest_of(view) if self.rows == "honest" else own_of(view)
        s = rows.mean(0)
        spread = deviation(rows, s, correction=int(self.std == "sample" and len(rows) > 1))
        return s, spread if self.side == "+" else -spread

    def strength(self, view: View, origin: Tensor, direction: Tensor) -> float:
        return hiding_z(view.n, view.f) if self.z is None else self.z


def hiding_z(n: int, f: int) -> float:
    """The z of ALIE's paper for f of n clients."""
    f = min(f, (n - 1) // 2)
    supporters = n // 2 + 1 - f
    share = (n - f - supporters) / (n - f)
    return NormalDist().inv_cdf(share) if share else 0.0  # of one or two clients


def deviation(rows: Tensor, s: Tensor, correction: int = 0) -> Tensor:
    """The standard deviation (d,) of rows around their mean s; torch's own is slow along columns."""
    width = max(64, CACHED // len(rows))
    squares = [(z - m).square_().sum(0) for z, m in zip(rows.split(width, 1), s.split(width), strict=True)]
    return torch.cat(squares).div_(len(rows) - correction).sqrt_()


def own_of(view: View) -> Tensor:
    assert view.own is not None, "the attack was not granted what it needs"
    return view.own


def honest_of(view: View) -> Tensor:
    assert view.honest is not None, "the attack was not granted what it needs"
    return view.honest
