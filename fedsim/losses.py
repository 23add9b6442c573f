"""What an example costs: one number, the mean or the sum over its places where it has several (a window of text)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsim.check import Finite, Invalid
from fedsim.types import Examples, Loss

__all__ = ["Binary", "CrossEntropy", "Huber", "Squared"]

Over = Literal["mean", "sum"]


def _reduced(losses: Tensor, over: Over) -> Tensor:
    """One loss (b,) an example, of those of its places (b, ...)."""
    if losses.dim() == 1:
        return losses
    return losses.flatten(1).mean(1) if over == "mean" else losses.flatten(1).sum(1)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-log softmax(outputs)[y]: outputs (b, C) and labels y (b,), or (b, T, C) and (b, T) for windows of T places.

    over  a window's loss is the "mean" or the "sum" over its places
    """

    over: Over = "mean"

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return _reduced(F.cross_entropy(outputs.movedim(-1, 1), y, reduction="none"), self.over)

    def gradient(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Softmax less one at the label."""
        labels = y.unsqueeze(-1)
        ones = torch.ones_like(labels, dtype=outputs.dtype)
        start = torch.softmax(outputs, -1).scatter_add_(-1, labels, -ones)
        return start.div_(y[0].numel()) if y.dim() > 1 and self.over == "mean" else start

    def require(self, y: Tensor, classes: int) -> None:
        if y.dtype != torch.int64 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes):
            upto = f" to {classes - 1}" if classes else " on"
            raise Invalid(
                f"loss = CrossEntropy: labels are {_told(y)}; must be whole numbers (int64) from 0{upto}; for numbers "
                "to be met take Squared or Huber"
            )

    def predicted(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)


CROSS_ENTROPY = CrossEntropy()


@dataclass(frozen=True)
class _Numbers(Loss):
    """A loss of outputs of the same shape as the labels (b, ...), or with one more axis of length 1."""

    over: Over = "mean"

    def outputs(self, examples: Examples, classes: int) -> int:
        return 1 if examples.y.dim() == 1 else examples.y.shape[-1]

    def require(self, y: Tensor, classes: int) -> None:
        if not y.is_floating_point() or not y.isfinite().all():
            raise Invalid(
                f"loss = {type(self).__name__}: labels are {_told(y)}; must be finite numbers (float32); for "
                "classes take CrossEntropy"
            )

    def _met(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if outputs.dim() == y.dim() + 1 and outputs.shape[-1] == 1:
            outputs = outputs.squeeze(-1)
        if outputs.shape[1:] != y.shape[1:]:  # they would broadcast
            raise Invalid(
                f"loss = {type(self).__name__}: outputs of shape {tuple(outputs.shape[1:])} an example, labels of "
                f"{tuple(y.shape[1:])}; must be the same"
            )
        return outputs, y.to(outputs.dtype)


@dataclass(frozen=True)
class Squared(_Numbers):
    """(outputs - y)^2; labels y (b,) or (b, k) are numbers."""

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        outputs, y = self._met(outputs, y)
        return _reduced((outputs - y).square(), self.over)


@dataclass(frozen=True)
class Huber(_Numbers):
    """e^2 / 2 for errors |e| <= delta, delta (|e| - delta / 2) beyond (Huber, 1964); labels as for Squared."""

    delta: Finite = 1.0

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        outputs, y = self._met(outputs, y)
        return _reduced(F.huber_loss(outputs, y, reduction="none", delta=self.delta), self.over)


@dataclass(frozen=True)
class Binary(_Numbers):
    """-y log p - (1 - y) log(1 - p) with p = sigmoid(outputs), of one output an example; labels 0 and 1.

    Labels (b, k) are k yes-or-no questions an example.
    """

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        outputs, y = self._met(outputs, y)
        return _reduced(F.binary_cross_entropy_with_logits(outputs, y, reduction="none"), self.over)

    def require(self, y: Tensor, classes: int) -> None:
        if not ((y == 0) | (y == 1)).all():
            raise Invalid(f"loss = Binary: labels are {_told(y)}; must be 0 or 1")

    def predicted(self, outputs: Tensor) -> Tensor:
        return (outputs.squeeze(-1) if outputs.shape[-1] == 1 else outputs) > 0


class Own(Loss):
    """A loss that is a user's function `loss(outputs, y) -> (b,)`, known by the place where that stands."""

    function: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return type(self).function(outputs, y)

    def outputs(self, examples: Examples, classes: int) -> int:
        return classes or (1 if examples.y.dim() == 1 else examples.y.shape[-1])


@cache
def own(function: Callable[[Tensor, Tensor], Tensor]) -> type[Loss]:
    """The loss that a function is, as a component."""
    place = {"__module__": function.__module__, "__qualname__": function.__qualname__}
    kind = type(
        function.__name__, (Own,), {**place, "__doc__": function.__doc__, "function": staticmethod(function)}
    )
    return dataclass(frozen=True)(kind)


def _told(y: Tensor) -> str:
    if not y.numel():
        return f"{y.dtype}".removeprefix("torch.")
    return f"{y.dtype} from {float(y.min()):g} to {float(y.max()):g}".removeprefix("torch.")
