"""Two experiments to begin with."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from fedsim.attacks import ALIE, IPM
from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST, Digits
from fedsim.datasets.split import IID, Dirichlet
from fedsim.experiments.comparison import Comparison, spoken
from fedsim.models import MLP, Logistic
from fedsim.privacy import ExampleDP
from fedsim.schedule import InverseTime
from fedsim.spec import Experiment
from fedsim.strategies import (
    NNM,
    ByzClip21SGD2M,
    ByzClip21SGD2MPlus,
    Chain,
    HeavyBall,
    Mean,
    Median,
    TrimmedMean,
)
from fedsim.task import Task


def quickstart() -> Comparison:
    """Byz-Clip21-SGD2M+ on handwritten digits: 20 honest and 5 Byzantine clients (IPM), accounted epsilon = 8.

    Algorithm 5 of arXiv:2603.23472 with NNM + median, full local batches, 50 rounds. Beside it the same run without
    the defence (plain mean), without the outer clip (heavy ball), and without the attack. The step is three times the
    best one of heavy ball: there the clip, which shortens every message, holds what the noise would do.
    """
    main = Experiment(
        task=Task(data=Digits(scaling="standard"), model=Logistic()),
        split=IID(),
        dealt="honest",
        clients=25,
        byzantine=5,
        attack=IPM(10.0),
        rule=Chain(NNM(), Median()),
        method=ByzClip21SGD2MPlus(lr=3.0, tau=0.1, beta=0.5, beta_hat=1.0),
        privacy=ExampleDP(clip=1.0, epsilon=8.0, delta=1e-4),
        rounds=50,
        evaluate_every=5,
    )
    return Comparison(main, without, introduced, explained)


def without(main: Experiment) -> dict[str, Experiment]:
    """The experiment without the defence, without the outer clip, and where it is attacked its honest clients alone."""
    beside = {"without the defence (mean)": replace(main, rule=Mean())}
    if isinstance(main.method, ByzClip21SGD2M):
        beside["without the outer clip"] = replace(main, method=replace(main.method, tau=inf))
    if main.attack:
        beside["without the attack"] = replace(main, attack=None, byzantine=0, clients=main.honest)
    return beside


def introduced(main: Experiment) -> str:
    """The federation, who attacks it, what defends it, and what its privacy is worth: a line each."""
    lines = [
        f"{main.honest} clients train a model together for {main.rounds} rounds; examples stay with them."
    ]
    if main.attack:
        lines.append(
            f"{main.byzantine} more are Byzantine: they know what the others send, and answer with {main.attack}."
        )
        lines.append(
            f"The server's defence is {spoken(main.rule)}, in place of the mean, which one liar can move."
        )
    match main.privacy:
        case ExampleDP(epsilon=float() as epsilon, delta=float() as delta):
            lines.append(
                f"Noise hides single examples. epsilon = {epsilon:g}: all messages together raise the odds of a guess "
                f"at an example by a factor of e^{epsilon:g} at most, but for a chance of {delta:g}. "
                "An epsilon of 1 is strong."
            )
    return "\n".join(lines)


def explained(main: Experiment) -> str:
    """How to read the picture, and three commands to go on with."""
    return (
        "The picture has the accuracy on test examples over rounds, of this run and of those beside it, and the "
        "epsilon spent so far.\n"
        "Next: another attack, no privacy, all rules by name.\n"
        "  fedsim run quickstart --set attack=ALIE\n"
        "  fedsim run quickstart --set privacy=none\n"
        "  fedsim list rules"
    )


def mnist_robust() -> Experiment:
    """Robust heavy ball on MNIST: 20 honest and 5 Byzantine clients (ALIE), Dirichlet(1), NNM + trimmed mean."""
    return Experiment(
        task=Task(data=MNIST(scaling="standard"), model=MLP()),
        split=Dirichlet(1.0),
        clients=25,
        byzantine=5,
        attack=ALIE(),
        rule=Chain(NNM(), TrimmedMean()),
        method=HeavyBall(lr=InverseTime(0.75, 50), momentum=0.9),
        batches=Fixed(25),
        rounds=300,
        evaluate_every=20,
    )
