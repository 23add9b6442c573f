"""Checked values: types that carry their bounds, and the one error for what lies outside of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from functools import cache
from math import inf
from typing import Annotated, Any, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic_core import core_schema

Finite = Annotated[float, Gt(0), Lt(inf)]
NonNegative = Annotated[float, Ge(0), Lt(inf)]
Share = Annotated[float, Gt(0), Le(1)]  # (0, 1]
Chance = Annotated[float, Gt(0), Lt(1)]  # (0, 1)
Momentum = Annotated[float, Ge(0), Lt(1)]  # [0, 1)
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]

SHOWN = 300  # characters of a value in an error, the most


LEAST_CLIP, MOST_CLIP = 1e-6, 1e6  # float32 measures norms around these
LEAST_NOISE, MOST_NOISE = 1e-3, 1e4  # beyond these float32 loses the noise, or what it is added to
LEAST_MOVE = (
    1e-5  # sensitivity over the norm of what is released: rounding to float32 moves that by up to 5e-8
)
LEAST_DEVIATION = 1e-6  # that of the noise over the same norm: some grid points of float32


def _clip_norm(value: float) -> float:
    if LEAST_CLIP <= value <= MOST_CLIP or value == inf:
        return value
    raise ValueError(f"must be from {LEAST_CLIP:g} to {MOST_CLIP:g}, or inf, which clips nothing")


ClipNorm = Annotated[float, AfterValidator(_clip_norm)]  # an L2 norm that vectors are clipped to
FiniteClipNorm = Annotated[float, Ge(LEAST_CLIP), Le(MOST_CLIP)]
StepSize = Annotated[float, Ge(1e-12), Le(1e6)]
NoiseMultiplier = Annotated[float, Ge(LEAST_NOISE), Le(MOST_NOISE)]  # deviation over sensitivity


FILE = "names a file of this machine"  # marks a text: a definition that came over a network may hold none
File = Annotated[str, MinLen(1), FILE]


class Invalid(ValueError):
    """A value that is not allowed, in one sentence, on one line: the field, the value, and what is allowed."""

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(line.strip() for line in sentence.splitlines()))


@cache
def _adapters(cls: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(cls)}


def check(cls: type, name: str, value: object) -> Any:
    """`value` as field `name` of the dataclass `cls` holds it; raises `Invalid`."""
    try:
        return _adapters(cls)[name].validate_python(value, strict=True)
    except ValidationError as error:
        reasons = dict.fromkeys(_reason(part["msg"]) for part in error.errors())
        raise Invalid(f"{cls.__name__}.{name} = {shown(value)}: {' or '.join(reasons)}") from None


def shown(value: object) -> str:
    """A value as an error shows it: what others sent may be long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


@dataclasses.dataclass(frozen=True)
class Component:
    """A frozen value whose fields are its hyper-parameters, checked against their types; methods are pure."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check(type(self), field.name, getattr(self, field.name)))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.is_instance_schema(cls)  # a field of a component's type takes any subclass of it


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint that ends an error about an unknown name: the closest right one, or all of them."""
    names = sorted(allowed)
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.65)
    return f"did you mean {by_lower[close[0]]}?" if close else f"allowed: {', '.join(names)}"
