"""What is called with each new line of a run's metrics, and may stop the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import inf, isfinite

from fedsim.check import Invalid
from fedsim.record import Metrics
from fedsim.spec import Experiment

RAW = ("deviation", "honest_norm", "byzantine_weight", "clipped")  # worked out from messages as they are


class Callback:
    """Called after each evaluation with its line of metrics; a true answer stops the run there.

    A resumed run calls it first with every line that is there already: a callback that depends on lines alone stops
    a resumed run where it would have stopped one that was never interrupted. A function of a line is a callback, too:

    run(experiment, callbacks=[EarlyStopping(patience=3), lambda line: line["accuracy"] > 0.95])
    """

    def begin(self, experiment: Experiment) -> None:
        """Before the first round."""

    def __call__(self, line: Metrics) -> object:
        """After an evaluation; here nothing."""

    def end(self) -> None:
        """When the run is over, also where it was interrupted."""


class EarlyStopping(Callback):
    """Stop once `on` has not become better, by more than `least`, in `patience` evaluations one after the other.

    on     a number of each line: lower is better of "loss" and of "rmse", higher of any other, unless `lower` says
    What is evaluated is the data set's test part: Holdout(data) puts examples of the training part there, so that
    nothing is chosen on those that the result is told of. The model stays that of the round in which the run stopped.
    """

    def __init__(
        self, on: str = "loss", patience: int = 3, least: float = 0.0, lower: bool | None = None
    ) -> None:
        if patience < 1:
            raise Invalid(f"EarlyStopping.patience = {patience}: must be 1 or more evaluations")
        if not 0 <= least < inf:
            raise Invalid(f"EarlyStopping.least = {least}: must be 0 or more, and finite")
        self.on, self.patience, self.least = on, patience, least
        self.sign = -1.0 if (on in ("loss", "rmse") if lower is None else lower) else 1.0
        self.best, self.waited = -inf, 0

    def __repr__(self) -> str:
        return f"EarlyStopping(on={self.on!r}, patience={self.patience})"

    def begin(self, experiment: Experiment) -> None:
        """Raises `Invalid` where the time of stopping would tell of private data."""
        if experiment.privacy is not None and self.on in RAW:
            raise Invalid(
                f"EarlyStopping.on = {self.on!r}: is worked out from messages as they are, which no ledger accounts "
                "for; allowed in a private run is what the test examples tell, such as 'loss'"
            )
        self.best, self.waited = -inf, 0

    def __call__(self, line: Metrics) -> bool:
        value = line.get(self.on, "")
        if not isinstance(value, int | float | None):
            numbers = ", ".join(name for name, held in line.items() if isinstance(held, int | float))
            raise Invalid(f"EarlyStopping.on = {self.on!r}: no number of the record; it has {numbers}")
        better = value is not None and isfinite(value) and self.sign * value > self.best + self.least
        self.waited = 0 if better else self.waited + 1
        if better and value is not None:
            self.best = self.sign * value
        return self.waited >= self.patience


class _Function(Callback):
    def __init__(self, function: Callable[[Metrics], object]) -> None:
        self.function = function

    def __repr__(self) -> str:
        return str(getattr(self.function, "__name__", repr(self.function)))

    def __call__(self, line: Metrics) -> object:
        return self.function(line)


class Callbacks:
    """Those of one run."""

    def __init__(self, them: Iterable[Callback | Callable[[Metrics], object]] = ()) -> None:
        self.them = [each if isinstance(each, Callback) else _Function(each) for each in them]
        self.stopped: list[str] = []  # the names of those who said so at the last line

    @contextmanager
    def during(self, experiment: Experiment, lines: Sequence[Metrics]) -> Iterator[None]:
        """While a run goes on from these lines."""
        with ExitStack() as until_done:
            for callback in self.them:
                callback.begin(experiment)
                until_done.callback(callback.end)
            for line in lines:
                self.tell(line)
            yield

    def tell(self, line: Metrics) -> None:
        """One more line, a copy for each."""
        self.stopped = [repr(callback) for callback in self.them if callback(dict(line))]
