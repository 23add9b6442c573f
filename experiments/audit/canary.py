"""The canary: one example of a client's data, chosen so that its gradient moves as far as a clip lets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsim.types import Batch, Examples, on_inputs


@dataclass(frozen=True)
class Placed(Batch):
    """A batch that knows the canary.

    place  (k, b), client * m + example
    drawn  (k, b), the weight that the canary was drawn at, in whichever world
    """

    place: Tensor = field(kw_only=True)
    drawn: Tensor = field(kw_only=True)

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        return Placed(
            on_inputs(f, self.x),
            f(self.y),
            f(self.weight),
            self.step,
            place=f(self.place),
            drawn=f(self.drawn),
        )


def candidates(train: Examples, classes: int) -> Batch:
    """Examples (c, 1, ...) to choose canaries from: two of the data, scaled, with every label."""
    few, labels = train.part(slice(0, 2)), train.y[:4]
    if classes and labels.dim() == 1:
        labels = torch.arange(min(classes, 10), device=train.y.device)

    def scaled(x: Tensor) -> Tensor:
        numbers = x.is_floating_point()  # words are none
        factors = (1.0, -1.0, 30.0, -30.0, 1000.0, -1000.0) if numbers else (1,)
        return torch.cat([x * factor for factor in factors]).repeat_interleave(len(labels), 0).unsqueeze(1)

    x = on_inputs(scaled, few.x)
    count = len(next(iter(x.values())) if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x)
    y = labels.repeat(count // len(labels), *[1] * (labels.dim() - 1)).unsqueeze(1)
    return Batch(x, y, torch.ones(count, 1, device=y.device))


def furthest(rows: Tensor) -> tuple[int, int]:
    """The two of rows (c, d) that lie furthest apart."""
    first, second = divmod(int(torch.cdist(rows, rows).argmax()), len(rows))
    return first, second


def numbers(examples: Examples) -> int:
    """In the inputs of one example."""
    x = examples.part(slice(0, 1)).x
    return sum(
        t.numel() for t in (x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else (x,))
    )
