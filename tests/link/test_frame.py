"""Frames and records: what comes out is what went in, and what is no frame is refused before anything is built."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yard import numbers

from fedsim.link.frame import (
    HEAD,
    MAGIC,
    PIECE,
    VERSION,
    Incoming,
    Limits,
    Violation,
    header_of,
    number_of,
    pieces,
    seal,
    text_of,
)
from fedsim.link.records import describe, restore

LIMITS = Limits(size=8 << 20, header=1 << 16, brackets=2000)


def framed(text: bytes, blobs: bytes = b"", version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    return HEAD.pack(magic, version, len(text), len(blobs)) + text + blobs


@given(st.lists(st.integers(0, 3 * PIECE), max_size=4))
def test_a_frame_comes_back_from_its_pieces(sizes: list[int]) -> None:
    blobs = [bytes([i]) * size for i, size in enumerate(sizes)]
    frame, over = Incoming(Limits()), False
    for piece in pieces(seal({"a": [1, "é"]}, blobs)):
        assert not over
        over = frame.add(piece)
    assert over
    header, body = header_of(frame.data)
    assert header == {"a": [1, "é"]}
    assert bytes(body) == b"".join(blobs)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"", "a frame of 0 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(100), "not a frame of this link"),
        (framed(b"{}", version=2), "version 2 of the link: this side speaks 1"),
        (HEAD.pack(MAGIC, VERSION, 2, 1 << 40), "allowed are 8388608 and 65536"),
        (HEAD.pack(MAGIC, VERSION, 1 << 17, 0), "131072 of them header"),
        (HEAD.pack(MAGIC, VERSION, 2, 100) + b"{}", "were due"),
        (framed(b"{}") + b"x", "were due"),
    ],
)
def test_what_is_no_frame_is_refused_at_its_first_piece(first: bytes, reason: str) -> None:
    with pytest.raises(Violation, match=reason):
        Incoming(LIMITS).add(first)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"[" + b"[]," * 20_000 + b"[]]",
        b"1" * 60_000,
        b'"\\' * 30_000,
        b'"' + b"\\" * 60_000,
        b"[]",
        b"\xff\xfe",
        b"",
        b"nul",
    ],
)
def test_a_hostile_header_costs_little(text: bytes) -> None:
    """Deep, wide, with long numbers, with quotes that never end: refused within 50 ms and 2 MB, without a crash."""
    frame = framed(text)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(Violation):
        header_of(frame, LIMITS)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.2  # traced; 5 ms without
    assert peak < 2 << 20


def test_brackets_in_a_text_are_text() -> None:
    header = {"a": "[" * 5000, "b": '"[{'}
    assert header_of(b"".join(seal(header)), LIMITS)[0] == header


def test_fields_of_a_header_are_checked() -> None:
    for value in (None, 3, "x" * 201, ["a"]):
        with pytest.raises(Violation, match="a text of at most 200"):
            text_of({"id": value}, "id")
    for value in (None, "3", True, float("nan"), float("inf"), 10**400):
        with pytest.raises(Violation, match="a finite number"):
            number_of({"ttl": value}, "ttl")


def test_records_come_back() -> None:
    content = numbers()
    described, blobs = describe(content)
    again = restore(json.loads(json.dumps(described)), memoryview(b"".join(blobs)))
    assert list(again) == list(content)
    for name, record in content.items():
        assert type(again[name]) is type(record)
        assert dict(again[name]) == dict(record)


leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    ["array", "metric", "config", "plain", "bytes", "numpy.ndarray", 1 << 64, -1]
)  # fmt: skip
tree = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@given(tree, st.binary(max_size=20))
def test_what_describes_no_records_is_a_violation(described: object, body: bytes) -> None:
    with suppress(Violation):
        restore(described, memoryview(body))


@given(st.data())
def test_records_that_were_changed_on_the_way_are_a_violation_or_records(data: st.DataObject) -> None:
    """One part of a right description replaced by anything: never another exception."""
    described, blobs = json.loads(json.dumps(describe(numbers(3))[0])), b"".join(describe(numbers(3))[1])
    places = []

    def visit(node: object) -> None:
        if isinstance(node, list):
            for i, each in enumerate(node):
                places.append((node, i))
                visit(each)

    visit(described)
    node, i = data.draw(st.sampled_from(places))
    node[i] = data.draw(tree)
    with suppress(Violation):
        restore(described, memoryview(blobs))


def test_warnings_do_not_fill_a_disk() -> None:
    """Sixty of a kind in a minute, and then how many were left out; what is no warning is written always."""
    import logging

    from fedsim.link.journal import Sparing

    def record(created: float, level: int = logging.WARNING, message: str = "no answer") -> logging.LogRecord:
        made = logging.LogRecord("a", level, "", 0, message, None, None)
        made.created = created
        return made

    spare = Sparing()
    assert sum(spare.filter(record(1000 + i / 1000)) for i in range(10_000)) == 60
    assert spare.filter(record(1001, message="another"))
    assert all(spare.filter(record(1001, logging.INFO)) for _ in range(1000))
    later = record(1070)
    assert spare.filter(later)
    assert later.__dict__["fields"] == {"left_out": 10_000 - 60}
