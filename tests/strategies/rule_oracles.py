"""Every rule and mixer once more, slow and readable, from its paper: rows (n, d) as NumPy float64."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]


def squared(x: Array) -> Array:
    return np.array([[((a - b) ** 2).sum() for b in x] for a in x])


def mean(x: Array, f: int) -> Array:
    return x.mean(0)


def median(x: Array, f: int) -> Array:
    return np.median(x, axis=0)


def median_lower(x: Array, f: int) -> Array:
    return np.sort(x, axis=0)[(len(x) - 1) // 2]


def edit(x: Array, f: int) -> Array:
    """In a first round: weights exp(-length), and the sum clipped to norm 10."""
    length = np.sqrt((x**2).sum(1))
    weights = np.exp(length.min() - length)
    answer: Array = weights / weights.sum() @ x
    return answer * min(1.0, 10.0 / max(float(np.sqrt((answer**2).sum())), 1e-300))


def trimmed_mean(x: Array, f: int) -> Array:
    return np.sort(x, axis=0)[f : len(x) - f].mean(0)


def around(x: Array, centre: Array, keep: int) -> Array:
    """Coordinate-wise mean of the values nearest to the centre; of two equally far the lower one first."""
    out = np.empty(x.shape[1])
    for j, c in enumerate(centre):
        column = sorted(x[:, j], key=lambda value: (abs(value - c), value))
        out[j] = np.mean(column[:keep])
    return out


def mean_around_median(x: Array, f: int) -> Array:
    return around(x, median(x, f), len(x) - f)


def phocas(x: Array, f: int) -> Array:
    return around(x, trimmed_mean(x, f), len(x) - f)


def krum_scores(x: Array, neighbours: int) -> list[float]:
    d = squared(x)
    return [float(np.sort(np.delete(d[i], i))[:neighbours].sum()) for i in range(len(x))]


def krum(x: Array, f: int) -> Array:
    return x[int(np.argmin(krum_scores(x, len(x) - f - 2)))]


def krum_byzfl(x: Array, f: int) -> Array:
    return x[int(np.argmin(krum_scores(x, len(x) - f - 1)))]


def multi_krum(x: Array, f: int) -> Array:
    order = np.argsort(krum_scores(x, len(x) - f - 2), kind="stable")
    return x[order[: len(x) - f]].mean(0)


def multi_krum_3(x: Array, f: int) -> Array:
    order = np.argsort(krum_scores(x, len(x) - f - 2), kind="stable")
    return x[order[:3]].mean(0)


def bulyan(x: Array, f: int) -> Array:
    n, rest, chosen = len(x), list(range(len(x))), []
    for _ in range(n - 2 * f):
        scores = krum_scores(x[rest], max(1, len(rest) - f - 2))
        chosen.append(rest.pop(int(np.argmin(scores))))
    s = x[chosen]
    return around(s, np.median(s, axis=0), n - 4 * f)


def geometric_median(x: Array, f: int) -> Array:
    """The minimum of a convex function: by quasi-Newton from the mean, or the best row where that is lower."""
    best = min(x, key=lambda row: np.linalg.norm(x - row, axis=1).sum())
    scale = np.median(np.abs(x - best)) or 1.0
    z = (x - best) / scale

    def cost(y: Array) -> tuple[float, Array]:
        norms = np.maximum(np.linalg.norm(y - z, axis=1), 1e-12)
        return float(norms.sum()), ((y - z) / norms[:, None]).sum(0)

    found = minimize(cost, np.median(z, axis=0), jac=True, method="BFGS", options={"gtol": 1e-9})
    return best + scale * found.x if found.fun < cost(0 * best)[0] else best


def rfa(x: Array, f: int) -> Array:
    y = x.mean(0)
    for _ in range(3):
        w = 1 / np.maximum(1e-6, np.linalg.norm(x - y, axis=1))
        y = (w[:, None] * x).sum(0) / w.sum()
    return y


def centered_clipping(x: Array, f: int, previous: Array | None = None) -> Array:
    v = np.zeros(x.shape[1]) if previous is None else previous
    for _ in range(2):
        v = v + np.mean([(row - v) * min(1, 1.5 / max(1e-300, np.linalg.norm(row - v))) for row in x], axis=0)
    return v


def cge(x: Array, f: int) -> Array:
    return x[np.argsort(np.linalg.norm(x, axis=1), kind="stable")[: len(x) - f]].mean(0)


def nna(x: Array, f: int, pivot: Array | None = None) -> Array:
    pivot = x[0] if pivot is None else pivot
    return x[np.argsort(((x - pivot) ** 2).sum(1), kind="stable")[: len(x) - f]].mean(0)


def nna_median(x: Array, f: int) -> Array:
    return nna(x, f, geometric_median(x, f))


def majority_vote(x: Array, f: int) -> Array:
    return np.sign(np.sign(x).sum(0))


def fltrust(x: Array, f: int) -> Array:
    root, others = x[0], x[1:]
    norms = np.linalg.norm(others, axis=1)
    trust = np.maximum(0, others @ root / np.maximum(1e-300, norms * np.linalg.norm(root)))
    scaled = others * (np.linalg.norm(root) / np.maximum(1e-300, norms))[:, None]
    return (trust[:, None] * scaled).sum(0) / trust.sum() if trust.sum() else 0 * root


def mda(x: Array, f: int) -> Array:
    d = squared(x)
    subsets = [list(s) for s in combinations(range(len(x)), len(x) - f)]
    return x[min(subsets, key=lambda s: d[np.ix_(s, s)].max())].mean(0)


def top_eigenvalue(x: Array) -> float:
    z = x - x.mean(0)
    return float(np.linalg.eigvalsh(z.T @ z)[-1]) / len(x)


def smea(x: Array, f: int) -> Array:
    subsets = [list(s) for s in combinations(range(len(x)), len(x) - f)]
    return x[min(subsets, key=lambda s: top_eigenvalue(x[s]))].mean(0)


def caf(x: Array, f: int) -> Array:
    n, c, least, answer = len(x), np.ones(len(x)), np.inf, x.mean(0)
    while c.sum() > n - 2 * f:
        mu = (c[:, None] * x).sum(0) / c.sum()
        z = x - mu
        values, vectors = np.linalg.eigh((c[:, None] * z).T @ z / c.sum())
        if values[-1] < least:
            least, answer = values[-1], mu
        t = (z @ vectors[:, -1]) ** 2
        if not t[c > 0].max():
            break
        c[c > 0] *= 1 - t[c > 0] / t[c > 0].max()
    return answer


def nnm(x: Array, f: int) -> Array:
    d = squared(x)
    np.fill_diagonal(d, -1)
    return np.array([x[np.argsort(row, kind="stable")[: len(x) - f]].mean(0) for row in d])


def clipping(x: Array, f: int) -> Array:
    norms = np.linalg.norm(x, axis=1)
    return x * np.minimum(1, 1.5 / np.maximum(1e-300, norms))[:, None]


def arc(x: Array, f: int) -> Array:
    n, norms = len(x), np.linalg.norm(x, axis=1)
    tau = np.sort(norms)[n - int(np.floor(2 * f * (n - f) / n)) - 1]
    return x * np.minimum(1, tau / np.maximum(1e-300, norms))[:, None]


def fools_gold_weights(h: Array, confidence: float = 1.0) -> Array:
    """arXiv:1808.04866, algorithm 1, number by number: the weights of histories h (k, d); ones where all are 0."""
    k = len(h)
    cs = np.zeros((k, k))
    for i in range(k):
        for j in range(k):
            if i != j and h[i].any() and h[j].any():
                cs[i, j] = h[i] @ h[j] / np.linalg.norm(h[i]) / np.linalg.norm(h[j])
    m = cs.max(1)
    pardoned = cs.copy()
    for i in range(k):
        for j in range(k):
            if i != j and m[i] < m[j]:
                pardoned[i, j] = cs[i, j] * m[i] / m[j]
    w = np.clip(1 - pardoned.max(1), 0, 1)
    w[w < 1e-9] = 0
    if not w.any():
        return np.ones(k)
    w = w / w.max()
    w[w == 1] = 0.99
    with np.errstate(divide="ignore"):
        w = np.clip(confidence * (np.log(w / (1 - w)) + 0.5), 0, 1)
    return w if w.any() else np.ones(k)


def fools_gold(x: Array, f: int) -> Array:
    w = fools_gold_weights(x)
    return w @ x / w.sum()
