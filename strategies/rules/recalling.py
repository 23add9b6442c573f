"""Rules that remember: clients who keep saying the same, and clients who do not go on as they began."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.check import ClipNorm, Count, Finite, Natural
from fedsim.layout import clip_
from fedsim.recall import MemoryRule
from fedsim.strategies.kernels.clusters import groups, two
from fedsim.strategies.rules.coordinate import Median
from fedsim.strategies.rules.weighted import Mean
from fedsim.types import Rule, State

ALIKE = 1e-9  # of directions that are the same: what is left of 1 - cosine is rounding


@dataclass(frozen=True)
class FoolsGold(MemoryRule):
    """FoolsGold, arXiv:1808.04866: who has always pulled the same way as another counts less. It needs no f.

    h_i is the sum of all rows of client i, each first clipped to norm `max_norm`; c_ij = cos(h_i, h_j), 0 for i = j;
    m_i = max_j c_ij. Pardon: where m_i < m_j, c_ij <- c_ij m_i / m_j. w_i = 1 - max_j c_ij, over max_i w_i, 1 as 0.99;
    then w_i <- confidence (ln(w_i / (1 - w_i)) + 1/2) between 0 and 1. The answer is sum_i w_i x_i, over sum_i w_i
    where `total` is "mean". Where nobody counts, all alike, everybody does.
    Histories are of all parameters; the paper can also take the most important features alone.
    """

    total: Literal["sum", "mean"] = "sum"
    confidence: Finite = 1.0
    max_norm: ClipNorm = float("inf")

    @property
    def inner(self) -> Rule:
        return Mean()

    def own(self, row: Tensor) -> State:
        return {"history": torch.zeros_like(row)}

    def remember(
        self, own: State, shared: State, rows: Tensor, *, x: Tensor, previous: Tensor | None
    ) -> tuple[State, State, Tensor]:
        history = own["history"] + clip_(rows.detach().clone(), self.max_norm)
        weights = self.weights(history)
        kept = int((weights > 0).sum())
        weights *= (
            kept / float(weights.sum()) if self.total == "mean" else kept
        )  # the inner rule takes their mean
        return {"history": history}, shared, weights.to(rows)

    def weights(self, history: Tensor) -> Tensor:
        """The weights (k,), float64, of k histories (k, d)."""
        unit = history.double()
        unit /= unit.norm(dim=1, keepdim=True).clamp_min(1e-300)
        cosine = (unit @ unit.T).fill_diagonal_(0)
        most = cosine.amax(1)
        less = most[:, None] < most
        cosine = torch.where(less, cosine * most[:, None] / torch.where(less, most, 1.0), cosine)
        w = (1 - cosine.fill_diagonal_(0).amax(1)).clamp(0, 1)
        w[w < ALIKE] = 0
        top = w.max()
        if top > 0:
            w = w / top
            w = torch.where(w == 1, 0.99, w)
            w = (self.confidence * ((w / (1 - w)).log() + 0.5)).clamp(0, 1)
        return w if w.any() else torch.ones_like(w)


@dataclass(frozen=True)
class FLDetector(MemoryRule):
    """FLDetector, arXiv:2207.09209: who strays from what its own last row foretells is out, for good. It needs no f.

    Foretold is the client's last row plus H (x - x'), x' the model then, H a Hessian from the last `window` steps
    of the model and of the answer by L-BFGS. A score is the distance of row and forecast over the mean distance in the
    round, suspicion the mean of `window` scores. Of all clients with so many, scaled to [0, 1], the gap statistic tells
    how many groups they form: where two or more, the group that 2-means finds the more suspicious is left out from then
    on, and scores begin anew (in the paper training does so too). `rule` answers from the others.
    The paper's clients are there in every round and send gradients of their whole data. Where rows are noisy of
    themselves, whoever sends what is less noisy, as ALIE does, passes, and honest clients are left out.
    """

    of_moves: ClassVar[bool] = True

    rule: Rule = field(default_factory=Median)
    window: Count = 10
    references: Count = 10
    seed: Natural = 0

    @property
    def inner(self) -> Rule:
        return self.rule

    def own(self, row: Tensor) -> State:
        nothing = torch.zeros_like(row)
        scores = row.new_full((self.window,), torch.nan, dtype=torch.float64)
        return {
            "row": nothing,
            "x": nothing,
            "scores": scores,
            "rounds": row.new_zeros(()),
            "out": row.new_zeros(()),
        }

    def shared(self, row: Tensor) -> State:
        steps, nothing = row.new_zeros(self.window, len(row)), torch.zeros_like(row)
        return {
            "x": nothing,
            "step": nothing,
            "answer": nothing,
            "steps": steps,
            "turns": steps,
            "rounds": row.new_zeros(()),
        }

    def remember(
        self, own: State, shared: State, rows: Tensor, *, x: Tensor, previous: Tensor | None
    ) -> tuple[State, State, Tensor]:
        rows, rounds = rows.detach(), int(shared["rounds"])
        shared = self._seen(shared, x, previous)
        first = self.window - min(max(0, rounds - 1), self.window)
        moved = hessian_products(shared["steps"][first:], shared["turns"][first:], x - own["x"])
        foretold = own["row"] + moved
        known = (own["rounds"] > 0) & (own["out"] == 0)
        distance = (foretold - rows).double().norm(dim=1)
        mean = distance[known].mean() if known.any() else distance.new_zeros(())
        scores, score = own["scores"].clone(), distance / mean if mean > 0 else torch.ones_like(distance)
        scores[known] = torch.cat([scores[known, 1:], score[known, None]], 1)
        out, suspects = own["out"].clone(), self._suspects(scores.mean(1), own["out"] > 0)
        out[suspects] = 1
        if len(suspects):  # begin anew
            scores.fill_(torch.nan)
        kept = {
            "row": rows,
            "x": x.expand_as(rows),
            "scores": scores,
            "rounds": own["rounds"] + 1,
            "out": out,
        }
        return kept, shared, 1 - out

    def _seen(self, shared: State, x: Tensor, previous: Tensor | None) -> State:
        """The server's side once another round begins at x: the last steps of the model, and turns of the answer."""
        rounds = int(shared["rounds"])
        after = {**shared, "x": x, "rounds": shared["rounds"] + 1}
        if rounds and previous is not None:
            after |= {"step": x - shared["x"], "answer": previous}
        if rounds > 1 and previous is not None:
            after["steps"] = torch.cat([shared["steps"][1:], shared["step"][None]])
            after["turns"] = torch.cat([shared["turns"][1:], (previous - shared["answer"])[None]])
        return after

    def _suspects(self, suspicion: Tensor, out: Tensor) -> Tensor:
        """The places of those who are to be left out; suspicion (k,) is NaN before a window is full."""
        asked = (suspicion.isfinite() & ~out).nonzero()[:, 0].cpu()
        values = suspicion.cpu()[asked].numpy()
        if len(values) < 2 or not values.max() > values.min():
            return asked[:0].to(suspicion.device)
        order = values.argsort(kind="stable")
        line = (values[order] - values.min()) / (values.max() - values.min())
        drawn = np.random.default_rng(self.seed).random((self.references, len(line)))
        if groups(line, drawn) < 2:
            return asked[:0].to(suspicion.device)
        return asked[torch.from_numpy(order[two(line) :].copy())].to(suspicion.device)


def hessian_products(steps: Tensor, turns: Tensor, v: Tensor) -> Tensor:
    """B v (k, d) of vectors v (k, d), B the Hessian that L-BFGS makes of p steps and turns (p, d) of the gradient.

    The compact form of Byrd, Nocedal and Schnabel (1994): B = sigma I - P' M^+ P with P = [sigma S; Y]; 0 where p = 0.
    """
    if not len(steps):
        return torch.zeros_like(v)
    s, y, v64 = steps.double(), turns.double(), v.double()
    inner, last = s @ y.T, float(s[-1] @ s[-1])
    sigma = float(y[-1] @ s[-1]) / last if last > 0 else 0.0
    lower = inner.tril(-1)
    m = torch.cat(
        [torch.cat([sigma * (s @ s.T), lower], 1), torch.cat([lower.T, -inner.diagonal().diag()], 1)]
    )
    p = torch.cat([sigma * s, y])
    pull = torch.linalg.pinv(m, rtol=1e-10, hermitian=True) @ (p @ v64.T)
    product: Tensor = sigma * v64 - pull.T @ p
    return product.to(v)
