"""Step sizes that change with the round."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi

from fedsim.check import Component, Count, Finite, Invalid, Natural, NonNegative, StepSize

__all__ = ["Cosine", "InverseTime", "Milestones", "Power"]


class Schedule(Component):
    """A step size as a function of the round, which counts from 0."""

    @abstractmethod
    def at(self, round: int) -> float: ...


@dataclass(frozen=True)
class InverseTime(Schedule):
    """start / (1 + t / period), with t the round; t moves in steps of `every` rounds (50 in arXiv:2209.10931)."""

    start: StepSize
    period: Finite
    every: Count = 1

    def at(self, round: int) -> float:
        return self.start / (1 + (round - round % self.every) / self.period)


@dataclass(frozen=True)
class Milestones(Schedule):
    """start, multiplied by `factor` at each of the given rounds, which increase."""

    start: StepSize
    rounds: tuple[Natural, ...]
    factor: Finite = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(a >= b for a, b in pairwise(self.rounds)):
            raise Invalid(f"Milestones.rounds = {self.rounds}: the rounds must increase")

    def at(self, round: int) -> float:
        return self.start * self.factor ** sum(round >= m for m in self.rounds)


@dataclass(frozen=True)
class Cosine(Schedule):
    """From start to end along half a cosine, end + (start - end) (1 + cos(pi t / rounds)) / 2; then end (SGDR, 2017).

    warmup  over so many first rounds it rises in a line, start (t + 1) / warmup, and the cosine begins after them
    """

    start: StepSize
    rounds: Count
    end: NonNegative = 0.0
    warmup: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup >= self.rounds:
            raise Invalid(f"Cosine.warmup = {self.warmup}: must be below rounds = {self.rounds}")

    def at(self, round: int) -> float:
        if round < self.warmup:
            return self.start * (round + 1) / self.warmup
        way = min(1.0, (round - self.warmup) / (self.rounds - self.warmup))
        return self.end + (self.start - self.end) * (1 + cos(pi * way)) / 2


@dataclass(frozen=True)
class Power(Schedule):
    """start (e + 1)^-power, e = t // every: the round, or with `every` rounds an epoch the epoch."""

    start: StepSize
    power: NonNegative = 0.5
    every: Count = 1

    def at(self, round: int) -> float:
        return self.start * float((round // self.every + 1) ** -self.power)


Rate = StepSize | Schedule


def rate(lr: float | Schedule, round: int) -> float:
    """The step size of a round."""
    return lr.at(round) if isinstance(lr, Schedule) else lr
