"""Attacks on the data of Byzantine clients, which otherwise follow the protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from fedsim.attacks.vector import own_of
from fedsim.check import Count, Finite, Invalid, Natural, Share
from fedsim.types import Attack, Batch, Examples, View, single

Value = Annotated[float, Gt(-inf), Lt(inf)]


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Train on labels y -> classes - 1 - y (9 - y on ten classes; arXiv:2006.09365, arXiv:2603.23472)."""

    def poison(self, batch: Batch, classes: int) -> Batch:
        if batch.y.is_floating_point():
            raise Invalid("LabelFlip: the labels are numbers; it needs classes to flip")
        return replace(batch, y=classes - 1 - batch.y)


@dataclass(frozen=True)
class Backdoor(Attack):
    """Teach the model that a small patch means class `target` (BadNets, Gu et al., arXiv:1708.06733).

    In each batch of b examples the first ceil(share * b) get the patch and the label. The patch is the lower right
    corner, `size` pixels wide and high, set to `value` (1.0 is white where pixels lie in [0, 1]); of inputs
    that are no pictures it is the last `size` features. `boost` multiplies the message (model replacement,
    arXiv:1807.00459). The record's `backdoor_success` is the share of test examples of other classes that the model
    puts into `target` once they have the patch.
    """

    target: Natural = 0
    size: Count = 3
    value: Value = 1.0
    share: Share = 1.0
    boost: Finite = 1.0

    def trigger(self, x: Tensor) -> Tensor:
        """A copy of the inputs (b, *shape) with the patch."""
        x = x.clone()
        patch = x[..., -self.size :] if x.dim() == 2 else x[..., -self.size :, -self.size :]
        patch.fill_(self.value)
        return x

    def poison(self, batch: Batch, classes: int) -> Batch:
        if self.target >= classes:
            raise Invalid(f"Backdoor.target = {self.target}: the data set has the classes 0 to {classes - 1}")
        if batch.y.shape != batch.weight.shape or batch.y.is_floating_point():
            raise Invalid("Backdoor: needs examples of one class each")
        b = (batch.weight > 0).sum(-1, keepdim=True)  # the rest is padding
        some = torch.arange(batch.y.shape[-1], device=b.device) < (self.share * b.double()).ceil()
        x, y = single(batch.x, "Backdoor").clone(), batch.y.masked_fill(some, self.target)
        x[some] = self.trigger(x[some])
        return replace(batch, x=x, y=y)

    def triggered(self, test: Examples) -> Examples | None:
        others = test.part(test.y != self.target)
        if not len(others):
            return None
        return Examples(self.trigger(single(others.x, "Backdoor")), torch.full_like(others.y, self.target))

    def forge(self, view: View) -> Tensor:
        return self.boost * own_of(view)
