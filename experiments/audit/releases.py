"""What an audit saw of the noisy releases of many clients, and how likely that is where everything is right.

Every test gives a p-value: the chance that a correct run looks at least so bad. Noise is in units of what was booked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, binom, chi2, kstest, norm
from torch import Tensor

Floats = NDArray[np.float64]
SAMPLE = 64  # coordinates of a release that are kept
PAIRED = 8  # releases in which all pairs of clients are compared
ROUNDING = 1e-3  # by so much single precision may carry a release beyond its sensitivity


@dataclass
class Evidence:
    """Filled while clients work: `scores` (runs,), where a high one speaks for heads, and what the tests below need."""

    runs: int
    rounds: int
    steps: int
    width: int
    chance: float  # that an example is in a batch, where that amplifies; otherwise 1
    furthest: float = 0.0  # how far the canary moved a release, over the booked sensitivity
    scores: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.zeros(self.runs)
        self.by_client, self.by_coordinate = np.zeros(self.runs), np.zeros(self.width)
        self.times, self.draws = np.zeros(self.runs, np.int64), np.zeros((2, self.runs), np.int64)
        self.last = np.zeros(self.runs, bool)
        self.both = np.zeros(
            2, np.int64
        )  # pairs of draws that follow one another, and those that both have it
        every = -(-self.width // SAMPLE)
        self.columns = slice(every // 2, None, every)
        self.samples: dict[tuple[int, int], NDArray[np.float32]] = {}

    def moved(self, ratio: float) -> None:
        self.furthest = max(self.furthest, ratio)

    def drawn(self, ids: NDArray[np.int64], here: NDArray[np.bool_]) -> None:
        """Whether the canary was in one more batch of clients `ids`."""
        second = self.draws[0, ids] % 2 == 1
        self.both += int(second.sum()), int((second & here & self.last[ids]).sum())
        self.last[ids] = here
        self.draws[0, ids] += 1
        self.draws[1, ids] += here

    def release(self, round: int, call: int, ids: NDArray[np.int64], noise: Tensor, scores: Tensor) -> None:
        """One more of clients `ids`: its noise (k, d) over the booked deviation, and the scores (k,) that it adds."""
        squares = noise.square()
        self.by_client[ids] += squares.sum(1, dtype=torch.float64).cpu().numpy()
        self.by_coordinate += squares.sum(0, dtype=torch.float64).cpu().numpy()
        self.times[ids] += 1
        self.scores[ids] += scores.cpu().numpy()
        few = noise[:, self.columns].cpu().numpy()
        kept = self.samples.setdefault((round, call), np.zeros((self.runs, few.shape[1]), np.float32))
        kept[ids] = few

    @property
    def numbers(self) -> int:
        """Of noise that were seen."""
        return int(self.times.sum()) * self.width

    # ---------------------------------------------------------------- tests
    def tests(self) -> dict[str, float]:
        """The p-value of each."""
        return {
            "noise as large as booked": self._size(),
            "noise is normal": self._shape(),
            "noise of rounds independent": self._over_rounds(),
            "noise of clients independent": self._over_clients(),
            "examples drawn as often as booked": self._rate(),
        }

    def _size(self) -> float:
        """The sum of squares, in all, of each client and of each coordinate, against chi-square."""
        whole = chi2.cdf(self.by_client.sum(), self.numbers)
        client = chi2.cdf(self.by_client, self.times * self.width).min() * self.runs
        coordinate = chi2.cdf(self.by_coordinate, self.times.sum()).min() * self.width
        return _least([whole, client, coordinate])

    def _shape(self) -> float:
        """Kolmogorov and Smirnov's test of a release, scaled to what it spreads."""
        z = next(iter(self.samples.values())).ravel()[: 1 << 16]
        return float(kstest(z / np.sqrt(np.mean(np.square(z, dtype=np.float64))), "norm").pvalue)

    def _over_rounds(self) -> float:
        """Inner products of a client's noise in two releases: of all clients together, and the largest of one."""
        releases = [_unit(s) for s in self.samples.values()]
        pairs = list(combinations(releases, 2))
        if not pairs:
            return 1.0
        wide = releases[0].shape[1]
        products = np.array([(a * b).sum(1) for a, b in pairs])  # correlations (pairs, runs)
        together = np.abs(products.sum(1)).max() * sqrt(wide / self.runs)
        return _least(
            [2 * norm.sf(together) * len(pairs), _correlation(np.abs(products).max(), wide) * products.size]
        )

    def _over_clients(self) -> float:
        """In a release: the largest correlation of two clients, and what all have in common."""
        found, every = [], -(-len(self.samples) // PAIRED)
        chosen = list(self.samples.values())[::every]
        for noise in chosen:
            unit = _unit(noise)
            most = 0.0
            for start in range(0, self.runs, 512):
                part = unit[start : start + 512]
                products = np.abs(part @ unit[start:].T)
                np.fill_diagonal(products, 0)
                most = max(most, float(products.max()))
            pairs = max(1.0, self.runs * (self.runs - 1) / 2)
            found.append(_correlation(most, noise.shape[1]) * pairs * len(chosen))
            common = noise.sum(0, dtype=np.float64) / sqrt(self.runs)
            scale = np.mean(np.square(noise, dtype=np.float64))
            found.append(chi2.sf((common**2).sum() / scale, len(common)) * len(chosen))
        return _least(found)

    def _rate(self) -> float:
        """How often the canary was drawn, and how often twice in a row, where the draw is booked as secret."""
        if self.chance == 1 or not self.draws[0].sum():
            return 1.0
        often = binom.sf(self.draws[1].sum() - 1, self.draws[0].sum(), self.chance)
        twice = binom.sf(self.both[1] - 1, self.both[0], self.chance**2) if self.both[0] else 1.0
        return _least([often, twice])

    # ---------------------------------------------------------------- power
    def noise_caught(self, alarm: float) -> float:
        """The factor on all noise that its size alone gives away in 19 of 20 audits."""
        return float(sqrt(chi2.ppf(alarm / 3, self.numbers) / chi2.ppf(0.95, self.numbers)))

    def rate_caught(self, alarm: float) -> float | None:
        """The factor on the rate of the draw that is seen in 19 of 20 audits; None where nothing is drawn in secret."""
        total = int(self.draws[0].sum())
        if self.chance == 1 or not total:
            return None
        limit = float(binom.isf(alarm / 2, total, self.chance))
        return (limit + 1.645 * sqrt(limit)) / (total * self.chance)


def _least(p: list[float]) -> float:
    """Of several tests, the least p-value, corrected for their number."""
    return float(min(1.0, min(p) * len(p)))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-30))


def _correlation(r: float, d: int) -> float:
    """P(|correlation| >= r) of two independent normal vectors (d,): r^2 is Beta(1/2, (d - 1) / 2)."""
    return 1.0 if d < 2 else float(beta.sf(min(1.0, r) ** 2, 0.5, (d - 1) / 2))
