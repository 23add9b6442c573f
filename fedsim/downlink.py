"""What a client is told where the broadcast is compressed: the differences since it last answered, or the whole.

The server keeps the differences of as many rounds as are together shorter than the whole. A client whose message of
round a was taken in last holds what was broadcast in that round; in round t it misses the differences of a .. t - 1.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.env import places
from fedsim.federation import Federation, Ids
from fedsim.messages.payload import Payload, bits, pack, unpack
from fedsim.types import State

ROUNDS, DIFFERENCES = (
    "differences.rounds",
    "differences",
)  # (m,) int64, and their payloads as bytes (m, b) uint8


def most(fed: Federation) -> int:
    """How many differences are together shorter than what they stand for."""
    by = fed.experiment.method.downlink
    return 0 if by is None else (_whole_bits(fed) - 1) // by.bits(fed.layout.trained)


def kept(fed: Federation, sent: State, round: int, payload: Payload) -> State:
    """The differences that the server keeps after that of a round: one more than are of use, to tell what is gone."""
    by = fed.experiment.method.downlink
    assert by is not None
    packed = np.frombuffer(pack(payload, by.fields(fed.layout.trained)), np.uint8).copy()
    new = {ROUNDS: torch.tensor([round]), DIFFERENCES: torch.from_numpy(packed)[None]}
    return {
        name: torch.cat([sent[name].cpu(), v] if sent else [v])[-most(fed) - 1 :] for name, v in new.items()
    }


def missing(fed: Federation, told: State, accepted: int) -> State | None:
    """The differences that a client misses which answered in round `accepted` last; None: it is told the whole."""
    if accepted < 0 or ROUNDS not in told:
        return None
    late = told[ROUNDS] >= accepted
    return None if late.sum() > most(fed) else {name: told[name][late] for name in (ROUNDS, DIFFERENCES)}


def told_bits(fed: Federation, told: State, accepted: int) -> int:
    """Bits that such a client is told in a round."""
    method, late = fed.experiment.method, missing(fed, told, accepted)
    if method.downlink is None or late is None:
        return sum(32 * prod(shape) for shape in fed.told_shapes.values())
    others = sum(32 * prod(shape) for name, shape in fed.told_shapes.items() if name != method.sends)
    return others + len(late[ROUNDS]) * method.downlink.bits(fed.layout.trained)


def mean_bits(fed: Federation, told: State, accepted: Ids) -> float:
    """Bits that clients are told on average in a round; `accepted` (k,): the round that each one answered last."""
    when, count = np.unique(accepted, return_counts=True)
    return sum(told_bits(fed, told, int(a)) * int(k) for a, k in zip(when, count, strict=True)) / len(
        accepted
    )


def caught_up(fed: Federation, held: Tensor | None, rounds: Tensor, packed: Tensor) -> Tensor:
    """What a client holds, and the differences (m, b) of rounds (m,); raises `Invalid` for none of this method's."""
    by, layout = fed.experiment.method.downlink, fed.layout.trained
    if by is None or held is None:
        raise Invalid("differences without what they differ from: must hold what the server tells")
    fields = by.fields(layout)
    for round, blob in zip(rounds.tolist(), packed.numpy(), strict=True):
        held = held + by.decode(unpack(blob.tobytes(), fields), layout, places(fed, round))
    return held


def size(fed: Federation) -> int:
    """Bytes of one difference."""
    by = fed.experiment.method.downlink
    return 0 if by is None else (bits(by.fields(fed.layout.trained)) + 7) // 8


def _whole_bits(fed: Federation) -> int:
    return 32 * prod(fed.told_shapes[fed.experiment.method.sends])
