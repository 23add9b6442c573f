"""An adversary that is greedy: Byzantine rows moved by the gradient of the damage that they do in this round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.attacks.adaptive import damage, push, target_of
from fedsim.attacks.forecast import Objective
from fedsim.attacks.vector import HONEST, deviation, honest_of
from fedsim.check import Count, Finite, Invalid
from fedsim.types import Attack, Knowledge, Target, View


@dataclass(frozen=True)
class WorstCase(Attack):
    """Gradient ascent on the forged rows (f, d), through the rule, on `objective`, `bound` and `grid` of `Adaptive`.

    A rule's choices (Krum's row, whose neighbour is whose, what is trimmed) pass no gradient, so it starts three times
    from where a search along a line through the honest mean ends: along minus the standard deviation; along the same
    with, for each coordinate, the sign that does more damage there; along the direction in which honest rows spread
    most. Each time `steps` steps, as long as the honest rows' spread at first, half as long after one that did not help
    and longer after one that did. The best rows found are sent. Raises `Invalid` for a rule without gradient.
    """

    objective: Objective = "distance"
    steps: Count = 20
    bound: Finite = 100.0
    grid: Count = 32
    needs: ClassVar[frozenset[Knowledge]] = HONEST | {"rule"}

    def forge(self, view: View) -> Tensor:
        target = target_of(view)
        ends = (self._climb(target, rows) for rows in self._starts(view, target))
        return max(ends, key=lambda end: end[0])[1]

    def _starts(self, view: View, target: Target) -> Iterator[Tensor]:
        honest = honest_of(view)
        s = honest.mean(0)
        spread = -deviation(honest, s)

        def along(direction: Tensor) -> Tensor:
            return push(view, s, direction, self.objective, self.bound, self.grid)

        plain = along(spread)
        yield plain
        gains = [self._gains(target, rows) for rows in (plain, 2 * s - plain)]
        away = (plain[0] - s).sign()  # of the coordinates, where the plain start went
        yield along(torch.where(gains[0] >= gains[1], away, -away) * spread.abs())
        off = honest - s
        yield along(torch.linalg.eigh((off @ off.T).double()).eigenvectors[:, -1].to(off) @ off)

    def _gains(self, target: Target, rows: Tensor) -> Tensor:
        """The damage (d,) of forged rows, coordinate by coordinate."""
        s = target.honest_mean(target.receive(rows))
        answer = target(rows)
        return (answer - s).square() if self.objective == "distance" else -answer * s

    def _climb(self, target: Target, rows: Tensor) -> tuple[float, Tensor]:
        """The damage and the rows at the end of the ascent."""
        seen = target.receive(rows)
        honest, s = seen[: target.honest], target.honest_mean(seen)
        length = (honest - s).square().sum(1).mean().sqrt() * len(rows) ** 0.5
        best, uphill = self._slope(target, s, rows)
        for _ in range(self.steps):
            if not uphill.norm() > 0:
                break
            tried = rows + length / uphill.norm() * uphill
            found, ahead = self._slope(target, s, tried)
            if found > best:
                best, rows, uphill, length = found, tried, ahead, 1.5 * length
            else:
                length = length / 2
        return best, rows

    def _slope(self, target: Target, s: Tensor, rows: Tensor) -> tuple[float, Tensor]:
        """The damage of forged rows, and its gradient (f, d)."""
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            done = damage(target(rows), s, self.objective)
            if not done.requires_grad:
                raise Invalid(f"WorstCase: {target.rule!r} gives no gradient: use Adaptive, which needs none")
            return float(done.detach()), torch.autograd.grad(done, rows)[0].nan_to_num()
