"""Components by name: a component's short name is its name in the `__all__` of its package."""

from __future__ import annotations

import inspect
import sys
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from fedsim.check import Component, Invalid, nearest

Allowed = bool | frozenset[str]  # a user's own components: all, none, or these alone

# kind -> (module, base class as "module:name"); nothing is imported before it is asked for.
KINDS = {
    "rules": ("fedsim.strategies", "fedsim.types:Rule"),
    "mixers": ("fedsim.strategies", "fedsim.types:Mixer"),
    "methods": ("fedsim.strategies", "fedsim.method:Method"),
    "attacks": ("fedsim.attacks", "fedsim.types:Attack"),
    "splits": ("fedsim.datasets.split", "fedsim.types:Split"),
    "tokenizers": ("fedsim.datasets.text", "fedsim.datasets.text:Tokenizer"),
    "datasets": ("fedsim.datasets.load", "fedsim.types:Data"),
    "models": ("fedsim.models", "fedsim.types:Model"),
    "batches": ("fedsim.batches", "fedsim.batches:Batches"),
    "privacy": ("fedsim.privacy", "fedsim.privacy.base:Privacy"),
    "clips": ("fedsim.privacy", "fedsim.privacy:Quantile"),
    "compressors": ("fedsim.messages", "fedsim.messages.compressor:Compressor"),
    "coders": ("fedsim.messages", "fedsim.messages.coder:Coder"),
    "estimators": ("fedsim.strategies.methods.estimators", "fedsim.strategies.methods.estimators:Estimator"),
    "decays": ("fedsim.strategies.methods.estimators", "fedsim.strategies.methods.estimators:Decay"),
    "moves": ("fedsim.strategies.methods.ef21", "fedsim.strategies.methods.ef21:Move"),
    "oracles": ("fedsim.strategies.oracles", "fedsim.strategies.oracles.base:Oracle"),
    "polars": ("fedsim.strategies.oracles", "fedsim.strategies.oracles.polar:Polar"),
    "norms": ("fedsim.strategies.oracles", "fedsim.strategies.oracles.roles:Norms"),
    "schedules": ("fedsim.schedule", "fedsim.schedule:Schedule"),
    "metrics": ("fedsim.metrics", "fedsim.metrics:Metric"),
    "clocks": ("fedsim.clock", "fedsim.clock:Timing"),
    "paces": ("fedsim.clock", "fedsim.clock:Pace"),
    "networks": ("fedsim.clock", "fedsim.clock:Network"),
    "presences": ("fedsim.clock", "fedsim.clock:Presence"),
    "losses": ("fedsim.losses", "fedsim.types:Loss"),
    "tasks": ("fedsim.task", "fedsim.task:Task"),
}


def _load(place: str) -> type[Component]:
    module, name = place.split(":")
    found: type[Component] = getattr(import_module(module), name)
    return found


@cache
def names(kind: str) -> dict[str, type[Component]]:
    """The components of a kind by short name, sorted."""
    if kind not in KINDS:
        raise Invalid(f"kind = {kind!r}: unknown; {nearest(kind, KINDS)}")
    home, base = KINDS[kind]
    module, wanted = import_module(home), _load(base)
    members = {name: getattr(module, name) for name in sorted(module.__all__)}
    return {name: c for name, c in members.items() if inspect.isclass(c) and issubclass(c, wanted)}


@cache
def everything() -> dict[str, type[Component]]:
    return {name: component for kind in KINDS for name, component in names(kind).items()}


def fitting(bases: tuple[type, ...]) -> dict[str, type[Component]]:
    """The components of these types, by short name."""
    return {name: component for name, component in everything().items() if issubclass(component, bases)}


def find(name: str, field: str, bases: tuple[type, ...], own: Allowed = False) -> type[Component]:
    """The component called `name`, in any case, that field `field` takes; raises `Invalid` with the nearest name.

    With `own` also a user's own as module:name, all of them or those that it names: their modules are imported.
    """
    if ":" in name:
        if own is not True and (own is False or name not in own):
            raise Invalid(f"{field} = {name!r}: unknown; allowed here are the components of fedsim itself")
        cls: type[Component] = component(imported(name, field), bases)
        if not (inspect.isclass(cls) and issubclass(cls, bases)):
            ready = isinstance(cls, Component)
            raise Invalid(
                f"{field} = {name!r}: must be a {' or '.join(base.__name__ for base in bases)}"
                f"{', by its class: one that is ready-made is given from Python' if ready else ''}"
            )
        return cls
    known = fitting(bases)
    by_lower = {each.lower(): c for each, c in known.items()}
    if name.lower() not in by_lower:
        raise Invalid(f"{field} = {name!r}: unknown; {nearest(name, known)}")
    return by_lower[name.lower()]


def component(found: Any, bases: tuple[type, ...]) -> Any:
    """What was found; a function as the component that a kind's package makes of it (`own`)."""
    if inspect.isfunction(found) or (inspect.isclass(found) and not issubclass(found, Component)):
        for home, base in KINDS.values():
            if _load(base) in bases and hasattr(import_module(home), "own"):
                return import_module(home).own(found) if _fits(found, home) else found
    return found


def _fits(found: Any, home: str) -> bool:
    """Whether a package makes a component of this: of functions all that do, of classes that of models alone."""
    from torch import nn

    return inspect.isfunction(found) or (home == "fedsim.models" and issubclass(found, nn.Module))


def imported(place: str, field: str) -> Any:
    """What stands at module:name, also in the working directory; raises `Invalid`."""
    module, _, name = place.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return attrgetter(name)(import_module(module))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise Invalid(f"{field} = {place!r}: cannot be imported ({error})") from None
    finally:
        sys.path.remove(here)


def place(cls: type) -> str:
    """The name under which a component is saved: its short name, or module:name where it is a user's own."""
    return cls.__name__ if everything().get(cls.__name__) is cls else f"{cls.__module__}:{cls.__qualname__}"
