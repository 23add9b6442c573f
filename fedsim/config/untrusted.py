"""An experiment from a string that came over a network: bounded in every way before anything is built from it."""

from __future__ import annotations

import json
import re
from typing import Any

from fedsim.check import Invalid

SIZE = 1 << 16  # bytes of the whole
DEPTH, VALUES, COMPONENTS, TEXT = (
    12,
    2000,
    100,
    100,
)  # nesting, values, components, characters of a text: the most
WORD = re.compile(
    r"[\w.:+*-]*"
)  # or a pattern of names; never an expression in brackets, which takes time to parse


def plain_table(text: str) -> dict[str, Any]:
    """The table in a JSON text, for `Experiment.from_dict`; raises `Invalid` for one that is no experiment's.

    With these bounds an experiment is decoded, or refused, in less than 50 ms.
    """
    if len(text) > SIZE:
        raise Invalid(f"an experiment of {len(text)} characters: at most {SIZE}")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("an experiment that is no JSON") from None
    if not isinstance(table, dict):
        raise Invalid("an experiment that is no table")
    values = components = 0
    waiting: list[tuple[Any, int]] = [(table, 1)]
    while waiting:
        value, depth = waiting.pop()
        values, components = values + 1, components + isinstance(value, dict)
        if values > VALUES or components > COMPONENTS or depth > DEPTH:
            raise Invalid(
                f"an experiment with too many parts: {VALUES} values, {COMPONENTS} components, {DEPTH} deep"
            )
        inner = (
            [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        )
        waiting += [(each, depth + 1) for each in inner]
        if isinstance(value, str) and (len(value) > TEXT or not WORD.fullmatch(value)):
            raise Invalid(
                f"an experiment with the text {value[:TEXT]!r}: allowed are words of {TEXT} characters"
            )
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise Invalid("an experiment with a number of more than 64 bits")
    return table
