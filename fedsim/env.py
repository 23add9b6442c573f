"""What a client and the server have at hand alike: what was told, the layout, random numbers; one's own and common."""

from __future__ import annotations

from collections import Counter

import numpy as np
from torch import Tensor

from fedsim.check import Invalid
from fedsim.federation import Federation, Ids
from fedsim.keys import SHARED, uniform
from fedsim.messages import Compressor
from fedsim.messages.coder import Uniform
from fedsim.types import Batch, State

HERE = np.array([SHARED])


class Draws:
    """Numbers in [0, 1) of some clients in a round, (k, count): each call goes on where the last one ended."""

    def __init__(self, fed: Federation, purpose: str, round: int, ids: Ids) -> None:
        self.fed, self.keys, self.at = fed, fed.keys.of(purpose, round, ids), 0

    def own(self, count: int) -> Tensor:
        """Of their own: on a device from its entropy."""
        self.at += count
        return self.fed.uniform(self.keys, self.at - count, count)

    def common(self, count: int) -> Tensor:
        """(count,), which all who know the experiment can draw."""
        self.at += count
        return uniform(self.keys, self.at - count, count, self.fed.device)[0]


class AtClients:
    """What the `Env` of one client and that of many have in common."""

    def __init__(self, fed: Federation, ids: Ids, round: int, told: State) -> None:
        self.fed, self.ids, self.round, self.told = fed, ids, round, told
        self.x, self.layout = told[fed.experiment.method.sends], fed.layout.trained
        self.calls = Counter[int]()  # gradients on each of the round's batches
        self.noised = False  # the message, where privacy is message-level
        self.draws = Draws(fed, "client", round, ids)
        self.common = Draws(fed, "common", round, HERE).common

    def noise_once(self) -> None:
        """Raise `Invalid` where a message of this round had its noise already: the ledger books one."""
        if self.noised:
            raise Invalid(
                f"{type(self.fed.experiment.method).__name__}: calls env.noisy twice in a round; the ledger books one "
                "message a round"
            )
        self.noised = True

    def require_noised(self) -> None:
        """Raise `Invalid` where privacy is message-level, and a message leaves that env.noisy has not seen."""
        if self.fed.message_privacy is not None and not self.noised:
            raise Invalid(
                f"{type(self.fed.experiment.method).__name__}: sends a message without env.noisy, and MessageDP "
                "books it as noisy"
            )

    @property
    def uplink(self) -> Compressor:
        """The method's; raises `Invalid` where it has none."""
        method = self.fed.experiment.method
        if method.uplink is None:
            raise Invalid(f"{type(method).__name__}: env.compress without an `uplink` to compress by")
        return method.uplink

    def call(self, batch: Batch) -> int:
        """The number of one more gradient of the round; raises `Invalid` where no ledger counts it."""
        method, before = self.fed.experiment.method, self.calls[batch.step]
        if self.fed.example_privacy and (before >= method.gradients or batch.step >= method.steps):
            raise Invalid(
                f"{type(method).__name__} asks for gradient {before + 1} on batch {batch.step + 1} of a round, its "
                f"`steps` says {method.steps} and its `gradients` {method.gradients}: the ledger would not count it"
            )
        self.calls[batch.step] += 1
        return batch.step * method.gradients + before

    def unaccounted(self, what: str) -> None:
        """Raise `Invalid` where privacy is example-level, which no ledger counts this for."""
        if self.fed.example_privacy:
            raise Invalid(
                f"{type(self.fed.experiment.method).__name__}: env.{what} tells of examples what is neither clipped "
                "nor noised; allowed with ExampleDP is env.grad"
            )


class AtServer:
    """The `ServerEnv` of a round."""

    def __init__(self, fed: Federation, round: int) -> None:
        self.round, self.layout = round, fed.layout.trained
        self.common = Draws(fed, "common", round, HERE).common
        self.uniform = Draws(fed, "server", round, HERE).common
        self.fed = fed

    def compress(self, by: Compressor, message: Tensor) -> Tensor:
        rounding = Draws(self.fed, "downlink", self.round, HERE).common
        return by(message, self.layout, rounding, places(self.fed, self.round))


def places(fed: Federation, round: int) -> Uniform:
    """Numbers that sender and receiver of a round's messages both know, from their start."""
    return Draws(fed, "places", round, HERE).common


def as_read(fed: Federation, rows: Tensor, round: int) -> Tensor:
    """What the server reads of forged messages (f, d): an attacker, too, can send only what the wire carries."""
    by = fed.experiment.method.uplink
    if by is None or not len(rows):
        return rows
    senders = np.arange(fed.experiment.clients, fed.experiment.clients + len(rows))
    return by(rows, fed.layout.trained, Draws(fed, "forged", round, senders).own, places(fed, round))
