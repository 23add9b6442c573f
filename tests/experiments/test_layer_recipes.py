"""What the recipes of steps by layer make of their records, on tables whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from test_recipes import words

from fedsim.batches import Fixed
from fedsim.experiments.recipes.batch_budget import CONSTANTS, sized
from fedsim.experiments.recipes.layer_bits import bits_figure, bits_to_loss, layer_bits
from fedsim.experiments.recipes.layer_steps import best_steps, noise_figure, noisy_singular_values
from fedsim.messages import TopK
from fedsim.runner import run
from fedsim.strategies import EF21Muon


def curve(losses: list[float], bits: int) -> pd.DataFrame:
    rounds = range(1, len(losses) + 1)
    up = [bits * 10**6 * r for r in rounds]
    return pd.DataFrame(
        {"round": rounds, "loss": losses, "uplink_bits": up, "downlink_bits": [10**6 * r for r in rounds]}
    )


def test_bits_to_a_loss() -> None:
    frames = {
        "Scion": [curve([3.0, 2.0, 1.0], 8), curve([3.0, 1.9, 1.0], 8)],
        "half as fast": [curve([3.0, 3.0, 3.0, 2.0], 1), curve([3.0, 2.9, 2.8, 2.7], 1)],
    }
    table = bits_to_loss(frames, 2.0).set_index("method")
    assert table.loc["Scion", ["reached", "up", "down", "round trip"]].tolist() == [2, 16, 2, 18]
    other = table.loc["half as fast"]
    assert other[["reached", "rounds", "up", "fewer up", "fewer down"]].tolist() == [1, 4, 4, 4, 0.5]
    assert other["final loss"] == pytest.approx(2.35)
    assert "half as fast" in bits_figure(frames).svg()


def test_the_best_step_is_that_of_the_least_mean_loss() -> None:
    lines = [
        {"method.polar": polar, "method.momentum": "0.9", "method.lr": lr, "loss": loss + seed / 10}
        for polar, losses in {"coarse": (1.0, 2.0), "exact": (3.0, 0.5)}.items()
        for lr, loss in zip(("0.1", "0.2"), losses, strict=True)
        for seed in range(3)
    ]
    table = best_steps(pd.DataFrame(lines)).set_index("polar")
    assert table["lr"].to_dict() == {"coarse": "0.1", "exact": "0.2"}
    assert table["loss"].tolist() == pytest.approx([1.1, 0.6])
    assert table["deviation"].tolist() == pytest.approx([0.1, 0.1])


def test_noise_takes_more_of_the_polar_factor_than_of_the_gradient() -> None:
    table = noisy_singular_values((0.0, 0.02, 1.0), seeds=1)
    kept = table.groupby("noise")[["polar", "gradient"]].mean()
    assert kept.loc[0.0].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert kept["polar"].is_monotonic_decreasing
    assert kept.loc[0.02, "polar"] < kept.loc[0.02, "gradient"]
    top = table[(table.noise == 1.0) & (table.place == 1)].iloc[0]
    assert top["value"] == pytest.approx(top["alone"], rel=0.05)  # far beyond the gradient all is noise
    assert "noise multiplier 0.02" in noise_figure(table).svg()


def test_the_record_has_the_loss_of_what_clients_hold() -> None:
    """w lags behind x where the broadcast is compressed: what the report's figure of both is made of."""
    base = replace(layer_bits(reduced=True).base, rounds=4, evaluate_every=2, batches=Fixed(4))
    whole, both = (
        run(replace(base, method=EF21Muon(down=down)), dataset=words()).frame for down in (None, TopK(0.1))
    )
    assert whole["round"].tolist() == [2, 4]
    assert "w_loss" not in whole  # x is what clients have
    assert (both["loss"] - both["w_loss"]).abs().min() > 1e-5


def test_a_batch_of_a_budget_spends_it() -> None:
    """Eight times the examples: four times the batch, twice the rounds, and no more examples than there are."""
    for c in CONSTANTS:
        (small, few), (large, many) = (
            (int(sized(budget, c)["batches"][6:-1]), int(sized(budget, c)["rounds"]))
            for budget in (16_000, 128_000)
        )
        assert 10 * small * few == pytest.approx(16_000, rel=0.02)
        assert 10 * large * many == pytest.approx(128_000, rel=0.02)
        assert large / small == pytest.approx(4, rel=0.1)
