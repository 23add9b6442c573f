"""What the server asks a client for: the experiment as one string, and which message of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedsim.check import Component, Invalid, Natural
from fedsim.flower.arrays import decode
from fedsim.flower.payload import Payload

ARRAYS, ORDER, OWN_DATA = "arrays", "order", "own_data"


@dataclass(frozen=True, kw_only=True)
class Order(Component):
    """A question to one client.

    run       names one run of the experiment; a client's state belongs to it
    accepted  the last round whose message of this client the server took in, -1 for none
    derived   the noise is to be derived from the experiment's seed, which hides nothing (simulation, tests)
    """

    experiment: str
    fingerprint: str
    run: str
    client: Natural
    round: Natural
    accepted: int
    payload: Payload = "float32"
    derived: bool

    def content(self, x: ArrayRecord) -> RecordDict:
        return RecordDict({ARRAYS: x, ORDER: ConfigRecord(asdict(self))})

    @classmethod
    def of(cls, message: Message) -> Order:
        """The order in a message; raises `Invalid` for another message, or another version's."""
        sent: dict[str, Any] = dict(message.content.config_records.get(ORDER, {}))
        known = {field.name for field in fields(cls)}
        if set(sent) != known:
            odd = sorted(set(sent) ^ known)
            raise Invalid(f"a message without an order of this version of fedsim (fields that differ: {odd})")
        return cls(**sent)

    def question(self, x: Tensor) -> str:
        """A digest of all that the answer depends on."""
        asked = f"{self.fingerprint}/{self.run}/{self.client}/{self.round}/{self.accepted}/{self.derived}"
        return sha256(asked.encode() + x.numpy().tobytes()).hexdigest()


def model_of(message: Message, d: int) -> Tensor:
    """The broadcast model x (d,) in a message; raises `Invalid` where it is not one."""
    record = message.content.array_records.get(ARRAYS, ArrayRecord())
    if set(record) != {"x"}:
        raise Invalid(f"a message with arrays {sorted(record)[:3]}: must hold the model as 'x'")
    return torch.tensor(decode(record["x"], "x", (d,), "f"), dtype=torch.float32)
