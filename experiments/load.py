"""Records as one tidy frame: a row for each evaluated round of each run."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.check import Component, Invalid
from fedsim.config import codec
from fedsim.record import Metrics, Record, read_manifest
from fedsim.spec import Experiment

STUDY = "study.json"  # what a sweep wants: its cells by label and fingerprint, and its command
FAILURE = "failure.txt"  # why a cell came to nothing, in the folder of its record


Skip = Callable[[Invalid], object]


@dataclass(frozen=True)
class Run:
    """What the record of a run holds. A later version may have new fields: the recorded fingerprint counts."""

    record: Record
    experiment: Experiment
    lines: Sequence[Metrics]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises `Invalid` where the record is damaged."""
        manifest = read_manifest(folder) or {}
        record = Record(folder, manifest["fingerprint"])
        method = manifest["experiment"].get("method")
        if isinstance(method, dict) and method.get("name") == "FedAvg":
            method.setdefault("weights", "equal")  # as it was before it could weigh
        try:
            experiment = codec.decode(Experiment, manifest["experiment"], own=True)
        except Invalid as error:
            raise Invalid(f"{folder / 'manifest.json'}: {error}") from None
        return cls(record, experiment, record.metrics())


def load(folder: Path | str) -> pd.DataFrame:
    """The runs recorded in a folder, of a sweep (its cells') or of `fedsim run` (all), finished or not.

    Columns: the labels of a sweep's axes; `experiment`, the fingerprint; every field of the experiment by its dotted
    path, components also whole, as an expression such as Chain(NNM(), Median()); then the metrics of the round.
    Components of one's own are found again: the modules that records name are imported, also from the working
    directory. Raises `Invalid` where the folder holds no records, or a damaged one.
    """
    return framed(Path(folder), recorded(Path(folder)))


def framed(folder: Path, runs: Sequence[Run]) -> pd.DataFrame:
    """The frame of these runs, which lie in a folder."""
    labels = _labels(folder)
    blocks = []
    for run in runs:
        facts, name = flat(run.experiment), run.record.fingerprint
        for named in labels.get(name, [{}]):
            head = {**named, "experiment": name, **facts}
            head |= {axis: label for axis, label in named.items() if not _says(facts.get(axis), label)}
            blocks.append(pd.DataFrame([{**head, **line} for line in run.lines]))
    if not blocks:
        raise Invalid(f"{folder}: holds no records of runs")
    return pd.concat([block for block in blocks if len(block)] or blocks, ignore_index=True)


def recorded(folder: Path, skip: Skip | None = None) -> list[Run]:
    """The runs recorded right in a folder: of a sweep those of its cells, in their order, otherwise all by name.

    What an earlier form of the study has left there stays on the disk, and out of tables and figures. What is wrong
    with a damaged record is given to `skip`, and raised where there is none.
    """
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/manifest.json"))}
    read = []
    for name in [name for name in _labels(folder) if name in found] or found:
        try:
            read.append(Run.read(found[name]))
        except Invalid as error:
            if skip is None:
                raise
            skip(error)
    return read


def study(folder: Path) -> dict[str, Any]:
    """What the sweep in a folder was asked to do; empty where there was none."""
    path = folder / STUDY
    try:
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise Invalid(
            f"{path}: not the description of a sweep ({error}); the sweep writes it again"
        ) from None
    return found


def flat(component: Component, prefix: str = "") -> dict[str, Any]:
    """Every field of a component by its dotted path; numbers as they are, other values as text."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(component):
        value, path = getattr(component, field.name), f"{prefix}{field.name}"
        found[path] = value if isinstance(value, int | float | str) or value is None else expression(value)
        if isinstance(value, Component):
            found |= flat(value, f"{path}.")
    return found


def expression(value: Any) -> str:
    """A value as it stands on a command line; of a component, the fields that are not at their defaults."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(expression, value))}]"
    if not isinstance(value, Component):
        return str(value)
    arguments: list[str] = []
    for name, parameter in inspect.signature(type(value)).parameters.items():
        held = getattr(value, name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            arguments += map(expression, held)
        elif held != parameter.default:
            arguments.append(f"{name}={expression(held)}")
    return type(value).__name__ + (f"({', '.join(arguments)})" if arguments else "")


def _says(value: Any, label: str) -> bool:
    """Whether a label is the number that the field of its axis holds."""
    try:
        return isinstance(value, int | float) and float(label) == value
    except ValueError:
        return False


def _labels(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The labels of a sweep's cells by fingerprint; one experiment may stand in several cells."""
    found: dict[str, list[dict[str, str]]] = {}
    for cell in study(folder).get("cells", []):
        found.setdefault(cell["experiment"], []).append(cell["labels"])
    return found
