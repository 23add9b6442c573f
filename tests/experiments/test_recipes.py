"""Recipes: every study is whole, its reduced setting runs, its closed forms hold, what it quotes is in its tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fedsim import run
from fedsim.batches import Fixed
from fedsim.experiments import recipes
from fedsim.experiments.recipes.median_mean import TOY, expected_median, stationary, toy
from fedsim.experiments.recipes.mixing import objectives
from fedsim.experiments.recipes.sign_votes import (
    bound,
    in_training,
    probabilities,
    sign_votes,
    wrong_sign,
    wrong_signs,
)
from fedsim.experiments.recipes.writers import look_alikes
from fedsim.experiments.report.results import same
from fedsim.experiments.resolve import resolve
from fedsim.experiments.study import Cell, Study
from fedsim.experiments.sweep.tuning import searches
from fedsim.strategies import MajorityVote, Mean, Median, NoisyMedian
from fedsim.types import Dataset, Examples

STUDIES = [name for name in recipes.__all__ if isinstance(getattr(recipes, name)(), Study)]


def pictures(side: int = 28, channels: int = 1, seed: int = 0) -> Dataset:
    """A small set in the shape of the real ones, with two writers for each client."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Examples:
        y = torch.arange(count) % 10
        return Examples(
            torch.rand(count, channels, side, side, generator=generator) + y[:, None, None, None] / 10, y
        )

    return Dataset(draw(1000), draw(20), 10, torch.arange(1000) % 100)


def words(length: int = 32, seed: int = 0) -> Dataset:
    """Windows of tokens as Shakespeare has them, of twenty owners."""
    tokens = torch.randint(0, 65, (120, length + 1), generator=torch.Generator().manual_seed(seed))
    windows = Examples(tokens[:, :-1], tokens[:, 1:])
    return Dataset(windows.part(slice(0, 100)), windows.part(slice(100, 120)), 66, torch.arange(100) % 20)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_whole_and_says_what_it_leaves_out(name: str) -> None:
    whole, reduced = getattr(recipes, name)(), getattr(recipes, name)(reduced=True)
    cells, refused = whole.cells()
    assert _rounds(cells) > _rounds(reduced.cells()[0])
    assert len({cell.experiment.fingerprint for cell in cells}) == len(cells)
    assert all("Krum: f = 4" in failure.reason for failure in refused)
    assert any(note.startswith("Reduced setting") for note in reduced.notes)
    assert not any(note.startswith("Reduced setting") for note in whole.notes)
    for line in whole.reported:
        for axis, label in line.items():
            assert axis == "accuracy" or same(label) in map(same, whole.axes[axis])


def _rounds(cells: list[Cell]) -> int:
    return sum(cell.experiment.rounds for cell in cells)


@pytest.mark.parametrize("name", STUDIES)
def test_the_reduced_setting_runs(name: str) -> None:
    """One round of a cell, on pictures of the right shape."""
    study = getattr(recipes, name)(reduced=True)
    cells: list[Cell] = study.cells()[0]
    if study.tuning:
        found, refused = searches(cells, study.tuning)
        assert not refused
        assert all(len(search.points) == len(list(study.tuning.points())) for search in found)
    coloured = name in ("baselines", "cifar_robust", "untuned_resnet")
    dataset = pictures(32, 3) if coloured else words() if name == "layer_bits" else pictures()
    result = run(replace(cells[-1].experiment, rounds=1), dataset=dataset)
    assert 0 <= result.accuracy <= 1


# ---------------------------------------------------------------- the toy
@pytest.mark.parametrize("noise", [0.5, 3.0, 20.0])
def test_the_expected_median_is_that_of_draws(noise: float) -> None:
    rng = np.random.default_rng(1)
    draws = np.median(np.array(TOY) + noise * rng.normal(size=(400_000, 3)), axis=1)
    assert expected_median(TOY, noise) == pytest.approx(
        draws.mean(), abs=4 * draws.std() / 400_000**0.5 + 1e-3
    )


def test_the_toy_rests_where_the_paper_says() -> None:
    """Without noise both stop at 2 with a gradient of 7/3 left; with much noise near the mean, 13/3."""
    table = toy().set_index("noise")
    assert tuple(table.loc[0.0, ["sign", "median", "mean"]]) == pytest.approx((2, 2, 13 / 3))
    assert table.loc[0.0, "gradient left"] == pytest.approx(7 / 3)
    assert table["median"].is_monotonic_increasing
    assert table.loc[20.0, "median"] == pytest.approx(13 / 3, abs=0.05)


