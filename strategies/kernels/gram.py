"""Where the rows lie to each other: all that a distance rule may know, in float64 and on the CPU.

A common part would take the digits of small differences, so inner products are taken around one of the rows.
The mean will not do as centre, since one huge row drags it away; a row from the middle of the majority does.

Two things hold exactly, whatever a BLAS makes of a product, since rules count and compare: the matrices are symmetric,
and points that are one and the same have distance 0 and equal distances to all others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from math import inf

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.strategies.kernels.columns import Rows, each_block, scratch
from fedsim.types import Kept

ORIGIN, PREVIOUS = "origin", "previous"


class BrokenRows(ArithmeticError):
    """Something was not finite on the way: rows with NaN or Inf, or numbers too large for float32."""


class Gram:
    """n rows and their anchors (extra points: the previous aggregate, the origin) as points of a space."""

    def __init__(
        self,
        n: int,
        anchors: tuple[str, ...],
        measure: Callable[[], tuple[Tensor, Tensor]],
        *,
        ids: list[int] | None = None,
        seed: int = 0,
        near: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.n = n
        self.anchors = anchors
        self.ids = (
            list(range(n)) if ids is None else ids
        )  # the places of the rows before broken ones were dropped
        self.seed = seed  # of a random mixer's draw
        self.read = False  # whether all rows were looked at, and so are finite
        self._measure = measure
        self._near = near

    @cached_property
    def _measured(self) -> tuple[Tensor, Tensor]:
        measured = self._measure()
        self.read = True
        return measured

    @property
    def inner(self) -> Tensor:
        """Inner products (k, k) of all points around some one of them."""
        return self._measured[0]

    @property
    def squared(self) -> Tensor:
        """Squared distances (k, k) of all points."""
        return self._measured[1]

    @property
    def distances(self) -> Tensor:
        """Squared distances (n, n) of the rows."""
        return self.squared[: self.n, : self.n]

    def to(self, point: int) -> Tensor:
        """Squared distances (n,) of the rows to one point: the cheap way, where a rule needs no more."""
        if self._near is None:
            return self.squared[point, : self.n]
        near = self._near(point)
        self.read = True
        return near

    def to_mixture(self, w: Tensor) -> Tensor:
        """Squared distances (n,) of the rows to sum_j w_j p_j, for weights (n,) or (k,) with sum 1."""
        w = self.padded(w[None])[0]
        along = self.inner @ w
        return (self.inner.diagonal() - 2 * along + w @ along).clamp_min(0)[: self.n]

    def point(self, anchor: str) -> int:
        """The index of an anchor; the previous aggregate is the origin where there is none."""
        return self.n + self.anchors.index(anchor if anchor in self.anchors else ORIGIN)

    def place(self, row: int) -> int:
        """Where an original row is now; where it was dropped, the next one that is left."""
        return min(range(self.n), key=lambda i: (self.ids[i] < row, self.ids[i]))

    def unit(self, point: int) -> Tensor:
        """Weights (k,) that are one point."""
        one = torch.zeros(self.n + len(self.anchors), dtype=torch.float64)
        one[point] = 1
        return one

    def padded(self, weights: Tensor) -> Tensor:
        """Weights (m, n) as (m, k), none on the anchors."""
        lack = self.n + len(self.anchors) - weights.shape[1]
        return pad(weights, (0, lack)) if lack else weights

    def completed(self, weights: Tensor) -> Tensor:
        """Weights (m, n) as (m, k), with what they lack of sum 1 on the origin."""
        rest = (1 - weights.sum(1))[:, None]
        if len(self.anchors) == 1:
            return torch.cat([weights, rest], 1)
        full = self.padded(weights).clone()
        full[:, self.point(ORIGIN)] += rest[:, 0]
        return full

    def step(self, weights: Tensor) -> Tensor:
        """Weights (m, n) or (m, k) of a mixer as the map (m + anchors, k) of all points."""
        if not self.anchors:
            return weights
        anchors = torch.eye(self.n + len(self.anchors), dtype=torch.float64)[self.n :]
        return torch.cat([self.padded(weights), anchors])

    def mixed(self, step: Tensor) -> Gram:
        """The points after such a map; rows of weights must have sum 1."""

        def measure() -> tuple[Tensor, Tensor]:
            inner = merged(symmetric(step @ self.inner @ step.T), self._twins(step))
            return inner, squared_distances(inner)

        return Gram(len(step) - len(self.anchors), self.anchors, measure, seed=self.seed + 1)

    def _twins(self, step: Tensor) -> Tensor:
        """For each point after a map the first that is the same: of equal weights, those of equal points added up."""
        one = (self.squared.detach() == 0).int().argmax(1)
        weights = torch.zeros_like(step).index_add_(1, one, step.detach())
        first: dict[bytes, int] = {}
        return torch.tensor([first.setdefault(row.tobytes(), i) for i, row in enumerate(weights.numpy())])


def squared_distances(inner: Tensor) -> Tensor:
    """||p_i - p_j||^2 (k, k) from inner products."""
    norms = inner.diagonal()
    return (norms[:, None] + norms[None] - 2 * inner).clamp_min(0).fill_diagonal_(0)


def symmetric(inner: Tensor) -> Tensor:
    """Inner products (k, k) of which a BLAS rounded p_i p_j and p_j p_i each in its own way."""
    return (inner + inner.T) / 2


def merged(pairs: Tensor, first: Tensor) -> Tensor:
    """Numbers (k, k) of pairs of points, where those of i are those of first[i] (k,); the gradients stay those of i."""
    if torch.equal(first, torch.arange(len(first))):
        return pairs
    values = pairs.detach()[first[:, None], first]
    return values + (pairs - pairs.detach()) if pairs.requires_grad else values


def given(inner: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products and squared distances (k, k) of points known by their inner products alone.

    Points nearer to each other than these can tell are one.
    """
    inner = symmetric(inner)
    near = squared_distances(inner.detach()) <= 8 * _rounding(inner, inner.dtype)
    inner = merged(inner, near.int().argmax(1))
    return inner, squared_distances(inner)


