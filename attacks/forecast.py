"""What a rule would answer to many forged rows on one line, without running it on all of them.

Rules written as two hooks (weights from the rows' inner products, then a reduction of each column) need little:

- All rows on the line lie in the span of a few known vectors. Their inner products are taken once, in one pass over
  the rows; those of any candidate, and the damage of an answer that is linear in the rows, are small matrices.
- A reduction of columns is tried on a sample of them. A column is taken in proportion to the spread of its honest
  numbers, which is about its share in the damage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Generator, Tensor

from fedsim.attacks.objective import Aim
from fedsim.attacks.vector import deviation
from fedsim.types import Target

SAMPLE = 1024  # columns
BLOCK = 2**18  # numbers in a column block
FAR = -64  # a factor at which a server that clips or squashes messages would show it


@runtime_checkable
class TwoHooks(Protocol):
    """A rule that tells its weights (fedsim.strategies.kernels.base)."""

    @property
    def linear(self) -> bool: ...

    @property
    def stages(self) -> tuple[Any, ...]: ...

    def weights_from_gram(
        self, inner: Tensor, f: int, *, previous: bool, generator: Generator | None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Path:
    """The line of forged rows as the rule sees it: the last n - h of `rows` (n, d) plus t * `step` (n - h, d).

    Vectors are measured from the honest mean s, which keeps the digits of rows that share a large common part: `inner`
    holds the inner products (k, k), float64, of rows - s, steps, previous - s where there is one, and the origin, -s.
    """

    target: Target
    rows: Tensor
    step: Tensor
    straight: bool  # whether what the rule sees really moves on a line
    s: Tensor
    inner: Tensor

    @classmethod
    def through(cls, target: Target, origin: Tensor, direction: Tensor, f: int) -> Path:
        """The path of f forged rows; origin and direction are (d,) where all are the same, or (f, d)."""
        h, some = target.honest, slice(None, None, direction.shape[-1] // 512 + 1)
        far = target.receive(origin.add(direction, alpha=FAR).expand(f, -1))[:, some].clone()
        rows = target.receive(origin.expand(f, direction.shape[-1]))  # when the far ones have left their room
        moved = far - rows[:, some]
        rounding = 1e-4 * moved.abs().max() + 8 * torch.finfo(rows.dtype).eps * rows[:, some].abs().max()

        def straight(step: Tensor) -> bool:
            """Whether the forged rows, and no others, moved FAR * step."""
            still = len(step) == len(moved) - h and not moved[:h].any()
            return still and bool((moved[h:] - FAR * step[:, some]).abs().max() <= rounding)

        step = direction.expand(f, -1)
        on_line = straight(step)
        if not on_line:  # the server does something to messages
            step = target.receive((origin + direction).expand(f, -1))[h:] - rows[h:]
            on_line = straight(step)
        s = target.honest_mean(rows)
        return cls(target, rows, step, on_line, s, _measure(rows, step, target.previous, s))

    def factors(self, bound: float, count: int) -> Tensor:
        """A sorted grid on [-bound, bound], dense where forged rows lie among the honest ones.

        On either side of the factor that is nearest to s, `count` even steps as far as three times the honest rows'
        distance from s, and a quarter as many growing ones from there on.
        """
        n, h = len(self.rows), self.target.honest
        still, step = torch.zeros(2, len(self.inner), dtype=torch.float64)
        still[h:n] = step[n : n + len(self.step)] = 1 / len(self.step)
        length = step @ self.inner @ step
        if not length > 0:
            return torch.zeros(1, dtype=torch.float64)
        centre = (-(still @ self.inner @ step) / length).clamp(-bound, bound)
        unit = (self.inner.diagonal()[:h].mean() / length).sqrt().clamp(1e-6 * bound, bound)
        near = torch.arange(1, count + 1) * (3 * unit / count)
        far = torch.logspace(0, 1, max(1, count // 4) + 1, base=float(2 * bound / (3 * unit)))[1:] * 3 * unit
        side = torch.cat([near, far])
        grid: Tensor = (centre + torch.cat([-side, side.new_zeros(1), side])).clamp(-bound, bound).unique()
        return grid


def _measure(rows: Tensor, step: Tensor, previous: Tensor | None, s: Tensor) -> Tensor:
    """`inner` of a path, block by block in one buffer."""
    n, last = len(rows), [] if previous is None else [previous]
    width = max(64, BLOCK // n)
    total = torch.zeros((), dtype=torch.float64)
    room = rows.new_empty(n + len(step) + len(last) + 1, width)
    for start in range(0, len(s), width):
        at = slice(start, start + width)
        middle = s[at]
        z = room[:, : len(middle)]
        torch.sub(rows[:, at], middle, out=z[:n])
        z[n : n + len(step)] = step[:, at]
        for vector in last:
            torch.sub(vector[at], middle, out=z[-2])
        torch.neg(middle, out=z[-1])
        total = total + (z @ z.T).double().cpu()
    return total


class Forecast:
    """The damages of factors (k,) along a path; exact where the rule is linear in the rows or d is small."""

    @staticmethod
    def knows(path: Path) -> bool:
        """Whether a forecast holds: not among peers, for other rules, noise in columns, or rows that weigh unlike."""
        rule, target = path.target.rule, path.target
        if not isinstance(rule, TwoHooks) or target.topology is not None or target.weights is not None:
            return False
        return path.straight and (rule.linear or not rule.stages[-1].random)

    def __init__(self, path: Path, aim: Aim) -> None:
        self.path, self.aim = path, aim
        self.target, self.inner = path.target, path.inner
        self.rule = cast(TwoHooks, path.target.rule)
        n, h, moving, size = len(path.rows), self.target.honest, len(path.step), len(path.inner)
        # the points that get weights, seen from the origin: fixed + t * moved, in terms of the vectors measured
        points = [*range(n), *range(n + moving, size - 1)]
        self.fixed = torch.eye(size, dtype=torch.float64)
        self.fixed[:, -1] -= 1
        self.fixed = self.fixed[points]
        self.moved = torch.zeros_like(self.fixed)
        self.moved[h:n, n : n + moving] = torch.eye(moving)
        cross = self.fixed @ self.inner @ self.moved.T
        self.powers = (
            self.fixed @ self.inner @ self.fixed.T,
            cross + cross.T,
            self.moved @ self.inner @ self.moved.T,
        )
        self.along, self.square = _against(path, aim)
        if not self.rule.linear:
            at, self.share = _sample(deviation(path.rows[: min(h, 4)], path.s).double().square_())
            self.rows, self.step, self.point = path.rows[:, at], path.step[:, at], aim.point[at]
            self.previous = None if self.target.previous is None else self.target.previous[None, at]

    def __call__(self, factors: Tensor) -> Tensor:
        still, once, twice = self.powers
        t = factors[:, None, None]
        weights = torch.stack([self._weights(inner) for inner in still + t * once + t * t * twice])
        if not self.rule.linear:
            return self._reduced(factors, weights)
        answers = (weights @ (self.fixed + factors[:, None, None] * self.moved))[:, 0]  # from the origin
        if self.aim.against:
            return -(answers @ self.along) / self.square.sqrt()
        answers[:, -1] += 1  # from s
        squares = ((answers @ self.inner) * answers).sum(1) - 2 * answers @ self.along + self.square
        return squares.clamp_min(0).sqrt()

    def _weights(self, inner: Tensor) -> Tensor:
        """What the rule gives to the rows, and to the previous aggregate, at their inner products."""
        drawn = any(stage.random for stage in self.rule.stages)
        generator = Generator(self.path.s.device).manual_seed(self.target.seed) if drawn else None
        previous = self.target.previous is not None
        return self.rule.weights_from_gram(inner, self.target.f, previous=previous, generator=generator)

    def _reduced(self, factors: Tensor, weights: Tensor) -> Tensor:
        """The rule's second hook on the sample of columns, for all factors at once."""
        n, weights = (
            len(self.rows),
            weights.to(self.rows).transpose(0, 1),
        )  # (m, k, ...): as the hook wants its rows
        mixed = weights[:, :, :n] @ self.rows
        along = weights[:, :, self.target.honest : n] @ self.step
        mixed.addcmul_(along, factors.to(along)[:, None])
        if self.previous is not None:
            mixed += weights[:, :, n:] @ self.previous
        reduced: Tensor = self.rule.stages[-1].reduce(mixed.flatten(1), self.target.f)
        answers = reduced.view(len(factors), -1)
        if self.aim.against:
            return -(answers @ (self.point * self.share)).double().cpu() / self.square.sqrt()
        return ((answers - self.point).square() @ self.share).double().cpu().sqrt()


