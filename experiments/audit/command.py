"""An attempt to break a recipe's privacy: many short runs told apart, whose mix-ups bound epsilon from below.

A bound above the ledger's epsilon proves the ledger wrong. The white-box distinguisher and the intervals are those of
Zanella-Beguelin et al., arXiv:2206.05199.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.check import Invalid
from fedsim.experiments.audit.bounds import Counts, Floats, Interval, clopper_pearson, posterior
from fedsim.experiments.audit.canary import Shadows
from fedsim.experiments.resolve import resolve
from fedsim.privacy import ExampleDP, MessageDP
from fedsim.runner import choose
from fedsim.spec import Experiment
from fedsim.types import Dataset

EPSILON = 2.0  # runs are as long as the ledger books this for: a few thousand of them can prove little more


@dataclass(frozen=True)
class Verdict:
    """What the runs prove, at level 1 - alpha, beside what the ledger says of them."""

    passed: bool
    epsilon: float
    delta: float
    clopper_pearson: Interval
    posterior: Interval
    counts: Counts
    rounds: int
    statement: str

    def __str__(self) -> str:
        low, high = self.clopper_pearson
        said = "passed: nothing proved above the ledger" if self.passed else "FAILED: proved above the ledger"
        return (
            f"{said}\nledger           {self.statement}\n"
            f"proved           epsilon in [{low:.3g}, {high:.3g}] (Clopper-Pearson)\n"
            f"                 epsilon in [{self.posterior[0]:.3g}, {self.posterior[1]:.3g}] (posterior)\n"
            f"from             {sum(asdict(self.counts).values())} judged runs of {self.rounds} rounds: {self.counts}"
        )


def audit(
    experiment: Experiment,
    *,
    runs: int = 4000,
    noise_factor: float = 1.0,
    alpha: float = 0.05,
    device: str = "cpu",
    dataset: Dataset | None = None,
) -> Verdict:
    """Tell runs of the experiment's smallest client apart; one half chooses the threshold, the other is judged.

    The noise is as calibrated for the whole experiment, times `noise_factor`, of which the ledger knows nothing.
    Fails where the posterior's interval lies above the ledger's epsilon. Raises `Invalid` where clients add no noise.
    """
    if not isinstance(experiment.privacy, ExampleDP | MessageDP):
        raise Invalid("audit: nothing to test where clients add no noise; allowed is ExampleDP or MessageDP")
    fed = Shadows(experiment, runs, noise_factor, device, dataset)
    assert fed.ledger is not None
    privacy, plan = fed.ledger.privacy, fed.ledger.plan
    rounds = 1
    while rounds < experiment.rounds and privacy.spent(plan, _first(rounds + 1)) <= EPSILON:
        rounds += 1
    heads = fed.keys.numpy("coins").permutation(np.arange(runs) % 2 == 0)
    scores, half = fed.watch(torch.from_numpy(heads).to(device), rounds), runs // 2
    threshold = _threshold(scores[:half], heads[:half], privacy.delta, alpha)
    counts = Counts.of(scores[half:], heads[half:], threshold)
    epsilon, proved = privacy.spent(plan, _first(rounds)), posterior(counts, privacy.delta, alpha)
    return Verdict(
        proved[0] <= epsilon,
        epsilon,
        privacy.delta,
        clopper_pearson(counts, privacy.delta, alpha),
        proved,
        counts,
        rounds,
        privacy.statement(plan, _first(rounds)),
    )


def audit_command(
    what: str, changes: Sequence[str], seed: int | None, runs: int, noise_factor: float, device: str
) -> Verdict:
    """What `fedsim audit` runs; "quick" is the quickstart recipe."""
    experiment = resolve("quickstart" if what == "quick" else what, changes, seed).main
    return audit(experiment, runs=runs, noise_factor=noise_factor, device=choose(device))


def _first(rounds: int) -> frozenset[tuple[int, ...]]:
    return frozenset({tuple(range(rounds))})


def _threshold(scores: Floats, heads: NDArray[np.bool_], delta: float, alpha: float) -> float:
    """The threshold that proves most on these runs."""
    candidates = np.quantile(scores, np.linspace(0.002, 0.998, 250))
    proved = [clopper_pearson(Counts.of(scores, heads, c), delta, alpha)[0] for c in candidates]
    return float(candidates[int(np.argmax(proved))])
