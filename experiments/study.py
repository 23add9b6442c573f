"""Studies: experiments that differ along named axes, from code or from a TOML file."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedsim.check import Chance, Component, Count, Invalid, Natural, nearest
from fedsim.config import codec
from fedsim.spec import Experiment

Score = Literal["final", "best", "last 5"]
Changes = Mapping[str, str]  # dotted path -> text, as after --set
Axis = Mapping[str, Changes]  # label -> what it changes


@dataclass(frozen=True)
class Tuning(Component):
    """A search over a grid for each cell, on a validation set held out of the training data.

    Every point of `grid` (dotted path -> texts) is run with each of `seeds`; the highest mean accuracy at the end
    wins, or the lowest loss where labels are numbers, among equals the first. Cells that differ in their seed alone
    share one search.

    `rungs`, such as ((100, 5), (500, 1)), is successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): all
    points run to round 100 of the real experiment, its noise and steps those of all rounds; the best 5 go on from
    there to round 500, and the best of these wins. It favours points that are fast early.

    `shared`, such as {"byzantine": "5"}, makes the search at that label of the axis and uses it at all others.
    """

    grid: dict[str, tuple[str, ...]]
    share: Chance = 0.1
    seeds: tuple[Natural, ...] = (0,)
    rungs: tuple[tuple[Count, Count], ...] = ()
    shared: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        ends, keeps = [end for end, _ in self.rungs], [keep for _, keep in self.rungs]
        if (
            ends != sorted(set(ends))
            or keeps != sorted(set(keeps), reverse=True)
            or keeps[-1:] not in ([], [1])
        ):
            raise Invalid(
                f"tuning.rungs = {self.rungs}: allowed are pairs (round, how many go on) whose rounds grow, and of "
                "which ever fewer go on, in the end 1"
            )

    def points(self) -> Iterator[dict[str, str]]:
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


@dataclass(frozen=True)
class Cell:
    """One experiment of a study and its place on each axis."""

    labels: Mapping[str, str]
    experiment: Experiment


@dataclass(frozen=True)
class Failure:
    """A cell that came to nothing, and why."""

    labels: Mapping[str, str]
    reason: str

    def __str__(self) -> str:
        return f"{title(self.labels)}: {self.reason}"


@dataclass(frozen=True)
class Study:
    """The product of the axes around `base`; a point of it is a cell, its changes are made at once.

    reported  what the paper gives: accuracies (in [0, 1]) with the labels that they belong to
    notes     protocol, departures from the paper, and what a reduced setting leaves out; shown in the report
    score     what a report calls a run's accuracy: that of its last evaluation, its best, or the mean of its last five
    """

    base: Experiment
    axes: Mapping[str, Axis] = field(default_factory=dict)
    tuning: Tuning | None = None
    reported: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    score: Score = "final"

    def cells(self) -> tuple[list[Cell], list[Failure]]:
        """All cells, and the points at which no experiment can be; raises `Invalid` for a value that none can have."""
        for axis in self.axes.values():
            for path, text in (change for changes in axis.values() for change in changes.items()):
                if path in (field.name for field in dataclasses.fields(self.base)):
                    codec.parse(type(self.base), path, text)
        cells, refused = [], []
        for point in itertools.product(*(axis.items() for axis in self.axes.values())):
            labels = {name: label for name, (label, _) in zip(self.axes, point, strict=True)}
            try:
                changes = {path: text for _, axis in point for path, text in axis.items()}
                cells.append(Cell(labels, codec.update(self.base, list(changes.items()))))
            except Invalid as error:
                refused.append(Failure(labels, str(error)))
        if not cells:
            raise Invalid(
                f"study: none of its {len(refused)} cells can be; the first says: {refused[0].reason}"
            )
        return cells, refused


def title(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {label}" for name, label in labels.items()) or "the experiment"


def axis(path: str, values: Sequence[Any] | Mapping[str, Any]) -> Axis:
    """An axis along one path, labelled by its values; or from labels, with a value or several changes each."""
    if isinstance(values, Mapping):
        named = {str(label): v if isinstance(v, Mapping) else {path: v} for label, v in values.items()}
    else:
        named = {_text(v): {path: v} for v in values}
    if not named:
        raise Invalid(f"axes.{path}: must have at least one value")
    return {label: {p: _text(v) for p, v in changes.items()} for label, changes in named.items()}


def axes(table: Mapping[str, Sequence[Any] | Mapping[str, Any]]) -> dict[str, Axis]:
    return {path: axis(path, values) for path, values in table.items()}


def seeds(count: int) -> Axis:
    return axis("seed", range(count))


def from_table(base: Experiment, table: Mapping[str, Any]) -> Study:
    """A study from what a TOML file says beside `base` and `set`; raises `Invalid`."""
    known = {"base", "set", "axes", "tuning"}
    for name in table:
        if name not in known:
            raise Invalid(f"study.{name}: a study has no such field; {nearest(name, known)}")
    along = table.get("axes", {})
    if not isinstance(along, Mapping) or not all(isinstance(v, list | Mapping) for v in along.values()):
        raise Invalid("study.axes: must be a table of lists, or of tables of labels")
    tuning = table.get("tuning")
    if tuning is not None:
        if not isinstance(tuning, Mapping) or not isinstance(tuning.get("grid"), Mapping):
            raise Invalid("study.tuning: must be a table that holds a table grid, path = list of values")
        grid = {path: tuple(_text(v) for v in values) for path, values in tuning["grid"].items()}
        rest: dict[str, Any] = {name: _tuples(value) for name, value in tuning.items() if name != "grid"}
        for name in rest:
            if name not in (allowed := [f.name for f in dataclasses.fields(Tuning)]):
                raise Invalid(f"study.tuning.{name}: no such field; {nearest(name, allowed)}")
        tuning = Tuning(grid=grid, **rest)
    return Study(base, axes(along), tuning)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _text(value: Any) -> str:
    """A value as it would stand after --set."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return value if isinstance(value, str) else repr(value)
