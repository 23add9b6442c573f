"""Krum and what was built on it: rows chosen by their distances to the nearest others."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from fedsim.check import Count
from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.strategies.kernels.columns import ordered
from fedsim.strategies.kernels.gram import Gram
from fedsim.strategies.rules.coordinate import middle, nearest_mean
from fedsim.strategies.rules.weighted import average

Neighbours = Literal["n-f-2", "n-f-1"]


@dataclass(frozen=True)
class Krum(TwoHookRule):
    """The row with the least sum of squared distances to its nearest others (Blanchard, arXiv:1703.02757).

    `neighbours`, how many: n - f - 2 as in the paper, which needs n >= 2 f + 3, or n - f - 1 as in ByzFL.
    Equal sums: the lowest row.
    """

    neighbours: Neighbours = "n-f-2"

    def weights(self, gram: Gram, f: int) -> Tensor:
        return average(_scores(gram.distances, f, self.neighbours).argmin()[None], gram.n)

    def max_f(self, n: int) -> int:
        return (n - 3) // 2 if self.neighbours == "n-f-2" else (n - 1) // 2

    def kappa(self, n: int, f: int) -> float | None:
        """6 (n - f) / h, with h honest rows at the least among the chosen one and its neighbours (arXiv:2302.01772)."""
        return 6 * (n - f) / (n - 2 * f - (1 if self.neighbours == "n-f-2" else 0))


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the m rows with the smallest Krum scores (Blanchard et al., arXiv:1703.02757).

    `m` is a number, or n - f as in ByzFL. Equal scores: the lowest rows.
    """

    m: Count | Literal["n-f"] = "n-f"

    def kappa(self, n: int, f: int) -> None:
        return None

    def weights(self, gram: Gram, f: int) -> Tensor:
        m = gram.n - f if self.m == "n-f" else min(self.m, gram.n)
        best = _scores(gram.distances, f, self.neighbours).argsort(stable=True)[:m]
        return average(best, gram.n)


@dataclass(frozen=True)
class Bulyan(TwoHookRule):
    """n - 2f rows by repeated Krum, then by coordinate the mean of the n - 4f nearest to their median.

    El Mhamdi et al., arXiv:1802.07927. Needs n >= 4 f + 3. Each Krum is run on the rows that are left,
    with their number in place of n. Equal scores: the lowest row; equally far from the
    median: the lower value.
    """

    def weights(self, gram: Gram, f: int) -> Tensor:
        left, chosen = list(range(gram.n)), list[int]()
        while len(chosen) < gram.n - 2 * f:
            at = torch.tensor(left)
            chosen.append(left.pop(int(_scores(gram.distances[at[:, None], at], f, "n-f-2").argmin())))
        return torch.eye(gram.n, dtype=torch.float64)[sorted(chosen)]

    def reduce(self, block: Tensor, f: int) -> Tensor:
        z = ordered(block)
        return nearest_mean(z, middle(z), 2 * f)

    def max_f(self, n: int) -> int:
        return (n - 3) // 4

    def count(self, n: int) -> int:
        return n


def _scores(squared: Tensor, f: int, neighbours: Neighbours) -> Tensor:
    """Krum scores (n,): sums of squared distances to the nearest others, to one at the least."""
    n = len(squared)
    many = max(1, n - f - (2 if neighbours == "n-f-2" else 1))
    return squared.detach().clone().fill_diagonal_(inf).sort(1).values[:, : min(many, n - 1)].sum(1)