# ---------------------------------------------------------------- measuring
class Points:
    """Rows and anchor vectors (None is the origin), measured block by block.

    With `kept`, where one row has changed and anchors are the origin, that row's inner products alone are taken again.
    """

    def __init__(self, rows: Rows, anchors: list[Tensor | None], kept: Kept | None = None) -> None:
        self.rows = rows
        self.anchors = anchors
        self.kept = kept

    def measure(self) -> tuple[Tensor, Tensor]:
        """Inner products (k, k) around a point in the middle; squared distances, right to 1e-4 each."""
        dtype = self.rows.data.dtype
        inner = self._with_one_changed()
        if inner is not None:
            best, off, radius = self._middle(inner)
            held = dtype != torch.float32 or _representable(radius, self.rows.d)
            if inner.isfinite().all() and held and not off:
                return self._refined(inner, squared_distances(inner), dtype)
        centre = self._first_centre()
        while True:
            inner = self._inner(centre, dtype)
            if dtype == torch.float32 and not inner.isfinite().all():
                dtype = torch.float64
                continue
            best, off, radius = self._middle(inner)
            if off and centre != best:
                centre = best  # the last one is outside of the middle, and took digits
            elif dtype == torch.float32 and not _representable(radius, self.rows.d):
                dtype = torch.float64
            else:
                self._keep(inner, centre, dtype)
                return self._refined(inner, squared_distances(inner), dtype)

    def _middle(self, inner: Tensor) -> tuple[int, bool, Tensor]:
        """The row with half the rows nearest around it, whether the centre is far outside, and that ball's radius^2."""
        n, inner = self.rows.n, inner.detach()
        radius = squared_distances(inner)[:n, :n].sort(1).values[:, n // 2]
        best = int(radius.argmin())
        return best, bool(inner.diagonal()[:n].sort().values[n // 2] > 100 * radius[best]), radius[best]

    def _keep(self, inner: Tensor, centre: int | None, dtype: torch.dtype) -> None:
        """Inner products, and around what, for the next time; none where they took more than the rows' digits."""
        if self.kept is None:
            return
        self.kept.new.clear()
        if dtype == self.rows.data.dtype:
            self.kept.new["inner"] = inner.clone()
            if centre is not None:
                self.kept.new["centre"] = self._vector(centre, slice(0, self.rows.d)).clone()

    def _with_one_changed(self) -> Tensor | None:
        """The inner products that were kept, with those of the changed row taken again; None where there are none."""
        kept, n, k = self.kept, self.rows.n, self.rows.n + len(self.anchors)
        inner = None if kept is None else kept.of("inner", k, k)
        if kept is None or kept.changed is None or inner is None:
            return None
        changed, centre = kept.changed, kept.old.get("centre")

        def work(columns: slice) -> Tensor:
            z = self.rows.block(columns)
            if centre is None:
                return pad(z @ z[changed], (0, k - n))
            middle = centre[columns]
            z = torch.sub(z, middle, out=scratch(z, *z.shape))
            return torch.cat([z @ z[changed], -(middle @ z[changed]).expand(k - n)])

        line = self._sum(work, self.rows.wide)
        inner[changed], inner[:, changed] = line, line
        kept.new |= kept.old
        return inner.clone()

    def near(self, point: int) -> Tensor:
        """Squared distances (n,) of the rows to one point."""
        total = self._near(point, self.rows.data.dtype)
        others = total.detach()[torch.arange(self.rows.n) != point] if point < self.rows.n else total.detach()
        if self.rows.data.dtype == torch.float32 and not _representable(others, self.rows.d):
            total = self._near(point, torch.float64)
        return total

    def _first_centre(self) -> int | None:
        """The origin (None), or the row nearest to the median where nearly all is common part; by a sample."""
        n, step = self.rows.n, max(16, self.rows.d // 16)
        z = self.rows.data.detach()
        if self.rows.d >= 16:
            z = z[:, : self.rows.d // step * step].unflatten(1, (-1, step))[..., :16].flatten(1)
        z = z if self.rows.ids is None else z[self.rows.ids]
        sample = z.cpu().double().numpy()
        with np.errstate(all="ignore"):
            median = np.sort(sample.T, axis=1)[:, (n - 1) // 2]
            row = int(np.square(sample - median).sum(1).argmin())
            around, far = (np.sort(np.square(sample - c).sum(1))[n // 2] for c in (sample[row], 0))
        return row if far > 16 * around else None

    def _refined(self, inner: Tensor, squared: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Equal rows made one point; the squared distances of close points far from the centre measured anew."""
        error, same = _rounding(inner, dtype), torch.arange(len(inner))
        while True:
            lost = squared.detach() * 1e-4 < error
            if not lost.any():
                return merged(inner, same), merged(squared, same)
            first = int(lost.sum(1).argmax())
            near = lost[first].nonzero()[:, 0]
            twins = torch.tensor([first, *(j for j in near.tolist() if self._equal(first, j))])
            if len(twins) > 1:  # as attackers that collude send them
                group, anew, errors = twins, torch.zeros(()).double(), torch.zeros(()).double()
                same[group] = group.min()
            else:
                group = torch.cat([twins, near]).sort().values
                around = self._inner(first, torch.float64, group)
                anew, errors = squared_distances(around), _rounding(around, torch.float64)
            at = (group[:, None], group[None])
            squared, error = squared.index_put(at, anew), error.index_put(at, errors)

    def _equal(self, first: int, second: int) -> bool:
        if max(first, second) >= self.rows.n:
            return False
        a, b = (self.rows.row(i, slice(0, self.rows.d)).detach() for i in (first, second))
        return np.array_equal(a.numpy(), b.numpy()) if a.device.type == "cpu" else torch.equal(a, b)

    def _inner(self, centre: int | None, dtype: torch.dtype, members: Tensor | None = None) -> Tensor:
        """Inner products of some points (all if None) around one of them, or around the origin."""
        if members is None:
            rows, extra = self.rows, list(range(self.rows.n, self.rows.n + len(self.anchors)))
        else:
            rows = self.rows.take(members[members < self.rows.n])
            extra = members[members >= self.rows.n].tolist()

        others = [] if centre is None and all(map(self._is_origin, extra)) else extra  # which are no zeros

        def work(columns: slice) -> Tensor:
            z = rows.block(columns).to(dtype)
            middle = None if centre is None else self._vector(centre, columns).to(dtype)
            if middle is not None:
                z = z - middle if rows.traced else torch.sub(z, middle, out=scratch(z, *z.shape))
            if not others:
                return z @ z.T
            more = torch.stack([self._vector(i, columns).to(dtype) for i in others])
            more = more if middle is None else more - middle
            across = z @ more.T
            return torch.cat([torch.cat([z @ z.T, across], 1), torch.cat([across, more @ more.T]).T])

        inner = symmetric(self._sum(work, self.rows.wide))
        return inner if others else pad(inner, (0, len(extra), 0, len(extra)))

    def _near(self, point: int, dtype: torch.dtype) -> Tensor:
        def work(columns: slice) -> Tensor:
            z = self.rows.block(columns).to(dtype)
            if not self._is_origin(point):
                other = self._vector(point, columns).to(dtype)
                z = z - other if self.rows.traced else torch.sub(z, other, out=scratch(z, *z.shape))
            norms: Tensor = torch.linalg.vector_norm(z, dim=1)
            return norms.double().square()

        return self._sum(work, self.rows.streamed if self._is_origin(point) else None)

    def _vector(self, point: int, columns: slice) -> Tensor:
        if point < self.rows.n:
            return self.rows.row(point, columns)
        anchor = self.anchors[point - self.rows.n]
        return self.rows.data.new_zeros(columns.stop - columns.start) if anchor is None else anchor[columns]

    def _is_origin(self, point: int) -> bool:
        return point >= self.rows.n and self.anchors[point - self.rows.n] is None

    def _sum(self, work: Callable[[slice], Tensor], width: int | None = None) -> Tensor:
        """The sum over all blocks in float64, on the CPU, where small matrices are quick."""
        parts = each_block(self.rows, lambda columns: work(columns).double().cpu(), width)
        total = next(parts)
        for part in parts:  # by NumPy: torch would wake threads of its own beside those of the blocks
            np.add(total.numpy(), part.numpy(), out=total.numpy())
        if not self.rows.finite and not np.isfinite(total.detach().numpy()).all():
            raise BrokenRows
        return total


def _rounding(inner: Tensor, dtype: torch.dtype) -> Tensor:
    """Errors (k, k) of the squared distances that follow from inner products taken in a dtype."""
    norms = inner.detach().diagonal()
    return ((norms[:, None] + norms[None]) * torch.finfo(dtype).eps).fill_diagonal_(0)


def _representable(squares: Tensor, d: int) -> bool:
    """Whether sums of d float32 squares kept their digits: no overflow, no numbers next to the smallest."""
    if squares.numel() == 0:
        return True
    least, most = squares.aminmax()
    return 1e-30 * d < float(least) and float(most) < inf
