"""Seconds that a message takes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import exp, inf
from typing import Annotated

from annotated_types import Gt

from fedsim.check import Component, NonNegative
from fedsim.clock.draws import normal
from fedsim.clock.paces import Spread
from fedsim.keys import Keys

Rate = Annotated[float, Gt(0)]  # bits a second; inf: bits take no time


class Network(Component):
    """How messages travel."""

    @abstractmethod
    def message_seconds(self, keys: Keys, client: int, message: int, bits: int, *, up: bool) -> float:
        """What so many bits take from the client (`up`) or to it, in seconds."""


@dataclass(frozen=True)
class Bandwidth(Network):
    """latency + bits / bandwidth seconds, the bandwidth times the client's own factor exp(spread z), z ~ N(0, 1)."""

    up: Rate = inf
    down: Rate = inf
    latency: NonNegative = 0.0
    spread: Spread = 0.0

    def message_seconds(self, keys: Keys, client: int, message: int, bits: int, *, up: bool) -> float:
        own = exp(self.spread * normal(keys, "bandwidth", client)) if self.spread else 1.0
        return self.latency + bits / ((self.up if up else self.down) * own)
