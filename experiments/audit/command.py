"""An attempt to break a recipe's privacy: many short runs, looked at from within, and told apart from without.

From within: is the noise as large as booked, normal, and new for every release; does an example move no more than
booked, and is it drawn no more often? From without: an adversary guesses who trained on which of two examples, and its
mix-ups bound epsilon from below. A bound above the ledger's epsilon proves the ledger wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from fedsim.accounting import gaussian_epsilon, gaussian_mu
from fedsim.asynchronous import Asynchronous
from fedsim.check import Invalid
from fedsim.experiments.audit.bounds import (
    Counts,
    Floats,
    Interval,
    clopper_pearson,
    gaussian_lower,
    posterior,
)
from fedsim.experiments.audit.one_shot import OneShot, one_shot
from fedsim.experiments.audit.releases import ROUNDING, Evidence
from fedsim.experiments.audit.shadows import Shadows
from fedsim.experiments.resolve import resolve
from fedsim.privacy import CentralDP, ExampleDP, MessageDP
from fedsim.privacy.ledger import Ledger
from fedsim.runner import choose
from fedsim.spec import Experiment
from fedsim.types import Dataset

EPSILON = 8.0  # runs are as long as the ledger books this for: a few thousand of them can prove little more
WORK = 6e9  # products of an example and a parameter that an audit may take,
RELEASE = 200  # and as many examples cost as much as a release
ROUNDS = 4  # at the least, of a recipe that has so many: what repeats itself shows only then
ALARM = 1e-3  # how often a correct run may fail

ASSUMES = (
    "the adversary sees every noisy release of its victim, and knows the model and all data but the canary",
    "the accountant's formula for the noise, the sampling and the sensitivity that it books (held to peers elsewhere)",
    "runs are independent given the models that they are told, which come from clients that nobody judges",
)
UNSEEN = (
    "secrets that are known: a seed in other hands, noise derived from it, a draw that leaks",
    "what a method sends besides its noisy releases, or makes of them; what a device, a wire or a log gives away",
    "rounds beyond those that were run, other clients' shards, and what only shows at one value of the data",
    "digits: noise in single precision is not noise in real numbers (Mironov, CCS 2012)",
    "noise alike across recipes or seeds, weak correlation of a few clients, and the count of a clip that adapts",
)


@dataclass(frozen=True)
class Verdict:
    """What the runs prove, at level 1 - alpha, beside what the ledger says of them.

    gaussian  epsilon proved of a Gaussian mechanism; None where sampling amplifies, which is none
    faults    what is wrong; a correct run has any at most with chance `alarm`
    tests     the p-value of each test from within
    noise_caught, proof_caught, rate_caught
              the faults that would have been seen: factors on the noise, by its size and by guesses alone, and on the
              rate of the draw
    """

    passed: bool
    faults: list[str]
    epsilon: float
    delta: float
    proved: float
    gaussian: float | None
    clopper_pearson: Interval
    posterior: Interval
    counts: Counts
    tests: dict[str, float]
    moved: float
    noise_caught: float
    proof_caught: float | None
    rate_caught: float | None
    alarm: float
    runs: int
    rounds: int
    statement: str

    def __str__(self) -> str:
        lines = ["passed: no fault seen"] if self.passed else [f"FAILED: {fault}" for fault in self.faults]
        lines.append(f"ledger       {self.statement}")
        if self.gaussian is not None:
            lines.append(f"proved       epsilon >= {self.gaussian:.3g} (Gaussian mechanism, exact rates)")
        for name, (low, high) in (
            ("Clopper-Pearson", self.clopper_pearson),
            ("posterior", self.posterior),
        ):
            lines.append(f"             epsilon in [{low:.3g}, {high:.3g}] ({name}, any mechanism)")
        lines.append(f"             {self.proved / self.epsilon:.0%} of the ledger's")
        lines.append(f"moved        {self.moved:.4f} of the booked sensitivity, by the canary at the most")
        lines += [f"p = {p:<8.3g} {name}" for name, p in self.tests.items()]
        lines.append(
            f"from         {self.runs} runs of {self.rounds} rounds; a correct one fails 1 in {1 / self.alarm:.0f}"
        )
        seen = f"noise times {self.noise_caught:.4f} by its size"
        if self.proof_caught:
            seen += f", times {self.proof_caught:.2f} by guesses alone"
        if self.rate_caught:
            seen += f"; {self.rate_caught:.2f} times the rate of the draw"
        lines.append(f"would see    {seen} (19 of 20 audits)")
        lines += [f"assumes      {line}" for line in ASSUMES]
        lines += [f"cannot see   {line}" for line in UNSEEN]
        return "\n".join(lines)


def audit(
    experiment: Experiment,
    *,
    runs: int = 2000,
    noise_factor: float = 1.0,
    alpha: float = 0.05,
    device: str = "cpu",
    dataset: Dataset | None = None,
) -> Verdict:
    """Look at runs of the experiment's smallest client, and tell them apart.

    The noise is as calibrated for the whole experiment, times `noise_factor`, of which the ledger knows nothing.
    Raises `Invalid` where clients add no noise.
    """
    if isinstance(experiment.method, Asynchronous):
        raise Invalid(
            f"audit: {type(experiment.method).__name__} has no rounds to look at; allowed is a synchronous method with "
            "the same noise"
        )
    if not isinstance(experiment.privacy, ExampleDP | MessageDP):
        raise Invalid("audit: nothing to test where clients add no noise; allowed is ExampleDP or MessageDP")
    fed = Shadows(experiment, runs, noise_factor, device, dataset)
    assert fed.ledger is not None
    if fed.sampling != "none" and experiment.method.gradients > 1:
        raise Invalid(
            f"audit: {type(experiment.method).__name__} takes several gradients of one batch, whose draw is "
            "secret to all of them at once; allowed is batches = Full()"
        )
    rounds = _rounds(fed, experiment)
    heads = fed.keys.numpy("coins").permutation(np.arange(runs) % 2 == 0)
    evidence = fed.watch(torch.from_numpy(heads), rounds)
    return judge(evidence, heads, fed, alpha)


def judge(evidence: Evidence, heads: NDArray[np.bool_], fed: Shadows, alpha: float = 0.05) -> Verdict:
    """The verdict on what was seen of runs in these worlds."""
    assert fed.ledger is not None
    ledger, rounds, scores = fed.ledger, evidence.rounds, evidence.scores
    delta, half = ledger.privacy.delta, len(heads) // 2
    epsilon = _booked(ledger, rounds)
    tests = evidence.tests()
    each = ALARM / (len(tests) + 1)  # one more for the guesses
    # of a Gaussian mechanism the best threshold is known; of others one half of the runs chooses it for the other
    plain = Counts.of(scores, heads, 0.0)
    chosen = Counts.of(scores[half:], heads[half:], _threshold(scores[:half], heads[:half], delta, alpha))
    exact, sure = clopper_pearson(chosen, delta, alpha), clopper_pearson(chosen, delta, each)[0]
    gaussian, caught = None, None
    if fed.sampling == "none":
        gaussian = gaussian_epsilon(gaussian_lower(plain, alpha), delta)
        sure = gaussian_epsilon(gaussian_lower(plain, each), delta)
        caught = _proof_caught(gaussian_mu(epsilon, delta), evidence.furthest, len(heads), each)
    faults = [f"{name}: p = {p:.2g}" for name, p in tests.items() if p < each]
    if evidence.furthest > 1 + ROUNDING:
        faults.append(f"one example moves a release {evidence.furthest:.3g} times as far as booked")
    faults += _count(evidence, fed)
    if sure > epsilon:
        faults.append(f"guesses prove epsilon >= {sure:.3g}, booked is {epsilon:.3g}")
    return Verdict(
        passed=not faults,
        faults=faults,
        epsilon=epsilon,
        delta=delta,
        proved=exact[0] if gaussian is None else gaussian,
        gaussian=gaussian,
        clopper_pearson=exact,
        posterior=posterior(chosen, delta, alpha),
        counts=plain if gaussian is not None else chosen,
        tests=tests,
        moved=evidence.furthest,
        noise_caught=evidence.noise_caught(each),
        proof_caught=caught,
        rate_caught=evidence.rate_caught(each),
        alarm=ALARM,
        runs=len(heads),
        rounds=rounds,
        statement=ledger.privacy.statement(ledger.plan, _first(rounds)),
    )


def audit_command(
    what: str, changes: Sequence[str], seed: int | None, runs: int, noise_factor: float, device: str
) -> Verdict | OneShot:
    """What `fedsim audit` runs; "quick" is the quickstart recipe. Where the server adds the noise: `one_shot`."""
    experiment = resolve("quickstart" if what == "quick" else what, changes, seed).main
    if isinstance(experiment.privacy, CentralDP):
        return one_shot(experiment, canaries=runs, noise_factor=noise_factor, device=choose(device))
    return audit(experiment, runs=runs, noise_factor=noise_factor, device=choose(device))


def _rounds(fed: Shadows, experiment: Experiment) -> int:
    """As many as the ledger books EPSILON for and as the work allows, not below ROUNDS."""
    assert fed.ledger is not None
    batch = float(experiment.batches.expected(fed.sizes[:1])[0]) * experiment.method.steps + RELEASE
    most = min(experiment.rounds, max(ROUNDS, int(WORK / (batch * fed.x0.numel() * len(fed.sizes)))))
    rounds = min(ROUNDS, experiment.rounds)
    while rounds < most and _booked(fed.ledger, rounds + 1) <= EPSILON:
        rounds += 1
    return rounds


def _booked(ledger: Ledger, rounds: int) -> float:
    return ledger.privacy.spent(ledger.plan, _first(rounds))


def _count(evidence: Evidence, fed: Shadows) -> list[str]:
    """Faults of number: releases without noise, or an example used more often than it pays for."""
    assert fed.ledger is not None
    privacy, plan, rounds = fed.ledger.privacy, fed.ledger.plan, evidence.rounds
    faults = []
    a_round = plan.steps * plan.gradients if isinstance(privacy, ExampleDP) else 1
    if (evidence.times != rounds * a_round).any():
        faults.append(f"{evidence.times.min()} noisy releases of a client, where {rounds * a_round} were due")
    paid = sum(r.times for r in privacy.releases(plan, tuple(range(rounds)), fed.ledger.multiplier))
    if isinstance(privacy, ExampleDP) and evidence.draws[1].max() > paid * plan.gradients:
        faults.append(f"an example was used {evidence.draws[1].max()} times and pays for {paid}")
    return faults


def _first(rounds: int) -> frozenset[tuple[int, ...]]:
    return frozenset({tuple(range(rounds))})


def _threshold(scores: Floats, heads: NDArray[np.bool_], delta: float, alpha: float) -> float:
    """The threshold that proves most on these runs."""
    candidates = np.quantile(scores, np.linspace(0.002, 0.998, 250))
    proved = [clopper_pearson(Counts.of(scores, heads, c), delta, alpha)[0] for c in candidates]
    return float(candidates[int(np.argmax(proved))])


def _proof_caught(mu: float, moved: float, runs: int, alarm: float) -> float | None:
    """The largest factor on the noise, by hundredths, with which guesses prove more than mu in 19 of 20 audits."""
    n = runs // 2
    for hundredths in range(99, 0, -1):
        rate = float(ndtr(-mu * min(1.0, moved) / (hundredths / 100) / 2))
        errors = int(min(n, n * rate + 1.96 * sqrt(n * rate * (1 - rate))))
        if gaussian_lower(Counts(n - errors, errors, errors, n - errors), alarm) > mu:
            return hundredths / 100
    return None
