"""Where client steps run: "loop" is the specification, "vector" the default, "grid" and "ray" go through Flower."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fedsim.asynchronous import Asynchronous
from fedsim.attempts import Attempts
from fedsim.check import Invalid, nearest
from fedsim.federation import Federation
from fedsim.round import Messages
from fedsim.spec import Experiment
from fedsim.types import Round, State

APART = ("loop", "vector", "grid")  # engines of asynchronous methods
EXAMPLE = "clock = Clock(gradient=Ladder())"
ENGINES = {name: f"fedsim.engines.{name}" for name in ("loop", "vector", "grid", "ray")}
T = TypeVar("T")


class Engine(Protocol):
    def __call__(
        self, fed: Federation, states: State, told: State, round: Round, ids: NDArray[np.int64]
    ) -> tuple[State, Messages]:
        """The step of clients `ids` at what the server broadcasts, by name; or each at a row of that, in its attempt.

        `states` holds a row for each of these, (k, ...), and is not written to; returned are the states after the step
        and the messages, all in the order of `ids`. Where it is enough (`fed.mean_only`) these may be their mean alone.
        """
        ...


class Ask(Protocol):
    """A round put to the clients, of whom some may not answer. `metrics` is what there is to say of the last round."""

    metrics: dict[str, Any]

    def first(self, fed: Federation) -> State:
        """What is kept here of a client that has not answered yet."""
        ...

    def attempts(self, fed: Federation) -> Attempts:
        """In an asynchronous run: what the clients are at work on, before they begin."""
        ...

    def __call__(
        self, fed: Federation, states: State, told: State, round: Round, ids: NDArray[np.int64]
    ) -> tuple[State, Messages, NDArray[np.int64]]:
        """As an engine, of the clients whose messages came back; and their ids, in order."""
        ...


class Everyone:
    """An engine asked: every client answers."""

    def __init__(self, rows: Engine) -> None:
        self.rows, self.metrics = rows, dict[str, Any]()

    def first(self, fed: Federation) -> State:
        return fed.client_state()

    def attempts(self, fed: Federation) -> Attempts:
        return Attempts.none(fed)

    def __call__(
        self, fed: Federation, states: State, told: State, round: Round, ids: NDArray[np.int64]
    ) -> tuple[State, Messages, NDArray[np.int64]]:
        if not len(ids):  # a cohort of Byzantine clients who compute nothing
            return states, Messages(fed.x0.new_empty(0, fed.width)), ids
        return *self.rows(fed, states, told, round, ids), ids


def get(name: str) -> Engine:
    return cast(Engine, find(name).rows)


def hosted(name: str, fed: Federation, body: Callable[[Ask], T]) -> T:
    """`body` with the clients of engine `name` to ask; an engine may bring up what it needs around it."""
    module = find(name)
    return cast(T, module.host(fed, body)) if hasattr(module, "host") else body(Everyone(module.rows))


def require(name: str, experiment: Experiment) -> None:
    """Raise `Invalid` where an engine is unknown, or does not run such an experiment."""
    find(name)
    if not isinstance(experiment.method, Asynchronous):
        return
    method = type(experiment.method).__name__
    if name not in APART:
        raise Invalid(
            f"engine = {name!r} with method = {method}: has a task for each single gradient, which takes longer than "
            f"that; asynchronous methods run on {', '.join(APART)}"
        )
    if experiment.clock is None:
        raise Invalid(
            f"method = {method}: acts on messages as they come, so it needs a clock, as in {EXAMPLE}; without one it "
            "runs on devices"
        )


def find(name: str) -> Any:
    """The engine's module; raises `Invalid` with the nearest right name."""
    if name not in ENGINES:
        raise Invalid(f"engine = {name!r}: unknown; {nearest(name, ENGINES)}")
    return import_module(ENGINES[name])
