"""A compressor: which numbers of a message are sent; its coder says how each is written."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from fedsim.check import Component
from fedsim.layout import Layout
from fedsim.messages.coder import Coder, Uniform
from fedsim.messages.payload import Fields, Payload, bits


class Compressor(Component):
    """C(v) of messages v (..., d), d = layout.width: what a receiver reads of what is sent.

        payload = TopK(0.1).encode(v, layout, uniform)     # integers: what travels
        received = TopK(0.1).decode(payload, layout)       # (d,)
        rows = TopK(0.1)(v, layout, uniform)               # the same of many at once, with no payload made

    `uniform(k)` gives numbers in [0, 1), (..., k), from an address of each sender's own. `places(k)`, (k,), comes from
    an address that sender and receiver share in a round; only RandK asks for it.
    """

    coder: Coder

    @abstractmethod
    def __call__(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Tensor:
        """decode(encode(v)) of each of v (..., d)."""

    @abstractmethod
    def encode(self, v: Tensor, layout: Layout, uniform: Uniform, places: Uniform | None = None) -> Payload:
        """The payload of one message v (d,)."""

    @abstractmethod
    def decode(self, payload: Payload, layout: Layout, places: Uniform | None = None) -> Tensor:
        """The message (d,) that a payload of these fields says; raises `Invalid` where it says none."""

    @abstractmethod
    def fields(self, layout: Layout) -> Fields:
        """How many integers of how many bits a payload has, by name: no other can be sent."""

    def bits(self, layout: Layout) -> int:
        """Bits of one message."""
        return bits(self.fields(layout))

    @abstractmethod
    def alpha(self, layout: Layout) -> float | None:
        """E||C(v) - v||^2 <= (1 - alpha) ||v||^2 for all v; None where no such alpha > 0 is known."""

    @abstractmethod
    def omega(self, layout: Layout) -> float | None:
        """E C(v) = v and E||C(v) - v||^2 <= omega ||v||^2; None where C is biased or no omega is known."""


def contraction(kept: float, coder: Coder, k: int) -> float | None:
    """alpha of a coder behind a selection that keeps at least the share `kept` of ||v||^2.

    ||C(v) - v||^2 is what was left out plus the coder's error on the rest, which is (1 - alpha') or omega' of it.
    """
    alpha, omega = coder.alpha(k), coder.omega(k)
    best = max(alpha or 0.0, 1 - omega if omega is not None else 0.0)
    return kept * best if best > 0 else None
