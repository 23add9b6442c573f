"""An adversary that is greedy: Byzantine rows moved by the gradient of the damage that they do in this round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.attacks.adaptive import SCALES, best_factor, damage_along, target_of, worst_of
from fedsim.attacks.objective import Aim, Objective, aim_of
from fedsim.attacks.vector import HONEST, deviation, honest_of
from fedsim.check import Count, Finite, Invalid, Natural
from fedsim.types import Attack, Knowledge, State, Target, View


@dataclass(frozen=True)
class WorstCase(Attack):
    """Gradient ascent on the forged rows (f, d), through the rule, on `objective`, `bound` and `grid` of `Adaptive`.

    A rule's choices (Krum's row, whose neighbour is whose, what is trimmed) pass no gradient, so it starts at the best
    end of four searches along lines through the honest mean: along minus the mean; along minus the standard deviation;
    along the same with, for each coordinate, the sign that does more damage there; along the direction in which honest
    rows spread most. Then `steps` steps, as long as the honest rows' spread at first, half as long after one that did
    not help and longer after one that did. The best rows found are sent. Until the next search, in every `every`-th
    round, they keep their place around the honest mean in units of the spread, or are as much nearer to it, or farther,
    as does most damage then. Raises `Invalid` for a rule without gradient.
    """

    objective: Objective = "reverse"
    steps: Natural = 4
    bound: Finite = 100.0
    grid: Count = 8
    every: Count = 10
    needs: ClassVar[frozenset[Knowledge]] = HONEST | {"rule"}

    def forge(self, view: View) -> Tensor:
        return self.remember(view, {})[0]

    def remember(self, view: View, memory: State) -> tuple[Tensor, State]:
        target, honest = target_of(view), honest_of(view)
        s = honest.mean(0)
        seen = target.receive(s.expand(view.f, -1))
        aim, after = aim_of(self.objective, target.honest_mean(seen), target, memory)
        spread = (honest - s).square().sum(1).mean().sqrt()
        if "off" in memory and len(memory["off"]) == view.f and view.round % self.every:
            off = spread * memory["off"]
            damage, _ = damage_along(view, s, off, aim)
            return s.add(off, alpha=worst_of(damage, SCALES)), after
        rows = self._climb(target, aim, _worst(target, aim, self._ends(view, aim, s)))
        return rows, {**after, "off": (rows - s) / spread.clamp_min(1e-30)} if self.every > 1 else after

    def _ends(self, view: View, aim: Aim, s: Tensor) -> Iterator[Tensor]:
        """Where the searches end."""
        honest, target = honest_of(view), target_of(view)
        spread = -deviation(honest, s)

        def along(direction: Tensor) -> Tensor:
            factor = best_factor(view, s, direction, aim, self.bound, self.grid)
            return s.add(direction, alpha=factor).expand(view.f, -1)

        yield along(-s)
        plain = along(spread)
        yield plain
        gains = [_gains(target, aim, rows) for rows in (plain, 2 * s - plain)]
        away = (plain[0] - s).sign()  # of the coordinates, where the plain start went
        yield along(torch.where(gains[0] >= gains[1], away, -away) * spread.abs())
        off = honest - s
        yield along(torch.linalg.eigh((off @ off.T).double()).eigenvectors[:, -1].to(off) @ off)

    def _climb(self, target: Target, aim: Aim, rows: Tensor) -> Tensor:
        """The rows at the end of the ascent."""
        if not self.steps:
            return rows
        honest = target.receive(rows)[: target.honest]
        length = (honest - honest.mean(0)).square().sum(1).mean().sqrt() * len(rows) ** 0.5
        best, uphill = _slope(target, aim, rows)
        for _ in range(self.steps):
            if not uphill.norm() > 0:
                break
            tried = rows + length / uphill.norm() * uphill
            found, ahead = _slope(target, aim, tried)
            if found > best:
                best, rows, uphill, length = found, tried, ahead, 1.5 * length
            else:
                length = length / 2
        return rows


def _worst(target: Target, aim: Aim, tried: Iterable[Tensor]) -> Tensor:
    """The rows that do most damage."""
    return max(((float(aim(target(rows))), rows) for rows in tried), key=lambda end: end[0])[1]


def _gains(target: Target, aim: Aim, rows: Tensor) -> Tensor:
    """The damage (d,) of forged rows, coordinate by coordinate."""
    answer = target(rows)
    return -answer * aim.point if aim.against else (answer - aim.point).square()


def _slope(target: Target, aim: Aim, rows: Tensor) -> tuple[float, Tensor]:
    """The damage of forged rows, and its gradient (f, d)."""
    with torch.enable_grad():
        rows = rows.detach().requires_grad_()
        done = aim(target(rows))
        if not done.requires_grad:
            raise Invalid(f"WorstCase: {target.rule!r} gives no gradient: use Adaptive, which needs none")
        return float(done.detach()), torch.autograd.grad(done, rows)[0].nan_to_num()
