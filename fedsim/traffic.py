"""How the messages of a federation travel, and the bits that they take, headers aside."""

from __future__ import annotations

from math import prod

import numpy as np
from torch import Tensor

from fedsim.keys import SHARED, Keys, uniform
from fedsim.layout import Layout
from fedsim.messages import All, Compressor, StochasticSigns
from fedsim.method import Method
from fedsim.privacy import RandomizedResponse
from fedsim.spec import Experiment
from fedsim.types import Round

WHOLE = All()  # the compressor that loses nothing
ONE_BIT = All(StochasticSigns(1.0))  # that of signs, none of them 0


class Traffic:
    """A federation as a wire sees it."""

    experiment: Experiment
    keys: Keys
    layout: Layout
    x0: Tensor
    width: int  # of a message

    def whole(self, round: Round) -> bool:
        """Whether the messages of a round travel as they are, whatever the method's `uplink`."""
        method = self.experiment.method
        if type(method).whole is Method.whole or not isinstance(round, int):
            return False
        return method.whole(round, float(self.keys.uniform("whole", round, np.array([SHARED]), 1)[0, 0]))

    def uplink(self, round: Round) -> Compressor | None:
        """How the messages of a round are compressed; None: they travel as they are."""
        by = self.experiment.method.uplink
        if by is not None and isinstance(self.experiment.privacy, RandomizedResponse):
            return ONE_BIT  # none of its signs is 0
        if by is not None and self.whole(round):
            return WHOLE
        method = self.experiment.method
        if type(method).uplink_in is Method.uplink_in or not isinstance(round, int):
            return by
        coin = uniform(self.keys.of("common", round, np.array([SHARED])), 0, 1)[0, 0]
        return method.uplink_in(self.layout.trained, float(coin))

    def uplink_bits(self, round: int) -> int:
        """Bits of a client's message in a round, headers aside."""
        by = self.uplink(round)
        return 32 * self.width if by is None else by.bits(self.layout.trained)

    def bits(self, rounds: int) -> dict[str, int]:
        """Bits that a client sends and is told in so many rounds in all of which it takes part."""
        method = type(self.experiment.method)
        alike = method.whole is Method.whole and method.uplink_in is Method.uplink_in
        sent = rounds * self.uplink_bits(0) if alike else sum(map(self.uplink_bits, range(rounds)))
        return {"uplink_bits": sent, "downlink_bits": rounds * self.downlink_bits}

    @property
    def downlink_bits(self) -> int:
        """Bits that a client is told in a round, headers aside, where it took part in the one before."""
        method, shapes = self.experiment.method, self.told_shapes
        bits = {name: 32 * prod(shape) for name, shape in shapes.items()}
        if method.downlink is not None:
            bits[method.sends] = min(bits[method.sends], method.downlink.bits(self.layout.trained))
        return sum(bits.values())

    @property
    def told_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what a client is told."""
        return shapes_told(self.experiment.method, self.x0)


def shapes_told(method: Method, x0: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of what a server that begins at x0 (d,) tells a client; x0 may be a tensor of the device "meta"."""
    start, names = method.server_init(x0, 1), (method.sends, *method.tells)
    return {name: tuple(start[name].shape)[1 if method.peer else 0 :] for name in names}
