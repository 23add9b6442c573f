"""An experiment with others beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedsim.spec import Experiment
from fedsim.strategies import Chain
from fedsim.types import Rule

NAMES = {"Krum", "Bulyan", "Phocas"}  # words that keep their capital


def alone(main: Experiment) -> Mapping[str, Experiment]:
    return {}


def silent(main: Experiment) -> str:
    return ""


@dataclass(frozen=True)
class Comparison:
    """An experiment, and what to show beside it, by label: made of the experiment as it is after all changes.

    before  what is said before the runs, in plain words
    after   and below their results: what the picture shows, and what to do next
    """

    main: Experiment
    beside: Callable[[Experiment], Mapping[str, Experiment]] = alone
    before: Callable[[Experiment], str] = silent
    after: Callable[[Experiment], str] = silent

    @property
    def label(self) -> str:
        """Such as "NNM + median under attack"."""
        return f"{spoken(self.main.rule)} {'under attack' if self.main.attack else 'without an attack'}"

    def experiments(self) -> dict[str, Experiment]:
        """By label; what is the experiment itself once more is left out."""
        others = {label: other for label, other in self.beside(self.main).items() if other != self.main}
        return {self.label: self.main, **others}


def spoken(rule: Rule) -> str:
    """The names of a chain's parts as words."""
    parts = rule.parts if isinstance(rule, Chain) else (rule,)
    words = (re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(part).__name__).split() for part in parts)
    return " + ".join(
        " ".join(word.lower() if word.istitle() and word not in NAMES else word for word in name)
        for name in words
    )
