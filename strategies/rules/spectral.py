"""Rules that look at the largest variance in any direction: SMEA and CAF, with exact eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.check import Count, Invalid
from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.strategies.kernels.gram import Gram
from fedsim.strategies.rules.weighted import average


@dataclass(frozen=True)
class CAF(TwoHookRule):
    """Covariance-bound agnostic filter: rows lose weight by how far they stand out where the variance is largest.

    c = 1; while sum c > n - 2 f: the mean mu and the covariance under c, its top eigenpair (lambda, v), and
    c_i <- c_i (1 - t_i / max t) with t_i = <v, x_i - mu>^2. The answer is the mu of the smallest lambda; with f = 0 the
    mean. Allouah et al., Towards Trustworthy Federated Learning with Untrusted Participants, ICML 2025.
    `maximum` of t over the rows that still have weight, so that each step takes one out, or over all as in ByzFL, where
    one far row makes the steps tiny: after 10,000 of them the best so far is the answer.
    """

    maximum: Literal["weighted", "all"] = "weighted"

    def weights(self, gram: Gram, f: int) -> Tensor:
        inner = gram.inner[: gram.n, : gram.n].detach()
        c = best = torch.ones(gram.n, dtype=torch.float64)
        least = inf
        for _ in range(10_000):
            if c.sum() <= gram.n - 2 * f:
                break
            centred = _centred(inner, c / c.sum())
            values, vectors = torch.linalg.eigh(centred * (c[:, None] * c).sqrt())
            top = float(values[-1] / c.sum())
            if top < least:
                best, least = c, top
            t = (centred @ (c.sqrt() * vectors[:, -1])).square()
            most = t.max() if self.maximum == "all" else t[c > 0].max()
            if most == 0:
                break
            c = c * (1 - t / most).clamp_min(0)
        return (best / best.sum())[None]


@dataclass(frozen=True)
class SMEA(TwoHookRule):
    """Smallest maximum eigenvalue averaging: the n - f rows of least top eigenvalue.

    Allouah et al., arXiv:2302.04787. Exact, by branch and bound; raises `Invalid` where that takes more than `steps`.
    """

    steps: Count = 20_000

    def weights(self, gram: Gram, f: int) -> Tensor:
        inner = gram.inner[: gram.n, : gram.n].detach()
        return average(torch.from_numpy(_Search(inner.numpy(), f, self.steps).best()), gram.n)

    def kappa(self, n: int, f: int) -> float:
        return 4 * f / (n - f) * (1 + f / (n - 2 * f)) ** 2


class _Search:
    """Branch and bound over which rows to leave out.

    Of the rows that are still in, the one that stands out most where the variance is largest is left out, or held. A
    branch is cut by two bounds on the scatter of the n - f rows that it would end with: in one direction it is at the
    least that of the n - f neighbours that lie closest together there, and it is never below that of the held rows.
    """

    def __init__(self, inner: NDArray[np.float64], f: int, steps: int) -> None:
        self.inner, self.n, self.f, self.steps, self.left = inner, len(inner), f, steps, steps
        self.least, self.members = inf, np.arange(self.n)

    def best(self) -> NDArray[np.int64]:
        left, dropped = np.arange(self.n), self.f
        while dropped:  # a first guess: leave out what stands out, one at a time
            _, along = self._top(left)
            left, dropped = np.delete(left, int(np.abs(along).argmax())), dropped - 1
        self.least, self.members = self._top(left)[0], left
        self._descend(np.arange(0), np.arange(self.n), self.f)
        return np.sort(self.members)

    def _top(self, rows: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
        """The largest eigenvalue of the scatter of some rows, and their places along its direction."""
        part = self.inner[np.ix_(rows, rows)]
        part = part - part.mean(0)
        # by torch, which runs on one thread here: NumPy's LAPACK has threads of its own
        values, vectors = torch.linalg.eigh(torch.from_numpy(part - part.mean(1, keepdims=True)))
        top = float(values[-1])
        return top, vectors[:, -1].numpy() * max(top, 0) ** 0.5

    def _descend(self, held: NDArray[np.int64], free: NDArray[np.int64], drop: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise Invalid(
                f"SMEA: n = {self.n}, f = {self.f}: no answer after {self.steps} steps; "
                "raise SMEA.steps, or take CAF"
            )
        rows = np.concatenate([held, free])
        value, along = self._top(rows)
        if drop == 0:
            if value < self.least:
                self.least, self.members = value, rows
            return
        cut = self.least * (1 - 1e-12)
        if _closest(along, self.n - self.f) >= cut or (len(held) > 1 and self._top(held)[0] >= cut):
            return
        at = int(np.abs(along[len(held) :]).argmax())
        rest = np.delete(free, at)
        self._descend(held, rest, drop - 1)
        if len(rest) >= drop:
            self._descend(np.append(held, free[at]), rest, drop)


def _closest(along: NDArray[np.float64], keep: int) -> float:
    """The least scatter of `keep` numbers out of some: of neighbours in their order."""
    z = np.sort(along)
    first, second = (np.concatenate([[0], np.cumsum(z**power)]) for power in (1, 2))
    return float((second[keep:] - second[:-keep] - (first[keep:] - first[:-keep]) ** 2 / keep).min())


def _centred(inner: Tensor, w: Tensor) -> Tensor:
    """Inner products around the mean with weights w (n,)."""
    along = inner @ w
    return inner - along[:, None] - along[None] + w @ along
