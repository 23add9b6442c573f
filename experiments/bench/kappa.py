"""How far each rule can be moved: the worst deviation that any attack found as f grows, beside what is proven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Generator, Tensor

from fedsim import strategies as s
from fedsim.attacks import ALIE, IPM, Adaptive, Mimic, MinMax, MinSum, SignFlip, WorstCase
from fedsim.check import Invalid
from fedsim.experiments.report.canvas import PALETTE, STYLES, inked
from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.types import Attack, Target, View

RULES: dict[str, TwoHookRule] = {
    "Mean": s.Mean(),
    "Median": s.Median(),
    "TrimmedMean": s.TrimmedMean(),
    "MeanAroundMedian": s.MeanAroundMedian(),
    "Phocas": s.Phocas(),
    "Krum": s.Krum(),
    "MultiKrum": s.MultiKrum(),
    "Bulyan": s.Bulyan(),
    "GeometricMedian": s.GeometricMedian(),
    "CGE": s.CGE(),
    "NNA": s.NNA(),
    "MDA": s.MDA(),
    "SMEA": s.SMEA(steps=1000),
    "CAF": s.CAF(),
    "NNM + Median": s.Chain(s.NNM(), s.Median()),
    "NNM + TrimmedMean": s.Chain(s.NNM(), s.TrimmedMean()),
    "NNM + Krum": s.Chain(s.NNM(), s.Krum()),
    "NNM + GeometricMedian": s.Chain(s.NNM(), s.GeometricMedian()),
}
ATTACKS: dict[str, Attack] = {
    "SignFlip": SignFlip(),
    "IPM": IPM(),
    "ALIE": ALIE(),
    "MinMax": MinMax(),
    "MinSum": MinSum(),
    "Mimic": Mimic(),
    "Adaptive(ALIE)": Adaptive(ALIE()),
    "Adaptive(IPM)": Adaptive(IPM()),
    "WorstCase": WorstCase(),
}


def bench_kappa(
    n: int = 20,
    d: int = 30,
    fs: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    rules: Mapping[str, TwoHookRule] = RULES,
    attacks: Mapping[str, Attack] = ATTACKS,
) -> Iterator[dict[str, Any]]:
    """A line for each rule and f: the largest ||F(x) - s||^2 / mean_i ||x_i - s||^2 found, and by which attack.

    s is the mean of the n - f honest rows, normal ones around a mean of length sqrt(d) / 2; the largest over attacks
    and `seeds`. `kappa` is its proven bound, where there is one: a rule above it is wrong, and one far below it may be
    better than is proven, or not yet attacked well enough. Raises `Invalid` for an f that is no minority.
    """
    allowed = range(1, (n + 1) // 2)
    for f in fs or ():
        if f not in allowed:
            raise Invalid(f"f = {f}: must be at least 1 and below half of n = {n}")
    for name, rule in rules.items():
        for f in allowed if fs is None else fs:
            if f > rule.max_f(n):
                continue
            tried = ((label, seed) for label in attacks for seed in seeds)
            try:
                worst, attack = max(
                    (_deviation(rule, attacks[label], n, f, d, seed), label) for label, seed in tried
                )
            except Invalid:  # a search that is too long here
                continue
            yield {"rule": name, "n": n, "f": f, "worst": worst, "attack": attack, "kappa": rule.kappa(n, f)}


def _deviation(rule: TwoHookRule, attack: Attack, n: int, f: int, d: int, seed: int) -> float:
    generator = Generator().manual_seed(seed)
    rows = 0.5 + torch.randn(n, d, generator=generator)
    honest, own = rows[: n - f], rows[n - f :]

    def receive(forged: Tensor) -> Tensor:
        return torch.cat([honest, forged])

    target = Target(rule, f, None, receive, seed, n - f)
    view = View(n, f, 0, torch.zeros(d), generator, own, honest, target)
    forged, _ = attack.remember(view, {})
    mean = honest.mean(0)
    return float((target(forged) - mean).square().sum() / (honest - mean).square().sum(1).mean())


def kappa_figure(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """The lines of `bench_kappa` over f, on a logarithmic scale; crosses are proven bounds."""
    frame = pd.DataFrame(lines)
    with inked():
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axes = figure.subplots()
        for k, (name, part) in enumerate(frame.groupby("rule", sort=False)):
            colour, style = PALETTE[k % len(PALETTE)], STYLES[k // len(PALETTE) % len(STYLES)]
            axes.plot(part["f"], part["worst"], color=colour, linestyle=style, label=str(name))
            axes.plot(part["f"], part["kappa"].astype(float), "x", color=colour, markersize=4)
        axes.set(xlabel="f", ylabel="worst squared deviation found / spread", yscale="log")
        axes.set_title(f"n = {frame['n'].iloc[0]}; crosses: proven bounds")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    return figure
