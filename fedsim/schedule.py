"""Step sizes that change with the round."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise

from fedsim.check import Component, Count, Finite, Invalid, Natural, StepSize

__all__ = ["InverseTime", "Milestones"]


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


Rate = StepSize | Schedule


def rate(lr: float | Schedule, round: int) -> float:
    """The step size of a round."""
    return lr.at(round) if isinstance(lr, Schedule) else lr
