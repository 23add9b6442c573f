"""Checked values: bounds hold, and an error is one sentence with the field, the value and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.check import ClipNorm, Component, Count, Finite, Invalid, Momentum, NonNegative, Share, nearest


@dataclass(frozen=True)
class Inner(Component):
    k: Count = 1


@dataclass(frozen=True)
class Outer(Component):
    tau: ClipNorm = inf
    lr: Finite = 1.0
    share: Share = 1.0
    momentum: Momentum = 0.0
    l2: NonNegative = 0.0
    inner: Inner | None = None


@given(st.floats())
def test_bounds(value: float) -> None:
    allowed = {
        "tau": 1e-6 <= value <= 1e6 or value == inf,
        "lr": 0 < value < inf,
        "share": 0 < value <= 1,
        "momentum": 0 <= value < 1,
        "l2": 0 <= value < inf,
    }
    for name, fine in allowed.items():
        if fine:
            assert getattr(Outer(**{name: value}), name) == value
        else:
            with pytest.raises(Invalid, match=rf"^Outer\.{name} = .*: must be "):
                Outer(**{name: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("tau", "0.1"), ("tau", None), ("tau", nan), ("lr", True), ("inner", 3), ("inner", Outer())],
)
def test_wrong_types_are_refused(field: str, value: object) -> None:
    with pytest.raises(Invalid, match=rf"^Outer\.{field} = "):
        Outer(**{field: value})  # type: ignore[arg-type]


def test_counts_are_whole_numbers() -> None:
    assert Outer(inner=Inner(3)).inner == Inner(3)
    for value in (0, -1, 2.0, True):
        with pytest.raises(Invalid, match=r"^Inner\.k"):
            Inner(value)  # type: ignore[arg-type]


def test_an_integer_serves_as_a_float() -> None:
    assert isinstance(Outer(tau=1).tau, float)
    assert hash(Outer(tau=1)) == hash(Outer(tau=1.0))


def test_a_misspelt_field_is_an_error() -> None:
    with pytest.raises(TypeError):
        Outer(tua=1.0)  # type: ignore[call-arg]


def test_nearest() -> None:
    assert nearest("medain", ["Mean", "Median"]) == "did you mean Median?"
    assert nearest("xyz", ["b", "a"]) == "allowed: a, b"
