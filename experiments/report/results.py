"""The records of a folder as a report needs them: axes, final values, means over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.check import Invalid
from fedsim.experiments.load import Run, framed, recorded, study
from fedsim.spec import Experiment

# What runs of one folder may differ in, where no sweep says along which axes; parts of a field follow it.
FIELDS = tuple(field.name for field in fields(Experiment) if field.name != "seed")
LINES = ("method", "rule", "attack")  # the axis that a figure draws as lines, the first that varies
MANY = 8  # more lines than that go into figures of their own


@dataclass(frozen=True)
class Results:
    """Runs with their axes, `seed` not among them: figures and tables are over seeds.

    damaged: what is wrong with the records that are left out.
    """

    folder: Path
    runs: Sequence[Run]
    frame: pd.DataFrame
    axes: tuple[str, ...]
    study: dict[str, Any]
    damaged: Sequence[Invalid] = ()

    @classmethod
    def of(cls, folder: Path) -> Results:
        """Raises `Invalid` where the folder holds no records that can be read."""
        damaged: list[Invalid] = []
        found, about = recorded(folder, damaged.append), study(folder)
        if damaged and not found:
            raise damaged[0]
        frame = framed(folder, found)
        if "accuracy" not in frame:  # labels are numbers
            frame["accuracy"] = nan
        candidates = [name for name in about.get("axes", FIELDS) if name in frame and name != "seed"]
        axes = tuple(name for name in candidates if frame[name].nunique(dropna=False) > 1)
        for axis in axes:
            if frame[axis].isna().any():
                frame[axis] = frame[axis].astype(object).fillna("none")
        return cls(folder, found, frame, axes, about, damaged)

    @property
    def command(self) -> str:
        """What makes the records again; of single runs that is in each manifest."""
        return str(self.study.get("command", ""))

    @cached_property
    def final(self) -> pd.DataFrame:
        """The last line of each finished run, of each where none is yet, its accuracy scored as the study says."""
        done = [run.record.fingerprint for run in self.runs if run.record.finished]
        frame = self.frame[self.frame["experiment"].isin(done)] if done else self.frame
        runs = frame.groupby(["experiment", *self.axes], sort=False)
        last = runs.tail(1)
        match self.study.get("score", "final"):
            case "best":
                return last.assign(accuracy=runs["accuracy"].transform("max"))
            case "last 5":
                return last.assign(accuracy=runs["accuracy"].transform(lambda values: values.tail(5).mean()))
        return last

    @cached_property
    def of_classes(self) -> bool:
        """Whether runs have an accuracy; where labels are numbers, the loss is what they came to."""
        return bool(self.frame["accuracy"].notna().any())

    @property
    def metric(self) -> str:
        return "accuracy" if self.of_classes else "loss"

    @cached_property
    def line_axis(self) -> str | None:
        """The axis whose values are the lines of a figure."""
        ranked = [a for want in LINES for a in self.axes if a.partition(".")[0] == want]
        return next(iter([*ranked, *self.axes]), None)

    def axis(self, *wanted: str) -> str | None:
        """The first axis that is one of the wanted fields or part of one."""
        return next((a for want in wanted for a in self.axes if a.partition(".")[0] == want), None)

    @property
    def scored(self) -> str:
        """Which accuracy of a run counts."""
        which = {"best": "the best of a run", "last 5": "the mean of a run's last five evaluations"}
        return which.get(self.study.get("score", ""), "that at the end of a run")

    def panels(
        self, without: Sequence[str | None], frame: pd.DataFrame | None = None
    ) -> Iterator[tuple[str, pd.DataFrame]]:
        """The frame, or another of its form, cut along all axes but these; with the name of each part."""
        frame = self.frame if frame is None else frame
        rest = [axis for axis in self.axes if axis not in without]
        if not rest:
            yield "", frame
            return
        for values, part in frame.groupby(rest, sort=False):
            yield ", ".join(f"{axis} {value}" for axis, value in zip(rest, values, strict=True)), part

    def lines(self, part: pd.DataFrame, axis: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
        """A part cut along one axis."""
        if axis is None:
            yield "all runs", part
        else:
            for value, runs in part.groupby(axis, sort=False):
                yield (f"{axis} {value}" if isinstance(same(value), float) else str(value)), runs

    def table(self) -> pd.DataFrame:
        """A row a cell: the axes, accuracy in % (mean and sample standard deviation over seeds), what was spent.

        Where labels are numbers the loss in place of accuracy.
        """
        keys = list(self.axes)  # without any, the runs are one experiment but for their seed
        groups = self.final.groupby(keys or (lambda row: 0), sort=False, dropna=False)
        metric, scale = self.metric, 100 if self.of_classes else 1
        mean, std, seeds = (
            scale * groups[metric].mean(),
            scale * groups[metric].std(),
            groups["seed"].nunique(),
        )
        table = pd.DataFrame({metric: mean, "std": std, "seeds": seeds})
        for name in ("epsilon", "privacy.epsilon", "loss", "seconds"):
            if name in table:
                continue
            if name in self.final and name not in keys and self.final[name].notna().any():
                title = {"epsilon": "accounted epsilon", "privacy.epsilon": "asked epsilon"}.get(name, name)
                table[title] = groups[name].mean().astype(float)
        for path in self.tuned:
            if path in self.final and path not in keys:
                table[path] = groups[path].first()
        if self.study.get("reported") and self.of_classes:
            table["reported"] = [100 * self._reported(runs) for _, runs in groups]
            table["difference"] = table["accuracy"] - table["reported"]
        return table.reset_index() if keys else table

    @property
    def tuned(self) -> list[str]:
        """Paths that a search chose, from cell to cell."""
        return list(self.study.get("tuned", []))

    def _reported(self, runs: pd.DataFrame) -> float:
        """The paper's accuracy for these runs; nan unless all labels of one of its lines are theirs."""
        labels = {axis: set(map(same, runs[axis])) for axis in self.study["axes"] if axis in runs}
        given = {
            line["accuracy"]
            for line in self.study["reported"]
            if all(labels.get(axis) == {same(label)} for axis, label in line.items() if axis != "accuracy")
        }
        return given.pop() if len(given) == 1 else nan


def same(label: Any) -> Any:
    """A label as it is compared: 1, 1.0 and "1" are the same."""
    try:
        return float(label)
    except (TypeError, ValueError):
        return str(label)
