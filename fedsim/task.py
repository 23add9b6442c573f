"""A task: which data, which model and which loss, over one flat parameter vector."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import isfunction
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.check import Component, Invalid, NonNegative
from fedsim.keys import Keys, torch_seed
from fedsim.layout import flatten, unflatten
from fedsim.losses import CROSS_ENTROPY, CrossEntropy, own
from fedsim.machine.threads import each
from fedsim.metrics import Metric, as_metric
from fedsim.models.modules import as_model
from fedsim.types import Data, Dataset, Examples, Loss, Model, forward, on_inputs

__all__ = ["Task"]


@dataclass(frozen=True)
class Signature:
    """What a network takes and gives: the shape and type of an input, or of several, and how many outputs."""

    shape: Any
    dtype: Any
    outputs: int

    @classmethod
    def of(cls, dataset: Dataset, loss: Loss) -> Signature:
        x = dataset.train.x
        shape = on_inputs(lambda t: tuple(t.shape[1:]), x)
        dtype = on_inputs(lambda t: str(t.dtype).removeprefix("torch."), x)
        return cls(shape, dtype, loss.outputs(dataset.train, dataset.classes))


@dataclass(frozen=True)
class Task(Component):
    """Fit `model` to `data`: the loss, plus (l2 / 2) ||x||^2, which needs no data and so no privacy.

    metrics  what is measured on the test examples beside loss and accuracy; also functions metric(outputs, y) -> float
    loss  a component, or a function of one's own, loss(outputs (b, ...), y (b, ...)) -> (b,)
    """

    data: Data
    model: Model
    l2: NonNegative = 0.0
    loss: Loss = CROSS_ENTROPY
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        if isfunction(function := cast(object, self.loss)):
            object.__setattr__(self, "loss", own(function)())
        object.__setattr__(self, "model", as_model(self.model))
        object.__setattr__(self, "metrics", tuple(map(as_metric, self.metrics)))
        super().__post_init__()

    def build(self, dataset: Dataset, keys: Keys) -> tuple[nn.Module, Tensor]:
        """The network and its initial parameters x (d,), addressed by the experiment's seed.

        Raises `Invalid` where labels are of another kind than the loss, or the loss of another shape than (b,).
        """
        for part in (dataset.train, dataset.test):
            self.loss.require(part.y, dataset.classes)
        model = self.network(Signature.of(dataset, self.loss), keys)
        if odd := sorted({str(p.dtype) for p in model.parameters()} - {"torch.float32"}):
            raise Invalid(
                f"model: parameters of {', '.join(odd)}; must be torch.float32, in which norms are measured"
            )
        x = flatten(model)  # raises where nothing is trained
        self._check(model, dataset.train)
        return model, x

    def network(self, signature: Signature, keys: Keys) -> nn.Module:
        """The network with its initial numbers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(keys.of("model")[0]))
            try:
                return self.model.build(signature.shape, signature.outputs)
            except Invalid:
                raise
            except Exception as error:
                raise Invalid(
                    f"model = {type(self.model).__name__}: raises {type(error).__name__} as it is built for inputs "
                    f"{signature.shape}: {str(error)[:200]}"
                ) from error

    @torch.enable_grad()
    def _check(self, model: nn.Module, examples: Examples) -> None:
        """Raise `Invalid` where the loss of a few examples is none."""
        few, name = examples.part(slice(0, 4)), type(self.loss).__name__
        try:
            out = forward(model, {}, few.x)
        except Invalid:
            raise
        except Exception as error:
            told = on_inputs(lambda t: f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape[1:])}", few.x)
            raise Invalid(
                f"model = {type(self.model).__name__}: raises {type(error).__name__} for inputs {told}: "
                f"{str(error)[:200]}; layers of numbers take float32, layers of tokens int64"
            ) from error
        if not isinstance(out, Tensor):
            raise Invalid(
                f"model = {type(self.model).__name__}: puts out a {type(out).__name__}; must be one tensor, (b, ...)"
            )
        if not out.requires_grad:
            raise Invalid(
                f"model = {type(self.model).__name__}: torch knows no gradient of its outputs; they must follow from "
                "trained parameters, without no_grad or detach"
            )
        if isinstance(self.loss, CrossEntropy) and (
            out.shape[:-1] != few.y.shape or out.shape[-1] <= examples.y.max()
        ):
            raise Invalid(
                f"model: outputs of shape {tuple(out.shape)} for labels of shape {tuple(few.y.shape)} up to "
                f"{int(examples.y.max())}; {name} takes those of the labels and one more axis, of the classes"
            )
        try:
            losses = self.loss(out, few.y)
        except Invalid:
            raise
        except Exception as error:
            raise Invalid(f"loss = {name}: raises {type(error).__name__}: {str(error)[:200]}") from error
        if not isinstance(losses, Tensor) or losses.shape != (len(few),) or not losses.is_floating_point():
            told = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise Invalid(
                f"loss = {name}: {told} for {len(few)} examples; must be a tensor of shape (b,), one number each"
            )
        if not losses.requires_grad:
            raise Invalid(
                f"loss = {name}: torch knows no gradient of it; it must follow from the outputs, without no_grad or "
                "detach"
            )


@torch.no_grad()
def evaluate(
    model: nn.Module, loss: Loss, x: Tensor, examples: Examples, size: int = 2000
) -> dict[str, float]:
    """What a model is worth at x (d,): "loss", the mean over examples, and where labels are classes "accuracy".

    `size` examples at a time, each so many on one thread; of windows of text the accuracy is over all their places.
    """
    pieces = [examples.part(slice(start, start + size)) for start in range(0, len(examples), size)]
    parameters = {f"model.{name}": value for name, value in unflatten(x, model).items()}
    found = functional_call(_Evaluation(model, loss), parameters, (pieces,))
    total, right, labels = (sum(column) for column in zip(*found, strict=True))
    accuracy = {"accuracy": right / labels} if labels else {}
    return {**accuracy, "loss": total / len(examples)}


class _Evaluation(nn.Module):
    """A model whose parameters are put in place once for all threads."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, pieces: list[Examples]) -> list[tuple[float, int, int]]:
        return list(each(self._piece, pieces, pieces[0].y.device.type))

    @torch.no_grad()
    def _piece(self, some: Examples) -> tuple[float, int, int]:
        """The sum of the losses; how many labels were told right, of how many."""
        out = forward(self.model, {}, some.x)
        loss, predicted = float(self.loss(out, some.y).sum()), self.loss.predicted(out)
        if predicted is None:
            return loss, 0, 0
        return loss, int((predicted == some.y).sum()), some.y.numel()