@pytest.mark.parametrize("noise", [1.0, 5.0])
def test_the_rules_themselves_come_to_rest_there(noise: float) -> None:
    """x moved by the package's own rules, averaged over the second half of a long walk."""
    rule, a, x, seen = NoisyMedian(noise=noise), torch.tensor(TOY)[:, None], torch.zeros(1), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(6000):
        x = x - 0.02 * rule(x - a, generator=generator)
        seen.append(float(x))
    assert np.mean(seen[3000:]) == pytest.approx(stationary(noise), abs=0.25)


def test_without_noise_the_rules_stop_at_the_median() -> None:
    for rule in (Median(), MajorityVote()):
        x = torch.tensor([0.0005])
        for _ in range(3000):
            x = x - 0.001 * rule(x - torch.tensor(TOY)[:, None])
        assert float(x) == pytest.approx(stationary(0.0, "sign"), abs=0.15)


# ---------------------------------------------------------------- votes
def test_wrong_signs_are_as_often_as_the_expression_says() -> None:
    table = probabilities()
    spread = np.sqrt(table["exact"] * (1 - table["exact"]) / 20_000)
    assert (abs(table["measured"] - table["exact"]) <= 4.5 * spread + 1e-4).all()
    assert (table["exact"] <= table["bound"] + 1e-12).all()


@pytest.mark.parametrize(
    ("p", "n", "f", "chance"),
    [
        (0.6, 25, 5, 0.584),
        (0.7, 25, 5, 0.228),
        (0.8, 25, 5, 0.032),
        (0.8, 25, 10, 0.602),
        (0.7, 101, 20, 0.069),
    ],
)
def test_chances_worked_out_by_hand(p: float, n: int, f: int, chance: float) -> None:
    assert wrong_sign(p, n, f) == pytest.approx(chance, abs=6e-4)
    assert bound(p, n, f) >= chance - 6e-4


def test_votes_that_may_be_zero_fall_back_to_the_expression() -> None:
    table = wrong_signs(np.array([0.7, 0.9]), np.array([0.3, 0.1]), 25)
    expected = [[wrong_sign(p, 25, f) for p in (0.7, 0.9)] for f in range(25)]
    np.testing.assert_allclose(table, expected, atol=1e-12)


def test_wrong_signs_in_training() -> None:
    """Coordinates are not independent, but each follows the expression: their mean does."""
    experiment = replace(sign_votes().base, attack=None, byzantine=0, batches=Fixed(4))
    table = in_training(experiment, rounds=20, dataset=pictures())
    assert (abs(table["measured"] - table["exact"]) < 0.02).all()
    assert table["measured"].is_monotonic_increasing


# ---------------------------------------------------------------- mixing
def test_either_aim_of_a_search() -> None:
    table = objectives(rounds=1, dataset=pictures())
    assert list(zip(table["rule"], table["attack"], strict=True)) == [
        (f"{mixer}+CWMed", attack) for mixer in ("Bucketing", "NNM") for attack in ("ALIE", "FOE")
    ]
    assert table[["distance", "reverse"]].stack().between(0, 100).all()


# ---------------------------------------------------------------- writers
def test_a_look_alike_is_as_far_off_as_its_accuracies() -> None:
    rows = [
        ("by writer", "a", 90),
        ("by writer", "b", 80),
        ("near", "a", 91),
        ("near", "b", 79),
        ("far", "a", 60),
    ]
    lines = [{"split": s, "rule": r, "attack": "x", "accuracy": a} for s, r, a in [*rows, ("far", "b", 70)]]
    table = look_alikes(pd.DataFrame(lines)).set_index("split")
    assert list(table.loc["near"]) == pytest.approx([0, 1, 1])
    assert list(table.loc["far"]) == pytest.approx([-20, 20, -1])


# ---------------------------------------------------------------- the quickstart
CLIP = "without the outer clip"


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([], ["NNM + median under attack", "without the defence (mean)", CLIP, "without the attack"]),
        (["rule=Mean"], ["mean under attack", CLIP, "without the attack"]),
        (["rule=Chain(NNM, Krum)", "byzantine=3"],
         ["NNM + Krum under attack", "without the defence (mean)", CLIP, "without the attack"]),
        (["attack=none", "byzantine=0"], ["NNM + median without an attack", "without the defence (mean)", CLIP]),
        (["attack=none", "byzantine=0", "privacy=none", "rule=Mean", "clients=20"], ["mean without an attack", CLIP]),
    ],
)  # fmt: skip
def test_labels_say_what_is_compared(changes: list[str], labels: list[str]) -> None:
    """After changes too, and nothing is run twice."""
    found = resolve("quickstart", changes).experiments()
    assert list(found) == labels
    assert len({experiment.fingerprint for experiment in found.values()}) == len(labels)
    main = found[labels[0]]
    if "without the defence (mean)" in found:
        assert found["without the defence (mean)"] == replace(main, rule=Mean())
    if "without the attack" in found:
        assert found["without the attack"] == replace(main, attack=None, byzantine=0, clients=main.honest)
