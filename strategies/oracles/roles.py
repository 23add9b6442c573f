"""A norm for each layer of a model by its role, and the steps of all layers together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from fedsim.check import Component, Finite
from fedsim.layout import Block, Layout
from fedsim.strategies.oracles.base import Oracle
from fedsim.strategies.oracles.entries import RMS, Columns, Sign
from fedsim.strategies.oracles.spectral import Spectral

Work = Callable[[Oracle, Tensor, Block], Tensor]


@dataclass(frozen=True)
class Norms(Component):
    """The oracle of each role of a layer, Scion's as they stand (arXiv:2502.07529).

    radii  (pattern, factor): a layer whose name fits the first such pattern moves by so much more, as in
           (("blocks.*.up.weight", 2.0), ("*", 1.0))
    All over the last axis, g (..., d); layers of one shape and one oracle are worked on together.
    """

    hidden: Oracle = Spectral(scale="rms")
    input: Oracle = Spectral(scale="muon")
    head: Oracle = Sign(scale="per_input")
    conv: Oracle = Spectral(scale="rms")
    embedding: Oracle = Columns(scale="rms")
    vector: Oracle = RMS()
    radii: tuple[tuple[str, Finite], ...] = ()

    @classmethod
    def all(cls, oracle: Oracle) -> Norms:
        """One oracle for every role."""
        return cls(oracle, oracle, oracle, oracle, oracle, oracle)

    def direction(self, g: Tensor, layout: Layout) -> Tensor:
        """-LMO of each layer of g, times its radius (..., d)."""
        return self._each(lambda oracle, part, block: oracle.direction(part, block), g, layout)

    def sharp(self, g: Tensor, layout: Layout) -> Tensor:
        """The sharp operator of each layer (..., d); `radii` do not enter."""
        return self._each(lambda oracle, part, block: oracle.sharp(part, block), g, layout, plain=True)

    def dual(self, g: Tensor, layout: Layout) -> Tensor:
        """||g_l||_* of each layer (..., layers); `radii` do not enter."""
        parts = zip(layout.blocks, layout.views(g), strict=True)
        return torch.stack([self.of(block).dual(part, block) for block, part in parts], -1)

    def of(self, block: Block) -> Oracle:
        oracle: Oracle = getattr(self, block.role)
        return oracle

    def radius(self, block: Block) -> float:
        return next((factor for pattern, factor in self.radii if fnmatchcase(block.name, pattern)), 1.0)

    def _each(self, work: Work, g: Tensor, layout: Layout, plain: bool = False) -> Tensor:
        views = layout.views(g)
        alike: dict[tuple[Oracle, str, tuple[int, ...]], list[int]] = {}
        for i, block in enumerate(layout.blocks):
            alike.setdefault((self.of(block), block.role, block.shape), []).append(i)
        done: dict[int, Tensor] = {}
        for (oracle, _, shape), members in alike.items():
            axis = -1 - len(shape)
            block = layout.blocks[members[0]]
            first = views[members[0]]
            together = (
                torch.stack([views[i] for i in members], axis) if members[1:] else first.unsqueeze(axis)
            )
            done |= dict(zip(members, work(oracle, together, block).unbind(axis), strict=True))
        scale = [1.0 if plain else self.radius(block) for block in layout.blocks]
        return layout.join(done[i] if scale[i] == 1 else scale[i] * done[i] for i in range(len(views)))
