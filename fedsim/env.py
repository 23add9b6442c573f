"""What a client and the server have at hand alike: what was told, the layout, random numbers; one's own and common."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.asynchronous import Asynchronous
from fedsim.check import Invalid
from fedsim.federation import Federation, Ids
from fedsim.keys import SHARED, uniform
from fedsim.messages import Compressor
from fedsim.messages.coder import Uniform
from fedsim.messages.payload import Payload
from fedsim.types import Batch, Round, State

HERE = np.array([SHARED])


class Draws:
    """Numbers in [0, 1) of some clients in a round, (k, count): each call goes on where the last one ended."""

    def __init__(self, fed: Federation, purpose: str, round: Round, ids: Ids) -> None:
        self.fed, self.purpose, self.round, self.ids, self.at = fed, purpose, round, ids, 0

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """Of the clients, once somebody draws."""
        return self.fed.keys.of(self.purpose, self.round, self.ids)

    def own(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Of their own: on a device from its entropy."""
        self.at += count
        return self.fed.uniform(self.keys, self.at - count, count, dtype)

    def common(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(count,), which all who know the experiment can draw; raises `Invalid` where they have no round in common."""
        if len(self.keys) > 1:
            raise Invalid("env.common: each client is at an attempt of its own; allowed is env.uniform")
        self.at += count
        return uniform(self.keys, self.at - count, count, self.fed.device, dtype)[0]


class AtClients:
    """What the `Env` of one client and that of many have in common."""

    def __init__(self, fed: Federation, ids: Ids, round: Round, told: State) -> None:
        self.fed, self.ids, self.address, self.told = fed, ids, round, told
        self.x, self.layout = told[fed.experiment.method.sends], fed.layout.trained
        self.calls = Counter[int]()  # gradients on each of the round's batches
        self.noised = False  # the message, where privacy is message-level
        self.draws = Draws(fed, "client", round, ids)

    @property
    def round(self) -> int:
        """Raises `Invalid` in an asynchronous run, where each client is at an attempt of its own."""
        if isinstance(self.address, int) and not isinstance(self.fed.experiment.method, Asynchronous):
            return self.address
        raise Invalid(
            f"{type(self.fed.experiment.method).__name__}: asks for env.round on a client, and asynchronous methods "
            "have none there; allowed are step sizes that do not change with it"
        )

    def common(self, count: int) -> Tensor:
        """Numbers that all clients of the round draw, (count,)."""
        return self.shared.common(count)

    @cached_property
    def shared(self) -> Draws:
        return Draws(self.fed, "common", self.address, HERE)

    def noise_once(self) -> None:
        """Raise `Invalid` where a message of this round had its noise already: the ledger books one."""
        if self.noised:
            raise Invalid(
                f"{type(self.fed.experiment.method).__name__}: calls env.noisy, or env.respond, twice in a round; the "
                "ledger books one message a round"
            )
        self.noised = True

    def require_noised(self) -> None:
        """Raise `Invalid` where privacy is message-level, and a message leaves that env.noisy has not seen."""
        if self.fed.message_privacy is not None and not self.noised:
            raise Invalid(
                f"{type(self.fed.experiment.method).__name__}: sends a message without env.noisy, and MessageDP "
                "books it as noisy"
            )
        if self.fed.response is not None and not self.noised:
            raise Invalid(
                f"{type(self.fed.experiment.method).__name__}: sends a message without env.respond, and "
                "RandomizedResponse books it as flipped"
            )

    def respond(self, signs: Tensor) -> Tensor:
        response, ledger = self.fed.response, self.fed.ledger
        if response is None or ledger is None:
            return signs
        self.noise_once()
        p = response.flips(ledger.plan, self.round)
        # u lies on multiples of 2^-24, as p and 1 - p do: each chance is met exactly
        u = Draws(self.fed, "flips", self.round, self.ids).own(signs.shape[-1]).view_as(signs)
        chance = torch.where(signs > 0, 1 - p, torch.where(signs < 0, p, 0.5))
        return torch.where(u < chance, 1.0, -1.0)

    @property
    def whole(self) -> bool:
        return self.fed.whole(self.address)

    @property
    def uplink(self) -> Compressor:
        """The method's, in this round; raises `Invalid` where it has none."""
        by = self.fed.uplink(self.address)
        if by is None:
            name = type(self.fed.experiment.method).__name__
            raise Invalid(f"{name}: env.compress without an `uplink` to compress by")
        return by

    def call(self, batch: Batch) -> int:
        """The number of one more gradient of the round; raises `Invalid` where no ledger counts it."""
        method, before = self.fed.experiment.method, self.calls[batch.step]
        if self.fed.example_privacy and (before >= method.gradients or batch.step >= method.steps):
            raise Invalid(
                f"{type(method).__name__} asks for gradient {before + 1} on batch {batch.step + 1} of a round, its "
                f"`steps` says {method.steps} and its `gradients` {method.gradients}: the ledger would not count it"
            )
        if self.fed.example_privacy:
            self._require_weights(batch)
        self.calls[batch.step] += 1
        return batch.step * method.gradients + before

    @cached_property
    def _heaviest(self) -> Tensor:
        """The weight of an example that the noise is made for, of each client (k,)."""
        return 1 / torch.from_numpy(self.fed.experiment.batches.expected(self.fed.sizes[self.ids]))

    def _require_weights(self, batch: Batch) -> None:
        """Raise `Invalid` where an example of a batch weighs more than the noise is made for."""
        most = self._heaviest.to(batch.weight)
        if batch.weight.numel() and (batch.weight.amax(-1) > most * (1 + 1e-5)).any():
            raise Invalid(
                f"{type(self.fed.experiment.method).__name__}: an example that weighs "
                f"{float(batch.weight.max()):.3g} in a batch, where ExampleDP makes its noise for "
                f"{float(most.max()):.3g}; allowed are the batches as they were drawn"
            )

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
        self.payload: Payload | None = None  # of what the method broadcasts, where that is compressed

    @property
    def whole(self) -> bool:
        return self.fed.whole(self.round)

    def compress(self, by: Compressor, message: Tensor) -> Tensor:
        rounding = Draws(self.fed, "downlink", self.round, HERE).common
        payload = by.encode(message, self.layout, rounding, places(self.fed, self.round))
        if by == self.fed.experiment.method.downlink:
            self.payload = payload
        return by.decode(payload, self.layout, places(self.fed, self.round)).to(message.device)


def places(fed: Federation, round: Round) -> Uniform:
    """Numbers that sender and receiver of a round's messages both know, from their start."""
    return Draws(fed, "places", round, HERE).common


def as_read(fed: Federation, rows: Tensor, round: int) -> Tensor:
    """What the server reads of forged messages (f, d): an attacker, too, can send only what the wire carries."""
    by = fed.uplink(round)
    if by is None or not len(rows):
        return rows
    senders = np.arange(fed.experiment.clients, fed.experiment.clients + len(rows))
    return by(rows, fed.layout.trained, Draws(fed, "forged", round, senders).own, places(fed, round))
