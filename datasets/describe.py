"""What a split looks like: counts, and how different its clients are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["Heterogeneity", "counts", "heterogeneity", "table"]


def counts(labels: NDArray[np.int64], shards: list[NDArray[np.int64]], classes: int) -> NDArray[np.int64]:
    """Examples of each class at each client, (n, classes); (n, 1), of all, where examples are not of one class each."""
    if not classes or labels.ndim > 1 or labels.dtype.kind not in "iu":
        return np.array([[len(shard)] for shard in shards], np.int64)
    return np.stack([np.bincount(labels[shard], minlength=classes) for shard in shards])


def table(labels: NDArray[np.int64], shards: list[NDArray[np.int64]], classes: int) -> pd.DataFrame:
    """`counts` as a frame: a row a client, a column a class, and the number of examples in all."""
    frame = pd.DataFrame(counts(labels, shards, classes))
    frame = frame if frame.shape[1] > 1 or classes == 1 else frame.rename(columns={0: "all"})
    frame.index.name, frame.columns.name = "client", "class"
    frame["examples"] = frame.sum(axis=1)
    return frame


@dataclass(frozen=True)
class Heterogeneity:
    """How unlike n clients are, from p_i, the shares of the classes at client i, and p, the plain mean of the
    p_i.

    entropy (n,): H(p_i) in bits; log2(classes) where all classes are equally common, 0 where there is one
    class. variation: mean over pairs of clients of the total variation distance, sum_c |p_ic - p_jc| / 2, in
    [0, 1]. divergence: generalised Jensen-Shannon divergence H(p) - mean_i H(p_i) in bits, in [0,
    log2(classes)]. imbalance: the standard deviation of the clients' numbers of examples over their mean.
    """

    entropy: NDArray[np.float64]
    variation: float
    divergence: float
    imbalance: float


def heterogeneity(labels: NDArray[np.int64], shards: list[NDArray[np.int64]], classes: int) -> Heterogeneity:
    """The heterogeneity of a split's labels; clients without examples (Byzantine ones) do not count."""
    held = counts(labels, [shard for shard in shards if len(shard)], classes)
    sizes = held.sum(1)
    shares = held / sizes[:, None]
    entropy = _entropy(shares)
    return Heterogeneity(
        entropy=entropy,
        variation=_mean_pairwise_variation(shares),
        divergence=float(_entropy(shares.mean(0)) - entropy.mean()),
        imbalance=float(sizes.std() / sizes.mean()),
    )


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(-1)) + 0.0  # no -0.0


def _mean_pairwise_variation(shares: NDArray[np.float64]) -> float:
    """In sorted order, value k of n is added in k and subtracted in n - 1 - k of the pairs: no (n, n)
    table.
    """
    n = len(shares)
    if n < 2:
        return 0.0
    signs = 2.0 * np.arange(n) - (n - 1)
    return float((signs @ np.sort(shares, axis=0)).sum() / 2 / (n * (n - 1) / 2))
