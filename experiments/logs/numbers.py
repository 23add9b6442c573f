"""What a tool that draws curves takes of a line of metrics, and of a definition."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fedsim.check import Invalid
from fedsim.record import Metrics
from fedsim.spec import Experiment


def numbers(line: Metrics) -> dict[str, float]:
    """The numbers of a line beside its round."""
    return {
        name: float(value)
        for name, value in line.items()
        if name != "round" and isinstance(value, int | float)
    }


def settings(experiment: Experiment) -> dict[str, Any]:
    """Every field of a definition by its dotted path, and its fingerprint."""
    from fedsim.experiments.load import flat  # with pandas, which is slow to import

    return {**flat(experiment), "fingerprint": experiment.fingerprint}


def asked_for(module: str, extra: str) -> Any:
    """A package that is an extra; raises `Invalid` where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise Invalid(f"{extra}: not installed; pip install 'fedsim-robust[{extra}]'") from None
