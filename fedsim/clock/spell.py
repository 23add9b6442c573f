"""What a clock tells: of an attempt of a client when it begins, when its message is in, and when the client is away."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import inf

from fedsim.check import Component
from fedsim.keys import Keys


@dataclass(frozen=True)
class Load:
    """What an attempt is made of: gradients, one after the other, the bits of its message, and those of the model.

    A product with a Hessian takes as long as a gradient. Where the client has the model already, nothing is sent to it
    (None). `step`: gradients of a local step.
    """

    gradients: int
    up: int
    down: int | None
    step: int = 1


@dataclass(frozen=True)
class Spell:
    """One attempt of a client, in seconds since the start of the run.

    begun    the model starts to travel to it
    sent     its message leaves, all gradients done
    arrived  the message is with the server; inf where the client goes away before
    left     the client goes away before that; inf where it does not
    back     and is there again
    """

    begun: float
    sent: float
    arrived: float
    left: float = inf
    back: float = inf

    @property
    def known(self) -> float:
        """When the server knows what came of it."""
        return min(self.arrived, self.left)


class Timing(Component):
    """Seconds of a run: simulated (`Clock`), or as devices took them (`Tape`)."""

    @property
    @abstractmethod
    def end(self) -> float:
        """Seconds of the run at most."""

    @abstractmethod
    def absence(self, keys: Keys, client: int, since: float, until: float) -> tuple[float, float]:
        """As `Presence.absence`."""

    @abstractmethod
    def spell(
        self, keys: Keys, client: int, attempt: int, now: float, load: Load, *, hostile: bool = False
    ) -> Spell:
        """The attempt that a client begins at `now`, or when it is back."""
