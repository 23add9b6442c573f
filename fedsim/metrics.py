"""What a model is worth on the test examples, beside its loss and accuracy: one number, or a list of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import isfunction
from math import log, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.check import Component, Invalid
from fedsim.layout import unflatten
from fedsim.types import Examples, forward

__all__ = [
    "RMSE",
    "Accuracy",
    "BitsPerToken",
    "ByClient",
    "ByOwner",
    "Confusion",
    "GradientNorm",
    "MacroF1",
    "Recall",
]

PIECE = 2000  # examples at a time
LISTED = 50  # clients whose values are recorded one by one
TAKEN = {
    "round",
    "accuracy",
    "loss",
    "seconds",
    "simulated_seconds",
    "arrivals",
    "dropped",
    "epsilon",
    "deviation",
    "honest_norm",
    "byzantine_weight",
    "weights",
    "clipped",
    "uplink_bits",
    "downlink_bits",
    "w_loss",
    "w_accuracy",
    "diverged",
    "backdoor_success",
    "personal_accuracy",
    "personal_accuracy_worst",
    "personal_loss",
    "personal_loss_worst",
}

Value = float | list[Any]


@dataclass(frozen=True)
class About:
    """What is known of N test examples beside their labels.

    owners   (N,), whose each is
    clients  (N,), the honest client that holds its owner's training examples, -1 where none does; None where an owner's
             examples were dealt to several
    shares   (h, C), of each class among the training examples of each honest client
    """

    owners: Tensor | None = None
    clients: Tensor | None = None
    shares: Tensor | None = None


class Metric(Component):
    """What a model is worth, by name; one's own is a function, or an `OfExamples`."""

    @property
    def name(self) -> str:
        """Under which it is in the record."""
        return type(self).__name__


class OfOutputs(Metric):
    """Of outputs (N, ...) and labels y (N, ...) of all test examples, and of what is known about these: some values."""

    @abstractmethod
    def whole(self, outputs: Tensor, y: Tensor, about: About) -> dict[str, Value]: ...


class OfExamples(OfOutputs):
    """A value of outputs (N, ...) and labels y (N, ...), of all test examples or of a part of them.

    averages  it is a mean over examples
    """

    averages: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, outputs: Tensor, y: Tensor) -> Value: ...

    def whole(self, outputs: Tensor, y: Tensor, about: About) -> dict[str, Value]:
        return {self.name: self(outputs, y)}


@dataclass(frozen=True)
class Confusion(OfExamples):
    """How many examples of class i (row) are told to be of class j (column)."""

    @property
    def name(self) -> str:
        return "confusion"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        told: list[Any] = _confusion(self, outputs, y).tolist()
        return told


@dataclass(frozen=True)
class Recall(OfExamples):
    """Of each class the share that is told right, accuracy by class; 0 where the test set has none of it."""

    @property
    def name(self) -> str:
        return "recall"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        table = _confusion(self, outputs, y).double()
        shares: list[Any] = (table.diag() / table.sum(1).clamp_min(1)).tolist()
        return shares


@dataclass(frozen=True)
class MacroF1(OfExamples):
    """The plain mean over classes of 2 TP / (2 TP + FP + FN); 0 for a class that is neither there nor told."""

    @property
    def name(self) -> str:
        return "macro_f1"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        table = _confusion(self, outputs, y).double()
        both = table.sum(0) + table.sum(1)
        return float((2 * table.diag() / both.clamp_min(1)).mean())


@dataclass(frozen=True)
class RMSE(OfExamples):
    """The square root of the mean squared error, of labels that are numbers."""

    @property
    def name(self) -> str:
        return "rmse"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        if outputs.numel() != y.numel():
            raise Invalid(
                f"RMSE: outputs {tuple(outputs.shape)} for labels {tuple(y.shape)}; must be as many"
            )
        return sqrt(float((outputs.reshape(y.shape).double() - y.double()).square().mean()))


@dataclass(frozen=True)
class BitsPerToken(OfExamples):
    """The mean over tokens of -log2 softmax(outputs)[y]: bits per character where tokens are characters."""

    @property
    def name(self) -> str:
        return "bits_per_token"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        return float(F.cross_entropy(outputs.flatten(0, -2), y.flatten())) / log(2)


@dataclass(frozen=True)
class Accuracy(OfExamples):
    """The share of labels that are told right."""

    averages: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "accuracy"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        return float((outputs.argmax(-1) == y).double().mean())


@dataclass(frozen=True)
class Parted(OfOutputs):
    """A metric of parts of the test examples: its mean over parts, worst, standard deviation and 10th percentile.

    worst is the least, or the most where `lower` is better (then the 90th percentile).
    """

    of: OfExamples = Accuracy()
    lower: bool = False

    def _each(self, outputs: Tensor, y: Tensor, parts: Tensor, which: Tensor) -> Tensor:
        """The metric (k,), float64, of the examples of each part of k."""
        found = [self.of(outputs[parts == one], y[parts == one]) for one in which]
        if any(isinstance(value, list) for value in found):
            raise Invalid(
                f"{type(self).__name__}.of = {type(self.of).__name__}: gives lists; must be a metric of one number"
            )
        return torch.tensor(found, dtype=torch.float64)

    def _summary(self, values: Tensor, whose: str) -> dict[str, Value]:
        name, tenth = f"{self.of.name}_{whose}", 0.9 if self.lower else 0.1
        return {
            f"{name}_mean": float(values.mean()),
            f"{name}_worst": float(values.max() if self.lower else values.min()),
            f"{name}_spread": float(values.std(correction=0)),
            f"{name}_p{round(100 * tenth)}": float(values.quantile(tenth)),
        }


