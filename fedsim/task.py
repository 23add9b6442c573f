"""A task: which data, which model, and the loss over one flat parameter vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedsim.check import Component, NonNegative
from fedsim.keys import Keys, torch_seed
from fedsim.layout import flatten, unflatten
from fedsim.types import Data, Dataset, Examples, Model

__all__ = ["Task"]


@dataclass(frozen=True)
class Task(Component):
    """Classify `data` with `model`: cross-entropy, plus (l2 / 2) ||x||^2, which needs no data and so no privacy."""

    data: Data
    model: Model
    l2: NonNegative = 0.0

    def build(self, dataset: Dataset, keys: Keys) -> tuple[nn.Module, Tensor]:
        """The network and its initial parameters x (d,), addressed by the experiment's seed."""
        shape = tuple(dataset.train.x.shape[1:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(keys.of("model")[0]))
            model = self.model.build(shape, dataset.classes)
        return model, flatten(model)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, examples: Examples, size: int = 2000) -> tuple[float, float]:
    """Accuracy and mean loss of the model at x (d,) over examples, `size` at a time."""
    parameters = unflatten(x, model)
    right, loss = 0, 0.0
    for inputs, labels in zip(examples.x.split(size), examples.y.split(size), strict=True):
        logits = functional_call(model, parameters, (inputs,))
        right += int((logits.argmax(-1) == labels).sum())
        loss += float(cross_entropy(logits, labels, reduction="sum"))
    return right / len(examples), loss / len(examples)