def _against(path: Path, aim: Aim) -> tuple[Tensor, Tensor]:
    """Inner products, float64, of what an aim is measured by with all vectors of a path (k,), and with itself.

    That is the direction, or the point seen from s.
    """
    if aim.point is path.s:  # known already
        nothing = torch.zeros_like(path.inner[-1])
        return (-path.inner[-1], path.inner[-1, -1]) if aim.against else (nothing, nothing[0])
    vector = aim.point if aim.against else aim.point - path.s
    last = [] if path.target.previous is None else [path.target.previous - path.s]
    known = [(path.rows - path.s) @ vector, path.step @ vector, *(v[None] @ vector for v in last)]
    products = torch.cat([*known, (-path.s @ vector)[None]])
    return products.double().cpu(), (vector @ vector).double().cpu()


def _sample(spread: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (m,), and how many columns each stands for; all of them once where they are few.

    Half of the chance by the spread, half evenly, taken at even steps of the cumulated chances: no randomness.
    """
    d = len(spread)
    if d <= SAMPLE:
        return torch.arange(d, device=spread.device), torch.ones(d, device=spread.device)
    chance = spread / (2 * spread.sum()).clamp_min(1e-300) + 1 / (2 * d)
    steps = (torch.arange(SAMPLE, device=spread.device, dtype=torch.float64) + 0.5) / SAMPLE
    at = torch.searchsorted(chance.cumsum(0), steps).clamp_max(d - 1)
    return at, (1 / (SAMPLE * chance[at])).float()
