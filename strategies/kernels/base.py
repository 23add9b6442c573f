"""The one form of every rule and mixer: two hooks, and a loop over column blocks that serves them all.

    weights(gram, f) -> (m, n)         distance rules and mixers: the new rows as combinations of the old ones
    reduce(block (m, b), f) -> (b,)    coordinate rules: one column block at a time

A chain multiplies its weights, since the Gram matrix of mixed rows is W G W', and reduces block by block: two
passes over the rows, however long the chain, and no mixed copy of them.

Rows with NaN or Inf are dropped before the first hook. They count as Byzantine: n and f shrink by
their number (f not below 0), and the rule answers from the rest; where nothing is left it answers 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from fedsim.check import Invalid
from fedsim.machine.threads import one_thread
from fedsim.strategies.kernels.columns import Rows, sparse
from fedsim.strategies.kernels.gram import ORIGIN, PREVIOUS, BrokenRows, Gram, Points, given
from fedsim.strategies.kernels.mixed import Mixed
from fedsim.types import Kept, Mixer, Rule

T = TypeVar("T")
MANY = 8  # entries to a weight that is not zero: from so many on zeros are skipped
LOOKED_AT = 2**12  # columns that tell the weight of a row


class Stage:
    """What a rule and a mixer have in common: one step of a chain."""

    random: ClassVar[bool] = False

    @property
    def anchors(self) -> tuple[str, ...]:
        """Points beside the rows that `weights` needs: ORIGIN (for norms), PREVIOUS (the last aggregate)."""
        return ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (self,)

    def weights(self, gram: Gram, f: int) -> Tensor | None:
        """Weights (m, n) or (m, n + anchors), float64, each row with sum 1; None leaves all as it is."""
        return None

    def max_f(self, n: int) -> int:
        """The largest f that is defined among n rows: f < n / 2, unless the rule says otherwise."""
        return (n - 1) // 2

    def count(self, n: int) -> int:
        """The number of rows that come out."""
        return n

    def require(self, n: int, f: int) -> None:
        """Raise `Invalid` where f of n rows are more than a stage can take."""
        for stage in self.stages:
            most = stage.max_f(n)
            if not 0 <= f <= most:
                allowed = f"from 0 to {most}" if most >= 0 else "nothing: too few rows"
                raise Invalid(f"{type(stage).__name__}: f = {f} with n = {n}: allowed is {allowed}")
            n = stage.count(n)

    @one_thread()
    def weights_from_gram(
        self, inner: Tensor, f: int = 0, *, previous: bool = False, generator: Generator | None = None
    ) -> Tensor:
        """Weights (m, n) of n rows of which only the inner products `inner` (n, n) are known; all float64.

        Of a rule that is linear in the rows (`linear`) m = 1, and its answer is weights @ rows. Where a
        coordinate rule ends a chain these are the mixing weights before it. With `previous` the last of n + 1
        points is the previous aggregate, and the weights are (m, n + 1).
        """
        n = len(inner) - previous
        self.require(n, f)
        anchors: tuple[str, ...] = (PREVIOUS,) if previous else ()
        if self.anchors:
            inner, anchors = pad(inner, (0, 1, 0, 1)), (*anchors, ORIGIN)
        gram = Gram(n, anchors, lambda: given(inner), seed=_seed(self, generator))
        weights = self.weights(gram, f)
        weights = torch.eye(n, dtype=torch.float64) if weights is None else weights
        return gram.padded(weights)[:, : n + previous]

    def influence(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The weight (n,), float64, of each row in the answer, a mean over columns; 0 where dropped.

        Of more than 2^13 columns every k-th is looked at, so many that 2^12 or more are.
        """
        n, d = rows.shape
        self.require(n, f)
        columns = slice(0, d, max(1, d // LOOKED_AT))

        def measure(mixed: Mixed, f: int) -> Tensor:
            if not mixed.rows.finite and not isfinite(mixed.rows.data.sum()):
                raise BrokenRows
            block = mixed.block(columns)
            shares = self.stages[-1].row_influence(block, f).double().cpu() / block.shape[1]
            if mixed.weights is not None:
                weights = mixed.weights.to_dense().double().cpu()
                shares = shares * weights if weights.dim() == 1 else shares @ weights
            at = torch.arange(n) if mixed.rows.ids is None else mixed.rows.ids.cpu()
            return torch.zeros(n, dtype=torch.float64).index_add(0, at, shares)

        nothing = partial(torch.zeros, n, dtype=torch.float64)
        return solve(self, rows.detach(), f, previous, generator, measure, nothing)

    def row_influence(self, block: Tensor, f: int) -> Tensor:
        """The weight (m,) of each mixed row in the answers at a block's columns, summed over these."""
        return block.new_full((len(block),), block.shape[1] / len(block))


class TwoHookRule(Stage, Rule):
    """A rule written as `weights`, `reduce`, or both."""

    @property
    def linear(self) -> bool:
        """Whether the answer is a combination of rows with one weight for all columns."""
        last = type(self.stages[-1])
        return issubclass(last, TwoHookRule) and last.reduce is TwoHookRule.reduce

    def kappa(self, n: int, f: int) -> float | None:
        """A proven bound of ||F(x) - mean_S||^2 over the mean of ||x_i - mean_S||^2 in S, for every S of n - f rows.

        That is (f, kappa)-robustness, Definition 2 of arXiv:2302.01772; None where no bound is proven.
        """
        return None

    def reduce(self, block: Tensor, f: int) -> Tensor:
        """The answer (b,) at b columns of the mixed rows (m, b), which it may overwrite; here, row 0."""
        return block[0]

    def row_influence(self, block: Tensor, f: int) -> Tensor:
        with torch.enable_grad():
            block = block.detach().requires_grad_()
            return torch.autograd.grad(self.reduce(block, f).sum(), block)[0].sum(1)

    def __call__(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        return self._answered(rows, f, previous, generator, None)

    def of_table(
        self, rows: Tensor, f: int, kept: Kept, *, previous: Tensor | None, generator: Generator | None
    ) -> Tensor:
        if type(self).__call__ is not TwoHookRule.__call__:
            return self(rows, f, previous=previous, generator=generator)
        return self._answered(rows, f, previous, generator, kept)

    def _answered(
        self, rows: Tensor, f: int, previous: Tensor | None, generator: Generator | None, kept: Kept | None
    ) -> Tensor:
        self.require(checked(rows), f)
        nothing = partial(rows.new_zeros, rows.shape[1])
        return solve(self, rows, f, previous, generator, self.answer, nothing, kept)

    def answer(self, mixed: Mixed, f: int) -> Tensor:
        """The answer (d,), block by block.

        Where all but f mixed rows are one and the same, a rule with a proven `kappa` answers that row: so its
        definition has it, as these rows have no variance. Behind NNM this is so whenever Byzantine rows are far off.
        """
        if type(self).reduce is TwoHookRule.reduce:
            return mixed.row()
        common = None if self.kappa(mixed.m, f) is None else mixed.common(mixed.m - f)
        if common is not None:
            return common.row()
        return mixed.vector(lambda block, columns: self.reduce(block, f))


class TwoHookMixer(Stage, Mixer):
    """A mixer written as `weights`."""

    def kappa(self, n: int, f: int, behind: float) -> float | None:
        """The proven coefficient of this mixer and a rule of coefficient `behind`; None where none is proven."""
        return None

    def __call__(self, rows: Tensor, f: int = 0, *, generator: Generator | None = None) -> Tensor:
        self.require(checked(rows), f)
        nothing = partial(rows.new_zeros, 0, rows.shape[1])
        return solve(self, rows, f, None, generator, lambda mixed, f: mixed.matrix(), nothing)


@dataclass(frozen=True, init=False)
class Chain(TwoHookRule):
    """Mixers, then a rule: `Chain(NNM(), Median())`. Itself a rule; all parts see the same f."""

    parts: tuple[Mixer | Rule, ...]

    def __init__(self, *parts: Mixer | Rule) -> None:
        object.__setattr__(self, "parts", parts)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts or not isinstance(self.parts[-1], Rule):
            raise Invalid("Chain: the last part must be a rule, as in Chain(NNM(), Median())")
        if not all(isinstance(part, Mixer) for part in self.parts[:-1]):
            raise Invalid("Chain: all parts but the last must be mixers, as in Chain(NNM(), Median())")
        if not all(isinstance(part, Stage) for part in self.parts):
            raise Invalid("Chain: all parts must be written as two hooks (fedsim.strategies.kernels.base)")

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for part in self.parts if isinstance(part, Stage) for stage in part.stages)

    @property
    def anchors(self) -> tuple[str, ...]:
        return tuple(anchor for stage in self.stages for anchor in stage.anchors)

    def weights(self, gram: Gram, f: int) -> Tensor | None:
        """The product of the weights of all stages."""
        total = None
        for stage in self.stages:
            weights = stage.weights(gram, f)
            if weights is not None:
                step = gram.step(weights)
                total, gram = (step if total is None else step @ total), gram.mixed(step)
        return None if total is None else total[: gram.n]

    def max_f(self, n: int) -> int:
        counts = [n]
        for stage in self.stages:
            counts.append(stage.count(counts[-1]))
        return min(stage.max_f(m) for stage, m in zip(self.stages, counts, strict=False))

    def kappa(self, n: int, f: int) -> float | None:
        coefficient = self._last.kappa(n, f)
        for stage in reversed(self.stages[:-1]):
            if coefficient is not None:
                assert isinstance(stage, TwoHookMixer)
                coefficient = stage.kappa(n, f, coefficient)
        return coefficient

    def answer(self, mixed: Mixed, f: int) -> Tensor:
        return self._last.answer(mixed, f)

    @property
    def _last(self) -> TwoHookRule:
        last = self.stages[-1]
        assert isinstance(last, TwoHookRule)
        return last


# ---------------------------------------------------------------- the loop
@one_thread()
def solve(
    stage: Stage,
    rows: Tensor,
    f: int,
    previous: Tensor | None,
    generator: Generator | None,
    finish: Callable[[Mixed, int], T],
    nothing: Callable[[], T],
    kept: Kept | None = None,
) -> T:
    """`finish` of the mixed rows and f; where rows turn out to be broken, once more without them, and none is kept."""
    usable = Rows(rows)
    usable = usable if usable.traced or not rows.requires_grad else Rows(rows.detach())
    seed = _seed(stage, generator)
    while True:
        try:
            return finish(_mix(stage, usable, f, previous, seed, kept), f)
        except BrokenRows:
            if kept is not None:
                kept.new.clear()
                kept = None
            usable = usable.without_broken()
            f = max(0, f - (len(rows) - usable.n))
            if usable.n == 0:
                return nothing()


def _mix(
    stage: Stage, rows: Rows, f: int, previous: Tensor | None, seed: int, kept: Kept | None = None
) -> Mixed:
    needed, anchors = stage.anchors, dict[str, Tensor | None]()
    if PREVIOUS in needed and previous is not None:
        anchors[PREVIOUS] = previous
    if set(needed) - set(anchors):
        anchors[ORIGIN] = None
    plain = not rows.traced and all(anchor is None for anchor in anchors.values())
    points = Points(rows, list(anchors.values()), kept if plain else None)
    once = sum(type(part).weights is not Stage.weights for part in stage.stages) == 1
    gram = Gram(
        rows.n,
        tuple(anchors),
        points.measure,
        ids=None if rows.ids is None else rows.ids.tolist(),
        seed=seed,
        near=points.near if once else None,
    )
    weights = stage.weights(gram, f)
    if gram.read and not rows.finite:
        rows = Rows(rows.data, rows.ids, finite=True)
    if weights is None:
        return Mixed(rows, None, seed)
    own = weights[:, : rows.n] if anchors else weights
    mix = own.to(rows.data)
    if PREVIOUS in anchors and previous is not None:
        return Mixed(rows, mix, seed, (weights[:, rows.n : rows.n + 1].to(rows.data), previous))
    held = own.detach().numpy()
    count = np.count_nonzero(held)
    if held.shape == (rows.n, rows.n) and count == np.count_nonzero(held.diagonal()):
        return Mixed(rows, mix.diag(), seed)
    used = np.flatnonzero(held.any(0))
    if rows.traced or not len(used):
        return Mixed(rows, mix, seed)
    if len(used) <= rows.n / 2:  # what weighs nothing is not read again
        members = torch.from_numpy(used)
        rows, mix = rows.take(members), mix[:, members.to(mix.device)]
    elif MANY * count <= held.size and mix.device.type == "cpu":
        mix = sparse(mix)
    return Mixed(rows, mix, seed)


def _seed(stage: Stage, generator: Generator | None) -> int:
    """A seed from the generator (None: torch's own), which is left alone where nothing will be drawn."""
    if not any(part.random for part in stage.stages):
        return 0
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def checked(rows: Tensor) -> int:
    """n of rows (n, d); raises `Invalid` where they are none."""
    if rows.dim() != 2 or 0 in rows.shape or rows.dtype not in (torch.float32, torch.float64):
        raise Invalid(f"rows of shape {tuple(rows.shape)}, {rows.dtype}: must be (n, d), float32 or float64")
    return len(rows)
