"""Averages of nearest neighbours: NNM as a mixer, NNA as a rule and as a step of every node of a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import torch
from torch import Generator, Tensor

from fedsim.check import Invalid, Natural
from fedsim.strategies.kernels.base import Stage, TwoHookMixer, TwoHookRule, solve
from fedsim.strategies.kernels.gram import Gram
from fedsim.strategies.kernels.mixed import Mixed
from fedsim.strategies.rules.geometric import GeometricMedian


@dataclass(frozen=True)
class NNM(TwoHookMixer):
    """Nearest-neighbour mixing: each row becomes the mean of the n - f rows nearest to it, itself included.

    Allouah et al., arXiv:2302.01772, Algorithm 2. Equal distances: the row itself, then the lowest rows.
    """

    def weights(self, gram: Gram, f: int) -> Tensor:
        return nearest(gram.distances.detach().clone().fill_diagonal_(-1), gram.n - f)

    def kappa(self, n: int, f: int, behind: float) -> float:
        return 8 * f / (n - f) * (behind + 1)  # Lemma 1


@dataclass(frozen=True)
class NNA(TwoHookRule):
    """The mean of the n - f rows nearest to a pivot (Farhadkhani et al., arXiv:2209.10931, server form).

    `pivot` is the place of a trusted row (0 in ByzFL's MoNNA; where it was dropped, the next one), or a rule,
    linear in the rows, whose answer is the pivot. Equal distances: the lowest rows.
    """

    pivot: Natural | TwoHookRule = field(default_factory=GeometricMedian)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.pivot, TwoHookRule) and not self.pivot.linear:
            raise Invalid(
                f"NNA.pivot = {self.pivot!r}: must be the place of a row or a rule that is linear in the rows"
            )

    @property
    def anchors(self) -> tuple[str, ...]:
        return self.pivot.anchors if isinstance(self.pivot, TwoHookRule) else ()

    def weights(self, gram: Gram, f: int) -> Tensor:
        if isinstance(self.pivot, int):
            squared = gram.to(gram.place(self.pivot))
        else:
            at = self.pivot.weights(gram, f)
            assert at is not None
            squared = gram.to_mixture(at[0])
        return nearest(squared[None], gram.n - f)

    def max_f(self, n: int) -> int:
        most = super().max_f(n)
        return most if isinstance(self.pivot, int) else min(most, self.pivot.max_f(n))

    def each(self, rows: Tensor, f: int, topology: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The answers (n, d) of n nodes, each with its own row as pivot: a step of peer-to-peer MoNNA.

        `topology` (n, n) says in row i whose rows node i has, its own among them. Of k rows a node averages its own
        and the k - f - 1 nearest others. Rows with NaN or Inf it never had, and they count against f; a node whose
        own row is such gets 0.
        """
        n = len(rows)

        def finish(mixed: Mixed, f: int) -> Tensor:
            answers = mixed.matrix()
            ids = mixed.rows.ids
            return (
                answers if ids is None else torch.zeros_like(rows).index_copy(0, ids.to(rows.device), answers)
            )

        nodes = _Nodes(topology.cpu(), f)
        nodes.require(n, f)
        return solve(nodes, rows, f, None, None, finish, lambda: torch.zeros_like(rows))


@dataclass(frozen=True)
class _Nodes(Stage):
    """NNA at every node, each on the rows that it received."""

    topology: Tensor
    f: int

    def weights(self, gram: Gram, f: int) -> Tensor:
        at = torch.tensor(gram.ids)
        have = self.topology[at[:, None], at]
        broken = self.topology[at].sum(1) - have.sum(1)
        keep = have.sum(1) - (self.f - broken).clamp_min(0)
        far = gram.distances.detach().masked_fill(~have, inf).fill_diagonal_(-1)
        kept = far.argsort(dim=1, stable=True).argsort(dim=1) < keep[:, None]
        return kept / keep[:, None].double()


def nearest(squared: Tensor, keep: int) -> Tensor:
    """Weights (m, n) of the means of the `keep` nearest rows, from squared distances (m, n)."""
    near = squared.detach().argsort(dim=1, stable=True)[:, :keep]
    return torch.zeros_like(squared).scatter(1, near, 1 / keep)
