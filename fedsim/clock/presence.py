"""When clients are away, and come back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import floor, inf
from typing import Annotated

from annotated_types import Gt, Le

from fedsim.check import Component, Finite
from fedsim.clock.draws import uniform
from fedsim.keys import Keys

NEVER = (inf, inf)


class Presence(Component):
    """Absences of clients."""

    @abstractmethod
    def absence(self, keys: Keys, client: int, since: float, until: float) -> tuple[float, float]:
        """The first absence that ends after `since` and begins by `until`: when the client leaves, and is back.

        `NEVER` where there is none.
        """


@dataclass(frozen=True)
class Dropouts(Presence):
    """Time is cut into intervals of `every` seconds; a client is away in each by the same chance, independently."""

    every: Finite
    chance: Annotated[float, Gt(0), Le(0.99)]

    def absence(self, keys: Keys, client: int, since: float, until: float) -> tuple[float, float]:
        first, last = floor(since / self.every), floor(until / self.every)
        away = next((i for i in range(first, last + 1) if self._away(keys, client, i)), None)
        if away is None:
            return NEVER
        left = away
        while left > 0 and self._away(keys, client, left - 1):
            left -= 1
        back = away + 1
        while self._away(keys, client, back):
            back += 1
        return left * self.every, back * self.every

    def _away(self, keys: Keys, client: int, interval: int) -> bool:
        return uniform(keys, "away", client, interval) < self.chance
