"""A frame: sizes, a JSON header, and blobs of bytes after it, in pieces that gRPC takes.

    b"fsim" | version (2 bytes) | bytes of the header (4) | bytes of the blobs (8) | header | blobs

All numbers are big-endian. A frame is checked against `Limits` before anything is built from it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VERSION = 1
SERVICE, CALL = "fedsim.Link", "Serve"  # one stream both ways; a gRPC message is a piece of a frame
PIECE = 1 << 20
HEAD = struct.Struct(">4sHIQ")
MAGIC = b"fsim"
OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", 2 * PIECE),
    ("grpc.max_receive_message_length", 2 * PIECE),
    ("grpc.per_message_decompression", 0),  # no piece swells
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    (
        "grpc.http2.ping_timeout_ms",
        10_000,
    ),  # without it a silent peer is noticed after 79 s, with it within 30
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
]
LONGEST = 500  # characters of a reason, the most
PART = re.compile(
    rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[][{}]', re.DOTALL
)  # of JSON: a text, perhaps endless, or a bracket


class Violation(ValueError):
    """What the other side sent breaks the protocol."""


@dataclass(frozen=True)
class Limits:
    """The most that a frame holds: bytes in all, bytes of its header, lists and objects there, and their depth."""

    size: int = 1 << 30
    header: int = 1 << 20
    brackets: int = 100_000
    depth: int = 12


def seal(header: Mapping[str, Any], blobs: Iterable[bytes | memoryview] = ()) -> list[bytes | memoryview]:
    """A frame as parts, whose blobs are not copied."""
    text, parts = json.dumps(header, separators=(",", ":")).encode(), list(blobs)
    return [HEAD.pack(MAGIC, VERSION, len(text), sum(map(len, parts))) + text, *parts]


def pieces(parts: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    """The parts one after the other in pieces of `PIECE` bytes, the last one shorter, without a copy of the whole."""
    piece = bytearray()
    for part in parts:
        view = memoryview(part)
        while view:
            room = PIECE - len(piece)
            piece += view[:room]
            view = view[room:]
            if len(piece) == PIECE:
                yield bytes(piece)
                piece = bytearray()
    if piece:
        yield bytes(piece)


class Incoming:
    """A frame as it comes in, piece by piece. `size` is what its beginning announces, 0 before it is there."""

    def __init__(self, limits: Limits) -> None:
        self.data, self.size, self._limits = bytearray(), 0, limits

    def add(self, piece: bytes) -> bool:
        """Take a piece; whether the frame is whole. Raises `Violation` before more than the limit is held."""
        if not self.size:
            self.size = announced(piece, self._limits)
        missing = self.size - len(self.data) - len(piece)
        if missing < 0 or (missing and len(piece) != PIECE):
            raise Violation(
                f"a piece of {len(piece)} bytes where {min(PIECE, missing + len(piece))} were due"
            )
        self.data += piece
        return missing == 0


def announced(piece: bytes, limits: Limits) -> int:
    """Bytes of the frame that begins with this piece; raises `Violation` where it is none, or too large."""
    if len(piece) < HEAD.size:
        raise Violation(f"a frame of {len(piece)} bytes, at least {HEAD.size} are due")
    magic, version, head, blobs = HEAD.unpack_from(piece)
    if magic != MAGIC:
        raise Violation("not a frame of this link")
    if version != VERSION:
        raise Violation(f"version {version} of the link: this side speaks {VERSION}, install the same fedsim")
    size = HEAD.size + head + blobs
    if head > limits.header or size > limits.size:
        raise Violation(
            f"a frame of {size} bytes, {head} of them header: allowed are {limits.size} and {limits.header}"
        )
    return int(size)


def header_of(
    frame: bytes | bytearray | memoryview, limits: Limits | None = None
) -> tuple[dict[str, Any], memoryview]:
    """The header of a whole frame, and its blobs; raises `Violation`."""
    limits = limits or Limits()
    if announced(bytes(frame[: HEAD.size]), limits) != len(frame):
        raise Violation("a frame that is cut short, or goes on after its end")
    head = HEAD.unpack_from(frame)[2]
    view = memoryview(frame)[HEAD.size :]
    text = bytes(view[:head])
    _check_nesting(text, limits)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Violation(f"a header that is not readable ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise Violation("a header that is no object")
    return header, view[head:]


def printable(text: str) -> str:
    """What others say, fit for a terminal and a log: cut, and nothing in it that moves the cursor."""
    return "".join(each if each.isprintable() else "?" for each in text[:LONGEST])


def text_of(header: Mapping[str, Any], name: str, most: int = 200) -> str:
    """A text of the header; raises `Violation` where it is none, or longer."""
    value = header.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise Violation(f"{name}: must be a text of at most {most} characters")
    return value


def number_of(header: Mapping[str, Any], name: str) -> float:
    """A finite number of the header; raises `Violation` where it is none."""
    value = header.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1e18 < value < 1e18:
        raise Violation(f"{name}: must be a finite number")
    return float(value)


def whole_of(header: Mapping[str, Any], name: str) -> int:
    """A whole number of 64 bits from the header; raises `Violation` where it is none."""
    value = header.get(name)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise Violation(f"{name}: must be a whole number")
    return value


def _check_nesting(text: bytes, limits: Limits) -> None:
    """Raise `Violation` for JSON too deep or with too many parts, without building any of it."""
    depth = count = 0
    for each in PART.finditer(text):
        if each[0] in b"[{":
            depth, count = depth + 1, count + 1
        elif each[0] in b"]}":
            depth -= 1
        if depth > limits.depth:
            raise Violation(f"a header nested deeper than {limits.depth}")
        if count > limits.brackets:
            raise Violation(f"a header with more than {limits.brackets} lists and objects")
