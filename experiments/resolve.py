"""From what a command line names to an experiment or a study: a recipe, a TOML file, or a function of one's own."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsim.check import Invalid, nearest
from fedsim.config import catalog, codec
from fedsim.config.codec import read_toml
from fedsim.experiments import recipes
from fedsim.experiments.comparison import Comparison
from fedsim.experiments.study import Study, axis, from_table
from fedsim.spec import Experiment


def resolve(what: str, changes: Sequence[str] = (), seed: int | None = None) -> Comparison:
    """The experiment (with what is shown beside it) after the changes `path=value`; raises `Invalid`."""
    found = _find(what)
    if isinstance(found, Study):
        raise Invalid(f"experiment = {what!r}: is a study of many experiments; fedsim sweep {what} runs it")
    comparison = found if isinstance(found, Comparison) else Comparison(found)
    main = change(comparison.main, [*changes, *([f"seed={seed}"] if seed is not None else [])])
    return dataclasses.replace(comparison, main=main)


def change(experiment: Experiment, changes: Sequence[str]) -> Experiment:
    """The experiment with fields set from texts such as "method.tau=0.1", all at once."""
    return codec.update(experiment, [_pair(text) for text in changes])


def _pair(text: str) -> tuple[str, str]:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise Invalid(f"{text!r}: allowed is PATH=VALUE, as in method.tau=0.1")
    return path.strip(), value.strip()


def resolve_study(what: str, changes: Sequence[str], over: Sequence[str], reduced: bool) -> Study:
    """The study after the changes `path=value` of its base, with further axes `path=value;value`; raises `Invalid`."""
    found = _find(what, reduced)
    if not isinstance(found, Study):
        found = Study(found.main if isinstance(found, Comparison) else found)
    further = {path: axis(path, [v.strip() for v in values.split(";")]) for path, values in map(_pair, over)}
    return dataclasses.replace(found, base=change(found.base, changes), axes={**found.axes, **further})


def _find(what: str, reduced: bool = False) -> Experiment | Comparison | Study:
    if what.endswith(".toml"):
        table = read_toml(Path(what))
        if "base" not in table:
            return codec.decode(Experiment, table, own=True)
        base = resolve(str(table.pop("base")), table.pop("set", ())).main
        return from_table(base, table)
    if ":" in what:
        found = catalog.imported(what, "experiment")
        if not callable(found):
            raise Invalid(f"experiment = {what!r}: must be a function that returns an Experiment")
        return _call(found, what, reduced)
    if what not in recipes.__all__:
        raise Invalid(f"experiment = {what!r}: no such recipe; {nearest(what, recipes.__all__)}")
    return _call(getattr(recipes, what), what, reduced)


def _call(function: Callable[..., Any], what: str, reduced: bool) -> Experiment | Comparison | Study:
    parameters = inspect.signature(function).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty]
    if needed:
        raise Invalid(f"experiment = {what!r}: must be callable without arguments, it asks for {needed[0]}")
    if reduced and "reduced" not in parameters:
        raise Invalid(f"reduced: {what} states no reduced setting")
    found = function(reduced=True) if reduced else function()
    if not isinstance(found, Experiment | Comparison | Study):
        raise Invalid(
            f"experiment = {what!r}: must return an Experiment or a Study, got {type(found).__name__}"
        )
    return found
