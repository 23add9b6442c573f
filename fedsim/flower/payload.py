"""A message (d,) as bytes: the payload of a compressor, otherwise float32, or half of that."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedsim.check import Invalid
from fedsim.env import places
from fedsim.federation import Federation
from fedsim.flower.arrays import decode
from fedsim.messages.payload import bits
from fedsim.messages.payload import pack as pack_payload
from fedsim.messages.payload import unpack as unpack_payload
from fedsim.round import Answer

Payload = Literal["float32", "float16", "bfloat16"]
COMPRESSED = "compressed"


def travelling(fed: Federation, answer: Answer, round: int) -> Tensor:
    """What a client sends: its message (d,), or where that is compressed the bytes of its payload (k,) uint8."""
    by = fed.uplink(round)
    if by is None or answer.payload is None:
        return answer.message
    packed = pack_payload(answer.payload, by.fields(fed.layout.trained))
    return torch.from_numpy(np.frombuffer(packed, np.uint8).copy())


def received(fed: Federation, record: ArrayRecord, round: int) -> Tensor:
    """The message (d,) in a reply; raises `Invalid` where it is none of this method's."""
    by, layout = fed.uplink(round), fed.layout.trained
    if by is None:
        return unpack(record, fed.width)
    if set(record) != {COMPRESSED}:
        raise Invalid(f"message with arrays {sorted(record)[:4]}: must be {COMPRESSED!r} alone")
    fields = by.fields(layout)
    packed = decode(record[COMPRESSED], COMPRESSED, ((bits(fields) + 7) // 8,), "u")
    row = by.decode(unpack_payload(packed.tobytes(), fields), layout, places(fed, round))
    if not row.isfinite().all():
        raise Invalid("message with NaN or Inf")
    return row


def pack(row: Tensor, payload: Payload = "float32") -> ArrayRecord:
    """A message as arrays: float32 loses nothing, float16 and bfloat16 round. Bytes of a payload: as they are."""
    if row.dtype == torch.uint8:
        return ArrayRecord({COMPRESSED: Array(row.numpy())})
    if payload == "bfloat16":  # NumPy has no such type: its 16 bits travel as integers
        return ArrayRecord({"bfloat16": Array(row.bfloat16().view(torch.int16).numpy())})
    return ArrayRecord({payload: Array(row.numpy().astype(payload))})


def unpack(record: ArrayRecord, d: int) -> Tensor:
    """The message (d,), float32, that `pack` made a record of; raises `Invalid` for anything else, NaN and Inf."""
    names = set(record)
    if names in ({"float32"}, {"float16"}):
        (name,) = names
        values = decode(record[name], name, (d,), "f")
        with np.errstate(over="ignore"):
            row = torch.from_numpy(values.astype(np.float32))
    elif names == {"bfloat16"}:
        row = torch.from_numpy(decode(record["bfloat16"], "bfloat16", (d,), "i").astype(np.int16))
        row = row.view(torch.bfloat16).float()
    else:
        raise Invalid(f"message with arrays {sorted(names)[:4]}: not a message of fedsim")
    if not row.isfinite().all():
        raise Invalid("message with NaN or Inf")
    return row


def size(record: ArrayRecord) -> int:
    """Bytes of the arrays of a record as they travel."""
    return sum(len(array.data) for array in record.values())
