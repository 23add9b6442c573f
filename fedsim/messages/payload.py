"""A payload: named arrays of unsigned integers, each of a declared width, and the bytes that they travel as.

So bits are counted exactly: a message takes sum(count * width) bits, padded to whole bytes once at its end.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedsim.check import Invalid

Words = NDArray[np.uint64]  # (k,) unsigned integers
Payload = dict[str, Words]
Fields = Mapping[str, tuple[int, int]]  # name -> how many integers, and bits of each


def bits(fields: Fields) -> int:
    """Bits of a payload with these fields."""
    return sum(count * width for count, width in fields.values())


def pack(payload: Payload, fields: Fields) -> bytes:
    """The payload as bytes: the fields one after the other, every integer with its least significant bit first.

    Raises `Invalid` where an array has another length than its field, or an integer more bits.
    """
    require(payload, fields)
    whole = [_to_bits(payload[name], width) for name, (_, width) in fields.items()]
    return np.packbits(np.concatenate([np.zeros(0, np.uint8), *whole]), bitorder="little").tobytes()


def unpack(blob: bytes, fields: Fields) -> Payload:
    """The inverse of `pack`; raises `Invalid` where the bytes are not as many as the fields take, or padding is set."""
    total = bits(fields)
    if len(blob) != (total + 7) // 8:
        raise Invalid(f"message of {len(blob)} bytes: its {total} bits take {(total + 7) // 8}")
    stream = np.unpackbits(np.frombuffer(blob, np.uint8), bitorder="little")
    if stream[total:].any():
        raise Invalid(f"message of {len(blob)} bytes: bits beyond the last field must be 0")
    payload, at = {}, 0
    for name, (count, width) in fields.items():
        payload[name] = _from_bits(stream[at : at + count * width], width)
        at += count * width
    return payload


def require(payload: Payload, fields: Fields) -> None:
    """Raise `Invalid` where a payload does not have these fields."""
    if set(payload) != set(fields):
        raise Invalid(f"payload with {sorted(payload)}: must have {sorted(fields)}")
    for name, (count, width) in fields.items():
        if payload[name].shape != (count,):
            raise Invalid(f"payload.{name} of shape {payload[name].shape}: must be ({count},)")
        if count and width < 64 and int(payload[name].max()) >> width:
            raise Invalid(f"payload.{name}: {int(payload[name].max())} has more than {width} bits")


def _to_bits(words: Words, width: int) -> NDArray[np.uint8]:
    if width == 1:
        return words.astype(np.uint8)
    octets = np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(-1, 8)[:, : (width + 7) // 8]
    return np.unpackbits(octets, axis=1, count=width, bitorder="little").reshape(-1)


def _from_bits(stream: NDArray[np.uint8], width: int) -> Words:
    if width == 1:
        return stream.astype(np.uint64)
    octets = np.packbits(stream.reshape(-1, width), axis=1, bitorder="little")
    whole = np.zeros((len(octets), 8), np.uint8)
    whole[:, : octets.shape[1]] = octets
    return whole.view("<u8").reshape(-1).astype(np.uint64)
