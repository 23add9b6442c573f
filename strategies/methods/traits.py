"""What many methods have in common: local steps, and messages that are clipped."""

from __future__ import annotations

from math import isfinite

from fedsim.check import ClipNorm, Count
from fedsim.method import Method


class LocalSteps(Method):
    """A method whose clients draw a batch for each of `local_steps` steps."""

    local_steps: Count

    @property
    def steps(self) -> int:
        return self.local_steps


class Clipped(Method):
    """A method that clips each message to L2 norm `tau`, before any noise; inf leaves it as it is."""

    tau: ClipNorm

    @property
    def message_bound(self) -> float | None:
        return self.tau if isfinite(self.tau) else None
