"""An experiment from a string that came over a network: bounded in every way before anything is built from it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from fedsim.check import Invalid
from fedsim.config.unread import Unread
from fedsim.spec import Experiment

SIZE = 1 << 16  # bytes of the whole
DEPTH, VALUES, COMPONENTS, TEXT = 12, 2000, 100, 100  # nesting, values, components, characters: the most
# Words, and patterns of names; never an expression in brackets, which takes time to parse.
WORD = re.compile(r"[\w.:+*-]*")
NOTHING = {"name": "Digits"}  # stands in for data that are not read


def experiment_of(text: str, own: frozenset[str] = frozenset(), own_data: bool = False) -> Experiment:
    """The experiment in a JSON text; raises `Invalid` for what is none.

    own       the components of the user's own, as module:name, that it may name
    own_data  the data that it names are another machine's: nothing of their definition is read
    """
    table = plain_table(text, own_data)
    if not own_data:
        return Experiment.from_dict(table, own)
    task = table.get("task")
    if not isinstance(task, dict) or "data" not in task:
        raise Invalid("an experiment without a task and its data")
    found = Experiment.from_dict(table | {"task": task | {"data": NOTHING}}, own)
    return replace(found, task=replace(found.task, data=Unread(task["data"])))


def plain_table(text: str, own_data: bool = False) -> dict[str, Any]:
    """The table in a JSON text; raises `Invalid` for one that is no experiment's.

    With these bounds an experiment is decoded, or refused, in less than 50 ms. `own_data`: texts of the data's
    definition may be any, such as paths.
    """
    if len(text) > SIZE:
        raise Invalid(f"an experiment of {len(text)} characters: at most {SIZE}")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("an experiment that is no JSON") from None
    if not isinstance(table, dict):
        raise Invalid("an experiment that is no table")
    task = table.get("task")
    unread = (
        task.get("data") if own_data and isinstance(task, dict) else None
    )  # a table, or it is not known again
    values = components = 0
    waiting: list[tuple[Any, int, bool]] = [(table, 1, False)]
    while waiting:
        value, depth, free = waiting.pop()
        free = free or (value is unread and isinstance(value, dict))
        values, components = values + 1, components + isinstance(value, dict)
        if values > VALUES or components > COMPONENTS or depth > DEPTH:
            raise Invalid(
                f"an experiment with too many parts: {VALUES} values, {COMPONENTS} components, {DEPTH} deep"
            )
        inner = (
            [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        )
        waiting += [(each, depth + 1, free) for each in inner]
        if isinstance(value, str) and not free and (len(value) > TEXT or not WORD.fullmatch(value)):
            raise Invalid(
                f"an experiment with the text {value[:TEXT]!r}: allowed are words of {TEXT} characters"
            )
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise Invalid("an experiment with a number of more than 64 bits")
    return table