@dataclass(frozen=True)
class ByOwner(Parted):
    """A metric by owner of the test examples: its mean over owners, worst, standard deviation and 10th percentile.

    ByOwner(); worst is the least, or the most where `lower` is better (then the 90th percentile). Raises `Invalid`
    where the test examples have no owners.
    """

    def whole(self, outputs: Tensor, y: Tensor, about: About) -> dict[str, Value]:
        if about.owners is None:
            raise Invalid(
                "metrics: ByOwner needs a data set whose test examples have owners, by its field `owner`"
            )
        return self._summary(self._each(outputs, y, about.owners, about.owners.unique()), "owners")


@dataclass(frozen=True)
class ByClient(Parted):
    """A metric by honest client: its mean over clients, worst, standard deviation and 10th percentile.

    A client's test examples are those of the owners whose training examples it holds, where each owner's lie with one
    client, as `Natural` deals them. Otherwise they are all, and those of class c weigh together what c is of the
    client's training examples: sum_c share_c * metric(test examples of class c), for metrics that are means.
    Of up to 50 clients each one's value is recorded, too. Raises `Invalid` where there are neither owners nor classes.
    """

    def whole(self, outputs: Tensor, y: Tensor, about: About) -> dict[str, Value]:
        if about.clients is not None and (about.clients >= 0).any():
            who = about.clients.unique()
            values = self._each(outputs, y, about.clients, who[who >= 0])
        else:
            values = self._weighed(outputs, y, about.shares)
        found = self._summary(values, "clients")
        if len(values) <= LISTED:
            found[f"{self.of.name}_clients"] = [round(value, 6) for value in values.tolist()]
        return found

    def _weighed(self, outputs: Tensor, y: Tensor, shares: Tensor | None) -> Tensor:
        """The values (h,) from those of the classes; clients none of whose classes are tested are left out."""
        if shares is None or not self.of.averages:
            why = "one of Accuracy" if shares is not None else "examples with owners, or of one class each"
            raise Invalid(f"metrics: ByClient({type(self.of).__name__}()) on this data set needs {why}")
        which = y.unique()
        own = shares[:, which]
        own = own[own.sum(1) > 0]
        return (own / own.sum(1, keepdim=True)) @ self._each(outputs, y, y, which)


@dataclass(frozen=True)
class GradientNorm(Metric):
    """||grad f(x)||^2, f = (1/h) sum_i f_i the mean over h honest clients, f_i the mean loss of i's training examples.

    In the record as `gradient_norm`, worked out by `fedsim.stationary`: the gradient of all training examples each
    time, so evaluate seldom.
    """

    @property
    def name(self) -> str:
        return "gradient_norm"


class Own(OfExamples):
    """A user's function metric(outputs, y) -> float, known by the place where it stands."""

    function: ClassVar[Callable[[Tensor, Tensor], float]]

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        name = type(self).__name__
        try:
            return float(type(self).function(outputs, y))
        except Exception as error:
            raise Invalid(f"metrics = {name}: raises {type(error).__name__}: {str(error)[:200]}") from error


@cache
def own(function: Callable[[Tensor, Tensor], float]) -> type[Metric]:
    """The metric that a function is, as a component."""
    place = {"__module__": function.__module__, "__qualname__": function.__qualname__}
    members = {**place, "__doc__": function.__doc__, "function": staticmethod(function)}
    return dataclass(frozen=True)(type(function.__name__, (Own,), members))


def as_metric(value: Any) -> Any:
    """A function as what `own` makes of it; anything else as it is. Raises `Invalid` for a name of the record's own."""
    metric = own(value)() if isfunction(value) else value
    if isinstance(metric, Metric) and metric.name in TAKEN:
        raise Invalid(f"metrics = {metric.name}: is in every record; allowed is another name")
    if isinstance(metric, Metric) and not isinstance(metric, OfOutputs | GradientNorm):
        raise Invalid(f"metrics = {metric.name}: must be a function of outputs and labels, or an OfExamples")
    return metric


@torch.no_grad()
def measured(
    metrics: Sequence[Metric], model: nn.Module, x: Tensor, examples: Examples, about: About
) -> dict[str, Value]:
    """The metrics of a model at x (d,) that are of what it puts out."""
    wanted = [metric for metric in metrics if isinstance(metric, OfOutputs)]
    if not wanted:
        return {}
    parameters = unflatten(x, model)
    pieces = [examples.part(slice(start, start + PIECE)) for start in range(0, len(examples), PIECE)]
    outputs = torch.cat([forward(model, parameters, piece.x) for piece in pieces]).cpu()
    y = examples.y.cpu()
    return {name: v for metric in wanted for name, v in metric.whole(outputs, y, about).items()}


def _confusion(metric: Metric, outputs: Tensor, y: Tensor) -> Tensor:
    """Counts (C, C) of label and answer."""
    if y.is_floating_point() or outputs.shape[:-1] != y.shape:
        raise Invalid(
            f"metrics: {type(metric).__name__} is of classes; outputs are {tuple(outputs.shape)}, labels "
            f"{tuple(y.shape)} of {y.dtype}"
        )
    classes = outputs.shape[-1]
    pairs = y.flatten() * classes + outputs.argmax(-1).flatten()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)
