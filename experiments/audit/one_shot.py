"""An audit within one training run, where the server adds the noise: Andrew et al., arXiv:2302.03098.

A canary client sends a random direction c_j of full length in every round, or -c_j where its coin says tails: as far
apart as neighbours are. Their inner products with the sum of all that was published are normal; so are
those with directions that nobody sent, N(0, ||sum||^2 / d). Two answers: the paper's estimate, the epsilon between the
two normals, which is no bound; and the bound that the guessed coins prove (`one_run`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr
from torch import Generator, Tensor

from fedsim.check import Invalid
from fedsim.engines import Everyone, vector
from fedsim.experiments.audit.one_run import guesses, lower_bound
from fedsim.experiments.audit.releases import Evidence
from fedsim.federation import Federation
from fedsim.privacy import CentralDP
from fedsim.runner import drive
from fedsim.spec import Experiment
from fedsim.types import Dataset

Floats = NDArray[np.float64]
GUESSED = 0.2  # of the coins: those with the clearest scores
ROWS = 64  # directions at a time
ALARM = 1e-3

ASSUMES = (
    "canaries are few beside the parameters and take part in every round",
    "the accountant's formula for the noise that it books (held to peers elsewhere)",
    "the adversary sees the server's published means alone, which is what CentralDP hides from",
)
UNSEEN = (
    "secrets that are known: a seed in other hands, noise derived from it",
    "what differs from client to client, and what the server tells beside its published means",
    "what only shows at one value of the data, or in rounds that were not run",
    "digits: noise in single precision is not noise in real numbers (Mironov, CCS 2012)",
)


@dataclass(frozen=True)
class OneShot:
    """What one run gives away. `estimate` is no bound; `proved` is one, at level 1 - alpha.

    mean, deviation  of the canaries' scores, in units of the deviation of directions that nobody sent
    noise_caught     the factor on the noise that would have been seen by its size
    """

    passed: bool
    faults: list[str]
    epsilon: float
    delta: float
    estimate: float
    proved: float
    mean: float
    deviation: float
    canaries: int
    guessed: int
    right: int
    tests: dict[str, float]
    noise_caught: float
    alarm: float
    rounds: int
    statement: str

    def __str__(self) -> str:
        lines = ["passed: no fault seen"] if self.passed else [f"FAILED: {fault}" for fault in self.faults]
        return "\n".join(
            [
                *lines,
                f"ledger       {self.statement}",
                f"estimate     epsilon = {self.estimate:.3g} (one shot, no bound)",
                f"proved       epsilon >= {self.proved:.3g} ({self.right} of {self.guessed} guesses right, "
                f"{self.canaries} canaries)",
                *(f"p = {p:<8.3g} {name}" for name, p in self.tests.items()),
                f"from         one run of {self.rounds} rounds; a correct one fails 1 in {1 / self.alarm:.0f}",
                f"would see    noise times {self.noise_caught:.4f} by its size (19 of 20 audits)",
                *(f"assumes      {line}" for line in ASSUMES),
                *(f"cannot see   {line}" for line in UNSEEN),
            ]
        )


class WithCanaries(Federation):
    """A federation with `canaries` clients more, who hold no data."""

    def __init__(
        self, experiment: Experiment, canaries: int, noise_factor: float, device: str, dataset: Dataset | None
    ) -> None:
        self.canaries, self.noise_factor = canaries, noise_factor
        super().__init__(experiment, device, dataset)
        bound = experiment.method.message_bound
        assert bound is not None  # the experiment was checked
        self.bound = bound
        self.coins = self.keys.numpy("coins").random(canaries) < 0.5
        self.sum = torch.zeros(self.width, device=device)
        for at, rows in self.directions():
            signs = torch.from_numpy(np.where(self.coins[at], bound, -bound)).to(rows)
            self.sum += signs @ rows
        self.seen = torch.zeros(self.width, dtype=torch.float64, device=device)
        self.evidence = Evidence(1, experiment.rounds, 1, self.width, 1.0)

    def directions(self) -> Iterator[tuple[slice, Tensor]]:
        """The unit vectors c_j, some at a time; the same whenever they are asked for."""
        generator = Generator().manual_seed(self.experiment.seed)
        for start in range(0, self.canaries, ROWS):
            at = slice(start, min(start + ROWS, self.canaries))
            rows = torch.randn(at.stop - start, self.width, generator=generator).to(self.device)
            yield at, rows / rows.norm(dim=1, keepdim=True)

    def published(self, aggregate: Tensor, rows: int, round: int) -> Tensor:
        n = rows + self.canaries
        mean = (rows * aggregate + self.sum) / n
        sent = super().published(mean, n, round)
        assert self.ledger is not None
        ledger = self.ledger
        z = ledger.multiplier * float(ledger.privacy.factors((round,))[0])
        noise = ((sent - mean) / (z * 2 * self.bound / n)).float()
        self.evidence.release(round, 0, np.zeros(1, np.int64), noise[None], torch.zeros(1))
        self.seen += sent.double() / z**2  # what was said more softly counts less
        return sent

    def normal(self, z: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        return super().normal(z, keys).mul_(self.noise_factor)

    def scores(self) -> Floats:
        """The inner products (canaries,), over the deviation of those of directions that nobody sent."""
        seen = (self.seen / self.seen.norm()).float()
        found = [(rows @ seen).double().cpu().numpy() for _, rows in self.directions()]
        return np.asarray(np.concatenate(found) * sqrt(self.width))


def one_shot(
    experiment: Experiment,
    *,
    canaries: int = 1000,
    noise_factor: float = 1.0,
    alpha: float = 0.05,
    device: str = "cpu",
    dataset: Dataset | None = None,
) -> OneShot:
    """Train once with canary clients beside the others. Raises `Invalid` where the server adds no noise."""
    if not isinstance(experiment.privacy, CentralDP):
        raise Invalid("audit: one run tells of noise that a server adds; allowed is CentralDP")
    if experiment.cohort:
        raise Invalid(
            f"audit: cohort = {experiment.cohort}: canaries take part in every round; allowed is all"
        )
    fed = WithCanaries(experiment, canaries, noise_factor, device, dataset)
    drive(fed, Everyone(vector.rows))
    ledger, delta, rounds = fed.ledger, experiment.privacy.delta, len(fed.evidence.samples)
    assert ledger is not None
    for _ in range(rounds):
        ledger = ledger.charge(np.arange(ledger.plan.clients))
    scores = fed.scores()
    toward = np.where(fed.coins, scores, -scores)
    guessed, right = guesses(scores, fed.coins, GUESSED)
    tests = fed.evidence.tests()
    each = ALARM / (len(tests) + 1)
    faults = [f"{name}: p = {p:.2g}" for name, p in tests.items() if p < each]
    if (sure := lower_bound(canaries, guessed, right, delta, each)) > ledger.epsilon:
        faults.append(f"guesses prove epsilon >= {sure:.3g}, booked is {ledger.epsilon:.3g}")
    mean, deviation = float(toward.mean()), float(toward.std(ddof=1))
    return OneShot(
        passed=not faults,
        faults=faults,
        epsilon=ledger.epsilon,
        delta=delta,
        estimate=between_normals(2 * mean, deviation, delta),
        proved=lower_bound(canaries, guessed, right, delta, alpha),
        mean=mean,
        deviation=deviation,
        canaries=canaries,
        guessed=guessed,
        right=right,
        tests=tests,
        noise_caught=fed.evidence.noise_caught(each),
        alarm=ALARM,
        rounds=rounds,
        statement=ledger.statement(),
    )


def between_normals(mean: float, deviation: float, delta: float) -> float:
    """The epsilon at delta between N(0, 1) and N(mean, deviation^2), the larger of both orders."""
    high = 1.0
    both = ((0.0, 1.0, mean, deviation), (mean, deviation, 0.0, 1.0))

    def over(epsilon: float) -> float:
        return max(_delta(epsilon, *pair) for pair in both) - delta

    if over(0.0) <= 0:
        return 0.0
    while over(high) > 0:
        high *= 2
    return float(brentq(over, 0.0, high, xtol=1e-10))


def _delta(epsilon: float, m0: float, s0: float, m1: float, s1: float) -> float:
    """sup over events of P0 - e^epsilon P1 of two normals: over where p0 > e^epsilon p1, an interval or its rest."""
    # ln p0 - ln p1 - epsilon = a x^2 + b x + c
    a = 0.5 / s1**2 - 0.5 / s0**2
    b = m0 / s0**2 - m1 / s1**2
    c = m1**2 / (2 * s1**2) - m0**2 / (2 * s0**2) + np.log(s1 / s0) - epsilon

    def mass(low: float, high: float) -> float:
        p0 = ndtr((high - m0) / s0) - ndtr((low - m0) / s0)
        p1 = ndtr((high - m1) / s1) - ndtr((low - m1) / s1)
        return float(p0 - np.exp(epsilon) * p1)

    if abs(a) < 1e-12:
        if b == 0:
            return max(0.0, 1 - float(np.exp(epsilon)))
        root = -c / b
        return mass(root, np.inf) if b > 0 else mass(-np.inf, root)
    square = b * b - 4 * a * c
    if square <= 0:
        return max(0.0, 1 - float(np.exp(epsilon))) if a > 0 else 0.0
    low, high = sorted(((-b - sqrt(square)) / (2 * a), (-b + sqrt(square)) / (2 * a)))
    return mass(-np.inf, low) + mass(high, np.inf) if a > 0 else mass(low, high)
