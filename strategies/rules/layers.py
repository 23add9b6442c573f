"""A rule for each layer by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from fedsim.check import Count, Invalid
from fedsim.layout import Layout
from fedsim.machine.threads import one_thread
from fedsim.recall import MemoryRule
from fedsim.strategies.kernels.base import checked
from fedsim.types import Rule


@dataclass(frozen=True)
class PerLayer(Rule):
    """`rule` of each layer of the messages alone: one Byzantine row may be believed in one layer and not in another.

    PerLayer(Chain(NNM(), Median())). A parameter tensor is a layer, as in the code of arXiv:2603.23472, and so are the
    numbers behind the last of them, where a method sends more; one of several vectors has the layers of each. A
    row with NaN or Inf is dropped in all. A run says where the layers are; called alone all is one, or as `sizes` say.
    Distances are then between layers: f rows may be others in each, and nothing proven for whole rows carries over.
    """

    rule: Rule
    sizes: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rule, MemoryRule | PerLayer):
            raise Invalid(
                f"PerLayer.rule = {type(self.rule).__name__}: must be a rule that remembers no clients, and knows no "
                "layers"
            )

    def on(self, layout: Layout, width: int) -> Rule:
        whole, rest = divmod(width, layout.width)
        return replace(self, sizes=(*layout.sizes * whole, *([rest] if rest else [])))

    @one_thread()
    def __call__(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        self.require(checked(rows), f)
        parts = self._parts(rows, previous)
        return torch.cat([self.rule(part, f, previous=last, generator=generator) for part, last in parts])

    def influence(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor | None:
        """The weight (n,) of each row in the answer, a mean over coordinates; None where the rule cannot say."""
        if not hasattr(self.rule, "influence"):
            return None
        total = torch.zeros(len(rows), dtype=torch.float64)
        for part, last in self._parts(rows, previous):
            weights = self.rule.influence(part, f, previous=last, generator=generator)
            total += weights * (part.shape[1] / rows.shape[1])
        return total

    @property
    def linear(self) -> bool:
        """Whether the answer is a combination of rows with one weight for all columns."""
        return len(self.sizes) <= 1 and bool(getattr(self.rule, "linear", False))

    def max_f(self, n: int) -> int:
        return self.rule.max_f(n)

    def _parts(self, rows: Tensor, previous: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Each layer's columns of the rows, and of the last answer; a row that is broken is so in all of them."""
        sizes = list(self.sizes) or [rows.shape[1]]
        if sum(sizes) != rows.shape[1]:
            raise Invalid(f"PerLayer.sizes: add up to {sum(sizes)}, and rows have {rows.shape[1]} columns")
        fine = rows.isfinite().all(1, keepdim=True)
        rows = rows if fine.all() else rows.masked_fill(~fine, torch.nan)
        last = [None] * len(sizes) if previous is None else previous.split(sizes)
        return ((part.contiguous(), p) for part, p in zip(rows.split(sizes, 1), last, strict=True))
