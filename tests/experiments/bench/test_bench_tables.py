"""The tables about rules: every rule is in them, and their lines hold what they promise."""

from __future__ import annotations

import pytest

from fedsim import strategies
from fedsim.attacks import ALIE, IPM, WorstCase
from fedsim.check import Invalid
from fedsim.experiments.bench.kappa import RULES, bench_kappa, kappa_figure
from fedsim.experiments.bench.rules import TABLE, bench_rules
from fedsim.types import Mixer, Rule


def test_every_rule_and_mixer_is_measured() -> None:
    parts = {getattr(strategies, name) for name in strategies.__all__}
    known = {part for part in parts if isinstance(part, type) and issubclass(part, Rule | Mixer)}
    assert known == {type(entry.part) for entry in TABLE.values()}


def test_a_line_for_each_rule_and_size() -> None:
    names = ("Median", "Bulyan", "NNM + Krum", "ARC")
    lines = list(bench_rules((10,), (300, 500), repeats=1, only=names))
    assert len(lines) == 2 * len(names)
    for line in lines:
        assert line["f"] == 2
        if line["rule"] == "Bulyan":
            assert "allowed is from 0 to 1" in line["error"]
        else:
            assert line["seconds"] > 0
            assert "peer_seconds" not in line
    assert {line["d"] for line in lines} == {300, 500}
    with pytest.raises(Invalid, match="the only peer is byzfl"):
        next(iter(bench_rules(against="numpy")))


def test_no_attack_goes_beyond_what_is_proven() -> None:
    rules = {
        name: RULES[name] for name in ("Median", "TrimmedMean", "Krum", "NNM + Median", "Mean", "Bulyan")
    }
    attacks = {"ALIE": ALIE(), "IPM": IPM(), "WorstCase": WorstCase(steps=5, grid=8)}
    lines = list(bench_kappa(n=11, d=4, fs=(1, 3), seeds=(0,), rules=rules, attacks=attacks))
    assert [line["f"] for line in lines if line["rule"] == "Bulyan"] == [1]
    for line in lines:
        assert line["worst"] <= (line["kappa"] or float("inf"))
        assert line["attack"] in attacks
    worst = {(line["rule"], line["f"]): line["worst"] for line in lines}
    assert worst["Mean", 3] > 100
    assert 10 > worst["Median", 3] > worst["Median", 1]
    axes = kappa_figure(lines).axes[0]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(rules)
