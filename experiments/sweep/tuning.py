"""The search for hyper-parameters: trials on a validation set, and what they come to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.check import Invalid, nearest
from fedsim.config import codec
from fedsim.datasets.load import Holdout
from fedsim.experiments.study import Cell, Failure, Tuning
from fedsim.spec import Experiment

Point = Mapping[str, str]
Scores = Mapping[
    str, float | None
]  # fingerprint of a trial -> what it came to as far as it was to run, more is better


@dataclass(frozen=True)
class Search:
    """One search: the cell that it is made at, those that it serves, the points that are left, and what was tried.

    Each point of the grid has a trial for each seed.
    """

    at: Cell
    cells: Sequence[Cell]
    points: Sequence[tuple[Point, Sequence[Experiment]]]
    tried: Sequence[Mapping[str, Any]] = ()

    @property
    def trials(self) -> list[Experiment]:
        return [trial for _, trials in self.points for trial in trials]

    def halved(self, scores: Scores, until: int | None, keep: int) -> Search:
        """The search with the `keep` best points at round `until`; a point is out if one of its trials failed."""
        means: list[float | None] = []
        for _, trials in self.points:
            known = [s for trial in trials if (s := scores[trial.fingerprint]) is not None]
            means.append(math.fsum(known) / len(known) if len(known) == len(trials) else None)
        ranked = [(mean, each) for mean, each in zip(means, self.points, strict=True) if mean is not None]
        ranked.sort(key=lambda pair: -pair[0])  # among equals the first
        rows = [
            {"point": dict(point), "round": until or trials[0].rounds, "score": mean}
            for mean, (point, trials) in zip(means, self.points, strict=True)
        ]
        best = [each for _, each in ranked[:keep]]
        return dataclasses.replace(self, points=best, tried=(*self.tried, *rows))

    @property
    def chosen(self) -> Point | None:
        """The point that is left; None where no trial came to its end."""
        return self.points[0][0] if self.points else None

    def report(self) -> dict[str, Any]:
        return {
            "at": dict(self.at.labels),
            "cells": [dict(cell.labels) for cell in self.cells],
            "chosen": None if self.chosen is None else dict(self.chosen),
            "tried": list(self.tried),
        }


def searches(cells: Sequence[Cell], tuning: Tuning) -> tuple[list[Search], list[Failure]]:
    """One search for all cells that differ in their seed alone or along shared axes; cells that no search can serve."""
    places = {_place(cell): cell for cell in cells}
    for axis, label in tuning.shared.items():
        if axis not in cells[0].labels:
            raise Invalid(
                f"tuning.shared.{axis}: the study has no such axis; {nearest(axis, cells[0].labels)}"
            )
        if label not in (known := {cell.labels[axis] for cell in cells}):
            raise Invalid(f"tuning.shared.{axis} = {label!r}: no cell is there; {nearest(label, known)}")
    groups: dict[str, tuple[Cell, list[Cell]]] = {}
    refused = []
    for cell in cells:
        model = places.get(_place(cell, tuning.shared))
        if model is None:
            refused.append(Failure(cell.labels, f"tuning: there is no cell to share with at {tuning.shared}"))
        else:
            seedless = dataclasses.replace(model.experiment, seed=0).fingerprint
            groups.setdefault(seedless, (model, []))[1].append(cell)
    found = []
    for model, members in groups.values():
        points, reason = [], ""
        for point in tuning.points():
            try:
                points.append((point, _trials(model.experiment, point, tuning)))
            except Invalid as error:
                reason = str(error)
        if points:
            found.append(Search(model, members, points))
        else:
            refused += [Failure(cell.labels, f"tuning: {reason}") for cell in members]
    return found, refused


def _trials(experiment: Experiment, point: Point, tuning: Tuning) -> list[Experiment]:
    """The experiment at a point of the grid, on held-out data, once for each seed; evaluated at rungs and its end."""
    chosen = codec.update(experiment, list(point.items()))
    every = math.gcd(*(end for end, _ in tuning.rungs)) or chosen.rounds
    task = dataclasses.replace(chosen.task, data=Holdout(chosen.task.data, tuning.share))
    return [
        dataclasses.replace(chosen, task=task, evaluate_every=min(every, chosen.rounds), seed=seed)
        for seed in tuning.seeds
    ]


def tuned(cells: Sequence[Cell], found: Sequence[Search]) -> tuple[list[Cell], list[Failure]]:
    """The cells at the points that were chosen for them, on all the training data; and those without one."""
    points = {_place(cell): search.chosen for search in found for cell in search.cells}
    chosen, failed = [], []
    for cell in cells:
        if _place(cell) in points:
            try:
                chosen.append(Cell(cell.labels, _at(cell.experiment, points[_place(cell)])))
            except Invalid as error:
                failed.append(Failure(cell.labels, f"tuning: {error}"))
    return chosen, failed


def _at(experiment: Experiment, point: Point | None) -> Experiment:
    if point is None:
        raise Invalid("no trial of this cell came to its end")
    return codec.update(experiment, list(point.items()))


def _place(cell: Cell, instead: Point | None = None) -> tuple[str, ...]:
    """The labels of a cell, or of the one that has others instead."""
    return tuple({**cell.labels, **(instead or {})}.values())
