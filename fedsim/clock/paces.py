"""Seconds that a gradient takes a client: fixed, by rank, random with light and heavy tails, changing with time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import exp, log, pi, sin
from typing import Annotated

from annotated_types import Ge, Le

from fedsim.check import Component, Count, Finite, NonNegative
from fedsim.clock.draws import normal, ranks, uniform
from fedsim.keys import Keys

TIME, SPEED = "gradient time", "client speed"  # purposes of draws

Spread = Annotated[float, Ge(0), Le(20)]  # of a logarithm: exp of it stays a number


class Pace(Component):
    """How fast clients work. `steady`: whenever a gradient begins, it takes what it takes."""

    @property
    def steady(self) -> bool:
        return True

    @abstractmethod
    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        """What the client's gradient of this number takes that it begins at `now`, in seconds."""


@dataclass(frozen=True)
class Constant(Pace):
    """Every gradient takes so many seconds."""

    value: Finite

    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        return self.value


@dataclass(frozen=True)
class Ladder(Pace):
    """first + step r + noise |z| (r + 1), z ~ N(0, 1), for the client of rank r; ranks 0 .. n-1 are drawn once.

    The defaults are those of the released code of Ringleader ASGD (arXiv:2509.22860).
    """

    first: NonNegative = 1.0
    step: NonNegative = 1.0
    noise: NonNegative = 1.0

    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        rank = int(ranks(keys)[client])
        noise = abs(normal(keys, TIME, client, gradient)) * (rank + 1) if self.noise else 0.0
        return self.first + self.step * rank + self.noise * noise


@dataclass(frozen=True)
class Exponential(Pace):
    """Exponentially distributed around `mean`, times the client's own factor exp(spread z), z ~ N(0, 1)."""

    mean: Finite
    spread: Spread = 0.0

    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        own = exp(self.spread * normal(keys, SPEED, client)) if self.spread else 1.0
        return -own * self.mean * log(1 - uniform(keys, TIME, client, gradient))


@dataclass(frozen=True)
class LogNormal(Pace):
    """median exp(sigma z), z ~ N(0, 1), times the client's own factor exp(spread z')."""

    median: Finite
    sigma: Spread = 0.5
    spread: Spread = 0.0

    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        own = self.spread * normal(keys, SPEED, client) if self.spread else 0.0
        return self.median * exp(own + self.sigma * normal(keys, TIME, client, gradient))


@dataclass(frozen=True)
class Pareto(Pace):
    """Heavy tails: `least` u^(-1 / tail), u uniform in (0, 1]; no variance for tail <= 2, no mean for tail <= 1."""

    least: Finite
    tail: Annotated[float, Ge(0.1)] = 1.5

    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        return float(self.least * (1 - uniform(keys, TIME, client, gradient)) ** (-1 / self.tail))


@dataclass(frozen=True)
class Wave(Pace):
    """Another pace that slows down and recovers: times 1 .. `factor` along a sine of `period` seconds.

    Every client is at a point of its own in the wave.
    """

    pace: Pace
    factor: Finite = 2.0
    period: Finite = 100.0

    @property
    def steady(self) -> bool:
        return False

    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        phase = now / self.period + uniform(keys, "phase", client)
        slower = 1 + (self.factor - 1) * (1 + sin(2 * pi * phase)) / 2
        return slower * self.pace.gradient_seconds(keys, client, gradient, now)


@dataclass(frozen=True)
class Turns(Pace):
    """One pace for `every` gradients, then another for as many, and so on: attackers that are fast, then slow."""

    one: Pace
    other: Pace
    every: Count = 10

    @property
    def steady(self) -> bool:
        return self.one.steady and self.other.steady

    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        pace = self.other if gradient // self.every % 2 else self.one
        return pace.gradient_seconds(keys, client, gradient, now)
