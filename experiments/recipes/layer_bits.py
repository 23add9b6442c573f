"""EF21-Muon on text and on pictures: the loss over bits up, down and both ways, beside what it compresses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.batches import Fixed
from fedsim.datasets.load import MNIST
from fedsim.datasets.split import Dirichlet, Natural
from fedsim.datasets.text import Shakespeare
from fedsim.experiments.study import Study, axes
from fedsim.metrics import BitsPerToken
from fedsim.models import CNN, GPT
from fedsim.spec import Experiment
from fedsim.strategies import Mean, Scion
from fedsim.task import Task

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.experiments.report.canvas import Plot

TOP, NATURAL = "ByLayer(TopK(share=0.1, coder=NaturalCompression))", "All(coder=NaturalCompression)"


def methods(sgd: float, adam: float, muon: float, scion: float) -> dict[str, str]:
    """By their step sizes; EF21-Muon has Scion's, whose momentum and oracle it shares."""
    ef21 = f"EF21Muon(estimator=Polyak(eta=0.1), move=LMO(lr={scion}), " + "up={}, down={})"
    return {
        "SGD with momentum": f"HeavyBall(lr={sgd}, momentum=0.9)",
        "Adam": f"Adam(lr={adam})",
        "Muon": f"Muon(lr={muon})",
        "Scion": f"Scion(lr={scion}, alpha=0.1)",
        "natural up": ef21.format(NATURAL, "none"),
        "top 10 % natural up": ef21.format(TOP, "none"),
        "natural both ways": ef21.format(NATURAL, NATURAL),
        "top 10 % natural both ways": ef21.format(TOP, TOP),
    }


METHODS = methods(sgd=0.5, adam=0.01, muon=0.05, scion=0.02)
PICTURES = methods(sgd=1.0, adam=0.01, muon=0.05, scion=0.05)
WAYS = ("up", "down", "round trip")


def layer_bits(reduced: bool = False) -> Study:
    """EF21-Muon on the plays of Shakespeare by characters, a small GPT: loss against bits (arXiv:2510.00643).

    8 clients with the speakers dealt among them, windows of 32 characters, batches of 16, one block of width 32; the
    last four methods are EF21-Muon, Scion is the same without compression. `bits_to_loss` has the bits to a loss; the
    report draws the losses of the exact model x and of w, which clients hold.
    """
    base = Experiment(
        task=Task(Shakespeare(window=32), GPT(width=32, layers=1), metrics=(BitsPerToken(),)),
        split=Natural(),
        clients=8,
        rule=Mean(),
        method=Scion(),
        batches=Fixed(16),
        rounds=1000,
        evaluate_every=50,
    )
    table: dict[str, Any] = {"method": METHODS, "seed": range(3)}
    notes = [
        "Step sizes are the best of two or three in a run of 300 rounds with a seed of its own; EF21-Muon has Scion's.",
        "Accuracy is over all places of the test windows; tokens are characters.",
    ]
    if reduced:
        base = replace(base, rounds=400, evaluate_every=20)
        notes.append("Reduced setting: 400 of 1,000 rounds.")
    return Study(base, axes(table), notes=notes)


def layer_bits_mnist(reduced: bool = False) -> Study:
    """That of `layer_bits` on MNIST: 8 clients, Dirichlet 1, batches of 32, NIID-Bench's network, d = 44,426."""
    base = Experiment(
        task=Task(MNIST(), CNN("niid")),
        split=Dirichlet(1.0),
        clients=8,
        rule=Mean(),
        method=Scion(),
        batches=Fixed(32),
        rounds=600,
        evaluate_every=20,
    )
    notes = [
        "Step sizes are the best of three to five in a run of 100 rounds with a seed of its own; EF21-Muon has Scion's."
    ]
    if reduced:
        base = replace(base, rounds=200, evaluate_every=10)
        notes.append("Reduced setting: 200 of 600 rounds.")
    return Study(base, axes({"method": PICTURES, "seed": range(3)}), notes=notes)


def bits_to_loss(frames: dict[str, list[pd.DataFrame]], target: float) -> pd.DataFrame:
    """Of each method, over the curves of its seeds: megabits of a client until the test loss first is the target.

    Columns "up", "down", "round trip"; `reached` is of how many seeds, means are over these; beside each how many times
    fewer they are than Scion's.
    """
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for method, curves in frames.items():
        there = [curve[curve["loss"] <= target].head(1) for curve in curves]
        found = pd.concat(there)
        up, down = found["uplink_bits"].mean() / 1e6, found["downlink_bits"].mean() / 1e6
        last = [curve["loss"].iloc[-1] for curve in curves]
        lines.append(
            {
                "method": method,
                "final loss": np.mean(last),
                "deviation": np.std(last, ddof=1) if len(last) > 1 else 0.0,
                "reached": len(found),
                "rounds": found["round"].mean(),
                "up": up,
                "down": down,
                "round trip": up + down,
            }
        )
    scion = next(line for line in lines if line["method"] == "Scion")
    for line in lines:
        line |= {f"fewer {way}": scion[way] / line[way] for way in WAYS}
    return pd.DataFrame(lines)


def bits_figure(frames: dict[str, list[pd.DataFrame]]) -> Plot:
    """The test loss, a mean over seeds, over megabits of a client: up, down, both."""
    from fedsim.experiments.report.canvas import Plot, canvas, inked, look

    with inked():
        picture, panels = canvas(1, 3)
        for i, (method, curves) in enumerate(frames.items()):
            loss = np.mean([curve["loss"].to_numpy() for curve in curves], axis=0)
            up, down = (curves[0][f"{way}link_bits"].to_numpy() / 1e6 for way in ("up", "down"))
            for panel, bits in zip(panels, (up, down, up + down), strict=True):
                panel.semilogx(bits, loss, label=method if panel is panels[0] else None, **look(i))
        for panel, way in zip(panels, WAYS, strict=True):
            panel.set(xlabel=f"megabits, {way}")
        panels[0].set(ylabel="test loss")
        picture.legend(loc="outside upper left", fontsize=8, frameon=False, ncols=3)
    return Plot("bits", picture)
