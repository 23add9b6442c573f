"""Flower's RecordDict as a description and blobs, by the public constructors of flwr.app alone."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsim.link.frame import Violation

KINDS: dict[str, Any] = {"array": ArrayRecord, "metric": MetricRecord, "config": ConfigRecord}
NAME, DIMENSIONS = 1000, 32  # characters of a name, dimensions of an array: the most


def describe(content: RecordDict) -> tuple[list[Any], list[bytes]]:
    """The description, and the bytes in the order in which it mentions them; arrays are not copied."""
    blobs: list[bytes] = []

    def sized(data: bytes) -> int:
        blobs.append(data)
        return len(data)

    def plain(value: Any) -> list[Any]:
        if isinstance(value, bytes):
            return ["bytes", sized(value)]
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            return ["bytes", [sized(each) for each in value]]
        return ["plain", value]

    def record(value: Any) -> list[Any]:
        if isinstance(value, ArrayRecord):
            return [
                "array",
                [[k, [a.dtype, list(a.shape), a.stype, sized(a.data)]] for k, a in value.items()],
            ]
        kind = "metric" if isinstance(value, MetricRecord) else "config"
        return [kind, [[k, plain(v)] for k, v in value.items()]]

    return [[name, *record(value)] for name, value in content.items()], blobs


def restore(described: Any, body: memoryview) -> RecordDict:
    """The records of a description; raises `Violation` for anything that `describe` does not make."""
    blobs = _Blobs(body)
    try:
        records = {}
        for name, kind, items in described:
            records[_name(name)] = KINDS[kind]({_name(key): _value(kind, said, blobs) for key, said in items})
            if len(records[name]) != len(items):
                raise Violation("a name that stands twice in a record")
        content = RecordDict(records)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise Violation(f"records that are not readable ({str(error)[:200]})") from None
    if len(records) != len(described) or blobs.left:
        raise Violation("a record that stands twice, or bytes that belong to no record")
    return content


class _Blobs:
    """The bytes after a header, cut off one after the other."""

    def __init__(self, body: memoryview) -> None:
        self._body, self._at = body, 0

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def cut(self, size: Any) -> bytes:
        if type(size) is not int or not 0 <= size <= self.left:
            raise Violation(f"a blob that is longer than the {self.left} bytes left")
        self._at += size
        return bytes(self._body[self._at - size : self._at])


def _name(said: Any) -> str:
    if not isinstance(said, str) or len(said) > NAME:
        raise Violation(f"a name that is no text of at most {NAME} characters")
    return said


def _value(kind: str, said: Any, blobs: _Blobs) -> Any:
    if kind == "array":
        dtype, shape, stype, size = said
        if len(shape) > DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
            raise Violation("an array whose shape is none")
        return Array(dtype=_name(dtype), shape=tuple(shape), stype=_name(stype), data=blobs.cut(size))
    how, what = said
    if how == "bytes":
        return [blobs.cut(size) for size in what] if isinstance(what, list) else blobs.cut(what)
    if how != "plain":
        raise Violation("a value of no known kind")
    if any(
        type(each) is int and abs(each) >= 1 << 63 for each in (what if isinstance(what, list) else [what])
    ):
        raise Violation("a number of more than 64 bits")
    return what
