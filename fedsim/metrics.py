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

__all__ = ["RMSE", "Accuracy", "BitsPerToken", "ByOwner", "Confusion", "MacroF1", "Recall"]

PIECE = 2000  # examples at a time
TAKEN = {
    "round",
    "accuracy",
    "loss",
    "seconds",
    "simulated_seconds",
    "epsilon",
    "deviation",
    "honest_norm",
    "byzantine_weight",
    "weights",
}

Value = float | list[Any]


class Metric(Component):
    """A value of outputs (N, ...) and labels y (N, ...) of all test examples."""

    @property
    def name(self) -> str:
        """Under which it is in the record."""
        return type(self).__name__

    @abstractmethod
    def __call__(self, outputs: Tensor, y: Tensor) -> Value: ...

    def whole(self, outputs: Tensor, y: Tensor, owners: Tensor | None) -> dict[str, Value]:
        return {self.name: self(outputs, y)}


@dataclass(frozen=True)
class Confusion(Metric):
    """How many examples of class i (row) are told to be of class j (column)."""

    @property
    def name(self) -> str:
        return "confusion"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        told: list[Any] = _confusion(self, outputs, y).tolist()
        return told


@dataclass(frozen=True)
class Recall(Metric):
    """Of each class the share that is told right, accuracy by class; 0 where the test set has none of it."""

    @property
    def name(self) -> str:
        return "recall"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        table = _confusion(self, outputs, y).double()
        shares: list[Any] = (table.diag() / table.sum(1).clamp_min(1)).tolist()
        return shares


@dataclass(frozen=True)
class MacroF1(Metric):
    """The plain mean over classes of 2 TP / (2 TP + FP + FN); 0 for a class that is neither there nor told."""

    @property
    def name(self) -> str:
        return "macro_f1"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        table = _confusion(self, outputs, y).double()
        both = table.sum(0) + table.sum(1)
        return float((2 * table.diag() / both.clamp_min(1)).mean())


@dataclass(frozen=True)
class RMSE(Metric):
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
class BitsPerToken(Metric):
    """The mean over tokens of -log2 softmax(outputs)[y]: bits per character where tokens are characters."""

    @property
    def name(self) -> str:
        return "bits_per_token"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        return float(F.cross_entropy(outputs.flatten(0, -2), y.flatten())) / log(2)


@dataclass(frozen=True)
class Accuracy(Metric):
    """The share of labels that are told right."""

    @property
    def name(self) -> str:
        return "accuracy"

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        return float((outputs.argmax(-1) == y).double().mean())


@dataclass(frozen=True)
class ByOwner(Metric):
    """A metric by owner of the test examples: its mean over owners, worst, standard deviation and 10th percentile.

    ByOwner(); worst is the least, or the most where `lower` is better (then the 90th percentile). With `Natural()` and
    as many clients as owners these are the clients. Raises `Invalid` where the test examples have no owners.
    """

    of: Metric = Accuracy()
    lower: bool = False

    def __call__(self, outputs: Tensor, y: Tensor) -> Value:
        raise NotImplementedError  # `whole` has the owners

    def whole(self, outputs: Tensor, y: Tensor, owners: Tensor | None) -> dict[str, Value]:
        if owners is None:
            raise Invalid(
                "metrics: ByOwner needs a data set whose test examples have owners, by its field `owner`"
            )
        parts = [torch.nonzero(owners == who)[:, 0] for who in owners.unique()]
        found = [self.of(outputs[part], y[part]) for part in parts]
        if any(isinstance(value, list) for value in found):
            raise Invalid(
                f"ByOwner.of = {type(self.of).__name__}: gives lists; must be a metric of one number"
            )
        values = torch.tensor(found, dtype=torch.float64)
        name, tenth = self.of.name, 0.9 if self.lower else 0.1
        return {
            f"{name}_owners_mean": float(values.mean()),
            f"{name}_owners_worst": float(values.max() if self.lower else values.min()),
            f"{name}_owners_spread": float(values.std(correction=0)),
            f"{name}_owners_p{round(100 * tenth)}": float(values.quantile(tenth)),
        }


class Own(Metric):
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
    return metric


@torch.no_grad()
def measured(
    metrics: Sequence[Metric], model: nn.Module, x: Tensor, examples: Examples, owners: Tensor | None
) -> dict[str, Value]:
    """The metrics of a model at x (d,)."""
    if not metrics:
        return {}
    parameters = unflatten(x, model)
    pieces = [examples.part(slice(start, start + PIECE)) for start in range(0, len(examples), PIECE)]
    outputs = torch.cat([forward(model, parameters, piece.x) for piece in pieces]).cpu()
    y = examples.y.cpu()
    return {name: v for metric in metrics for name, v in metric.whole(outputs, y, owners).items()}


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
