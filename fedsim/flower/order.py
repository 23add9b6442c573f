"""What the server asks a client for: the experiment as one string, and which message of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt, MaxLen
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedsim.check import Component, Invalid
from fedsim.config.untrusted import SIZE
from fedsim.downlink import DIFFERENCES, ROUNDS, caught_up, most, size
from fedsim.federation import Federation
from fedsim.flower.arrays import decode
from fedsim.flower.payload import Payload
from fedsim.types import State

Word = Annotated[str, MaxLen(64)]
MOST_ROUNDS = 1 << 31
Index = Annotated[int, Ge(0), Lt(MOST_ROUNDS)]
ARRAYS, ORDER, OWN_DATA, EXAMPLES = "arrays", "order", "own_data", "examples"


@dataclass(frozen=True, kw_only=True)
class Order(Component):
    """A question to one client.

    run       names one run of the experiment; a client's state belongs to it
    accepted  the last round whose message of this client the server took in, -1 for none
    derived   the noise is to be derived from the experiment's seed, which hides nothing (simulation, tests)
    """

    experiment: Annotated[str, MaxLen(SIZE)]
    fingerprint: Word
    run: Word
    client: Index
    round: Index
    accepted: Annotated[int, Ge(-1), Lt(MOST_ROUNDS)]
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
            odd = [name[:40] for name in sorted(set(sent) ^ known)[:3]]
            raise Invalid(f"a message without an order of this version of fedsim (fields that differ: {odd})")
        return cls(**sent)

    def question(self, told: State) -> str:
        """A digest of all that the answer depends on."""
        asked = f"{self.fingerprint}/{self.run}/{self.client}/{self.round}/{self.accepted}/{self.derived}"
        return sha256(asked.encode() + b"".join(v.numpy().tobytes() for v in told.values())).hexdigest()


def told_of(message: Message, fed: Federation, held: Tensor | None) -> State:
    """What the server broadcast in a message, by name; raises `Invalid` where it is not of these names and shapes.

    held  what the client holds from the round that it answered last: differences may stand in place of the whole
    """
    record, shapes = message.content.array_records.get(ARRAYS, ArrayRecord()), dict(fed.told_shapes)
    late = {DIFFERENCES, ROUNDS} <= set(record)
    if late:
        del shapes[fed.experiment.method.sends]
    if set(record) != set(shapes) | ({DIFFERENCES, ROUNDS} if late else set()):
        raise Invalid(
            f"a message with arrays {sorted(record)[:3]}: must hold what the server tells, {sorted(fed.told_shapes)}"
        )
    told = {
        name: torch.tensor(decode(record[name], name, shape, "f"), dtype=torch.float32)
        for name, shape in shapes.items()
    }
    if late:
        m = record[ROUNDS].shape[0] if len(record[ROUNDS].shape) == 1 else -1
        if not 0 <= m <= most(fed):
            raise Invalid(
                f"array {ROUNDS!r} of shape {record[ROUNDS].shape}: allowed are up to {most(fed)} rounds"
            )
        rounds = torch.tensor(decode(record[ROUNDS], ROUNDS, (m,), "i"), dtype=torch.int64)
        if m and not 0 <= int(rounds.min()) <= int(rounds.max()) < MOST_ROUNDS:
            raise Invalid(f"array {ROUNDS!r}: must be rounds from 0 on")
        packed = torch.tensor(decode(record[DIFFERENCES], DIFFERENCES, (m, size(fed)), "u"))
        told[fed.experiment.method.sends] = caught_up(fed, held, rounds, packed)
    return {name: told[name] for name in fed.told_shapes}
