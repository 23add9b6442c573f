"""Simulated seconds: what a gradient and a message take, who is away, when a round ends. All from addresses."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.check import Finite, Invalid
from fedsim.clock.networks import Bandwidth, Network
from fedsim.clock.paces import Constant, Exponential, Ladder, LogNormal, Pace, Pareto, Turns, Wave
from fedsim.clock.presence import NEVER, Dropouts, Presence
from fedsim.clock.spell import Load as Load
from fedsim.clock.spell import Spell as Spell
from fedsim.clock.spell import Timing as Timing
from fedsim.clock.tape import Tape
from fedsim.clock.trace import Trace
from fedsim.keys import Keys

__all__ = [
    "Bandwidth",
    "Clock",
    "Constant",
    "Dropouts",
    "Exponential",
    "Ladder",
    "LogNormal",
    "Pareto",
    "Tape",
    "Trace",
    "Turns",
    "Wave",
]


Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Clock(Timing):
    """Seconds of an experiment. A client gets the model, works out its gradients, and sends its message.

    gradient   seconds of a gradient of a batch
    network    seconds of a message, by its bits; none: they take no time
    presence   when clients are away; none: never. What one was at work on when it leaves is lost
    byzantine  the pace of Byzantine clients; none: that of the others
    deadline   a round is over after so many seconds; none: with its slowest member
    late       what misses that is "cut", as if the client had been away, or "carried" over into a later round; until
               then its client is not asked again
    work       a client works so many seconds in a round: it does as many local steps as are done by then, at least one,
               at most the method's; none: always all of these
    horizon    the run ends before the first round, or arrival, that would end later
    Raises `Invalid` where "carried" has no deadline, or `work` a pace that changes with time.
    """

    gradient: Pace
    network: Network | None = None
    presence: Presence | None = None
    byzantine: Pace | None = None
    deadline: Finite | None = None
    late: Literal["cut", "carried"] = "cut"
    horizon: Finite | None = None
    work: Finite | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.late == "carried" and self.deadline is None:
            raise Invalid(
                "Clock.late = 'carried' with deadline = none: nobody is late; give a deadline in seconds"
            )
        for pace in (self.gradient, self.byzantine or self.gradient):
            if self.work is not None and not pace.steady:
                raise Invalid(
                    f"Clock.work = {self.work:g} with a pace that changes with time ({type(pace).__name__}): how "
                    "many steps a client does must be known from its round alone; choose another pace"
                )

    @property
    def end(self) -> float:
        return inf if self.horizon is None else self.horizon

    def absence(self, keys: Keys, client: int, since: float, until: float) -> tuple[float, float]:
        return NEVER if self.presence is None else self.presence.absence(keys, client, since, until)

    def spell(
        self, keys: Keys, client: int, attempt: int, now: float, load: Load, *, hostile: bool = False
    ) -> Spell:
        left, back = self.absence(keys, client, now, now)
        now = back if left <= now else now
        sent = now + self._message(keys, client, 2 * attempt, load.down, up=False)
        sent = self._worked(keys, client, attempt, sent, load, hostile)[1]
        arrived = sent + self._message(keys, client, 2 * attempt + 1, load.up, up=True)
        left, back = self.absence(keys, client, now, arrived)
        return Spell(now, sent, arrived) if left == inf else Spell(now, sent, inf, left, back)

    def done(self, keys: Keys, ids: Ids, attempt: int | Ids, load: Load, honest: int) -> Ids:
        """How many local steps clients `ids` (k,) do within `work`, (k,), each in the attempt that it is at, or one."""
        each = zip(ids.tolist(), np.broadcast_to(attempt, ids.shape).tolist(), strict=True)
        counts = [self._worked(keys, i, at, 0.0, load, i >= honest)[0] // load.step for i, at in each]
        return np.array(counts, np.int64)

    def _worked(
        self, keys: Keys, client: int, attempt: int, begun: float, load: Load, hostile: bool
    ) -> tuple[int, float]:
        """The gradients of an attempt that count, and when the client is done with it: its last step may be cut off."""
        pace = self.byzantine if hostile and self.byzantine is not None else self.gradient
        until = inf if self.work is None else self.work
        spent, now, done = 0.0, begun, 0
        while done < load.gradients:
            for gradient in range(done, done + load.step):
                takes = pace.gradient_seconds(keys, client, attempt * load.gradients + gradient, now)
                now, spent = now + takes, spent + takes
            if done and spent > until:
                return done, begun + until
            done += load.step
            if spent >= until:
                break
        return done, now

    def _message(self, keys: Keys, client: int, message: int, bits: int | None, *, up: bool) -> float:
        if self.network is None or bits is None:
            return 0.0
        return self.network.message_seconds(keys, client, message, bits, up=up)
