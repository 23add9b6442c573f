"""The conformance table: each row is a rule or a mixer, its oracle, and what it does not claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import rule_oracles as oracle
import torch
from torch import Tensor

from fedsim.strategies import (
    ARC,
    CAF,
    CGE,
    MDA,
    NNA,
    NNM,
    RFA,
    SMEA,
    Bulyan,
    CenteredClipping,
    Chain,
    Clipping,
    EDiT,
    FLDetector,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Krum,
    MajorityVote,
    Mean,
    MeanAroundMedian,
    Median,
    MultiKrum,
    NoisyMajorityVote,
    NoisyMedian,
    PerLayer,
    Phocas,
    TrimmedMean,
)
from fedsim.types import Rule

PLAIN = ("normal", "far", "constant")
KINDS = (*PLAIN, "ties", "repeated")
ORDER, SHIFT, SCALE, MEAN, FIXED, SLOPE = "order", "shift", "scale", "mean at f = 0", "fixed point", "slope"


@dataclass(frozen=True)
class Claim:
    """A rule or mixer and its oracle. What is not in `lacks` is claimed:

    the answer does not depend on the order of the rows; it shifts and scales with them; with f = 0 it is the mean;
    n copies of a row give that row; the gradient is the slope.
    """

    part: Any
    oracle: Callable[[Any, int], Any]
    lacks: tuple[str, ...] = ()
    kinds: tuple[str, ...] = KINDS  # of rows on which the answer is unique
    tolerance: float = 1e-4  # with float32 rows
    cost: Callable[[Any, int, Any], float] | None = (
        None  # what the answer minimises, where it need not be unique
    )

    def __str__(self) -> str:
        return str(self.part)

    def has(self, claim: str) -> bool:
        return claim not in self.lacks

    def same(self, a: Tensor, b: Any, rows: Tensor, f: int, tolerance: float) -> bool:
        """Whether two answers to rows (n, d) are equal, or equally good."""
        if self.cost is None:
            return close(a, b, rows, tolerance)
        costs = [self.cost(rows.double().numpy(), f, torch.as_tensor(y).double().numpy()) for y in (a, b)]
        return abs(costs[0] - costs[1]) <= tolerance * (max(costs) + len(rows) * _size(rows))


def chain(*steps: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    def run(x: Any, f: int) -> Any:
        for step in steps:
            x = step(x, f)
        return x

    return run


def to_median(x: Any, f: int, y: Any) -> float:
    return float(np.linalg.norm(x - y, axis=1).sum())


def to_mixed_median(x: Any, f: int, y: Any) -> float:
    return to_median(oracle.nnm(x, f), f, y)


TABLE = [
    Claim(Mean(), oracle.mean),
    Claim(Median(), oracle.median, (MEAN,)),
    Claim(Median("lower"), oracle.median_lower, (MEAN,)),
    Claim(TrimmedMean(), oracle.trimmed_mean),
    Claim(MeanAroundMedian(), oracle.mean_around_median, kinds=(*PLAIN, "ties")),
    Claim(Phocas(), oracle.phocas, kinds=PLAIN),
    Claim(NoisyMedian(0.0), oracle.median, (MEAN,)),
    Claim(Krum(), oracle.krum, (MEAN,)),
    Claim(Krum("n-f-1"), oracle.krum_byzfl, (MEAN,)),
    Claim(MultiKrum(), oracle.multi_krum),
    Claim(MultiKrum(m=3), oracle.multi_krum_3, (MEAN,)),
    Claim(
        Bulyan(), oracle.bulyan, (ORDER,)
    ),  # its last picks are among ties: two rows, each the other's nearest
    Claim(GeometricMedian(), oracle.geometric_median, (MEAN,), cost=to_median),
    Claim(RFA(), oracle.rfa, (SCALE, MEAN)),
    Claim(CenteredClipping(1.5, 2), oracle.centered_clipping, (SHIFT, SCALE, MEAN, FIXED)),
    Claim(CGE(), oracle.cge, (SHIFT,)),
    Claim(NNA(0), oracle.nna, (ORDER,)),
    Claim(NNA(), oracle.nna_median, (), PLAIN),
    Claim(MDA(), oracle.mda, (), PLAIN),
    Claim(SMEA(), oracle.smea, (), PLAIN),
    Claim(CAF(), oracle.caf, (SLOPE,), PLAIN, 1e-3),
    Claim(MajorityVote(), oracle.majority_vote, (SHIFT, SCALE, MEAN, FIXED)),
    Claim(NoisyMajorityVote(0.0), oracle.majority_vote, (SHIFT, SCALE, MEAN, FIXED)),
    Claim(FoolsGold("mean"), oracle.fools_gold, (SHIFT, MEAN, SLOPE)),
    Claim(FLDetector(), oracle.median, (MEAN,)),  # in a first round
    Claim(EDiT(), oracle.edit, (SHIFT, SCALE, MEAN, SLOPE)),  # in a first round
    Claim(FLTrust(), oracle.fltrust, (ORDER, SHIFT, MEAN)),
    Claim(Chain(NNM(), Median()), chain(oracle.nnm, oracle.median)),
    Claim(Chain(NNM(), TrimmedMean()), chain(oracle.nnm, oracle.trimmed_mean)),
    Claim(Chain(NNM(), Krum()), chain(oracle.nnm, oracle.krum), (ORDER,), PLAIN),  # mixed rows come in twins
    Claim(
        Chain(NNM(), GeometricMedian()),
        chain(oracle.nnm, oracle.geometric_median),
        kinds=PLAIN,
        cost=to_mixed_median,
    ),
    Claim(
        Chain(Clipping(1.5), NNM(), NNA(0)),
        chain(oracle.clipping, oracle.nnm, oracle.nna),
        (ORDER, SHIFT, SCALE, MEAN, FIXED),
        PLAIN,
    ),
    Claim(Chain(ARC(), Median()), chain(oracle.arc, oracle.median), (SHIFT, MEAN)),
    Claim(PerLayer(Chain(NNM(), Median())), chain(oracle.nnm, oracle.median)),  # all is one layer
    Claim(NNM(), oracle.nnm, (ORDER, MEAN, FIXED)),
    Claim(Clipping(1.5), oracle.clipping, (ORDER, SHIFT, SCALE, MEAN, FIXED)),
    Claim(ARC(), oracle.arc, (ORDER, SHIFT, MEAN, FIXED)),
]
RULES = [claim for claim in TABLE if isinstance(claim.part, Rule)]


def draw(kind: str, n: int, f: int, d: int, seed: int) -> Tensor:
    """Rows (n, d) that are hard on some rule; all are float32 numbers, held in float64."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    if kind == "far":  # f rows far away, close to each other
        x[n - f :] = 1e3 + x[n - f :] * 1e-2
    elif kind == "ties":  # exact in any order of summation
        x = (x * 2).round() / 2
    elif kind == "repeated":
        x = x[torch.arange(n) // 2]
    elif kind == "constant":
        x[:, 0] = 0.25
    return x.double()


def close(a: Tensor, b: Any, rows: Tensor, tolerance: float) -> bool:
    """Equal within a share of the size of the answer or of an ordinary row."""
    b = torch.as_tensor(b, dtype=torch.float64)
    size = max(float(b.abs().max()), _size(rows))
    return a.shape == b.shape and bool((a.double() - b).abs().max() <= tolerance * size)


def _size(rows: Tensor) -> float:
    """The largest entry of an ordinary row."""
    return max(float(rows.abs().amax(1).median()), 1e-30)
