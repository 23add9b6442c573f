"""What every attack promises, for every attack there is."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from fedsim import attacks
from fedsim.check import Invalid
from fedsim.strategies import NNM, Chain, Median
from fedsim.types import Attack, Batch, Target, View

D = 12
PILOTED = "Portfolio"  # acts through its members, see test_portfolio.py
EVERY = [getattr(attacks, name)() for name in attacks.__all__ if name != PILOTED]
VARIANTS = [
    attacks.ALIE(z=1.5, std="sample", side="+", rows="own"),
    attacks.Adaptive(attacks.IPM(), "reverse"),
    attacks.Adaptive(attacks.IPM(), "progress"),
    attacks.Adaptive(attacks.IPM(), "drift"),
    attacks.Adaptive(attacks.SignFlip()),
    attacks.Mimic(victim=1, warmup=3),
    attacks.Concentrated(share=0.3, factor=2.0, places="rarest"),
    attacks.MinMax("unit"),
    attacks.OmniscientSign("cancel"),
    attacks.WorstCase("reverse", steps=2),
]


def view_of(n: int, f: int, seed: int = 0) -> View:
    """A round with everything granted."""
    rows = torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 0.5
    h = n - f
    target = Target(Chain(NNM(), Median()), f, None, lambda last: torch.cat([rows[:h], last]), 0, h)
    chance = torch.Generator().manual_seed(seed)
    return View(n, f, 0, torch.zeros(D), chance, own=rows[h:], honest=rows[:h], target=target)


def test_the_names_are_sorted_and_complete() -> None:
    assert sorted(attacks.__all__, key=lambda name: (not name.isupper(), name)) == attacks.__all__
    assert all(isinstance(attack, Attack) for attack in EVERY)


@pytest.mark.parametrize("attack", EVERY + VARIANTS, ids=repr)
@pytest.mark.parametrize(("n", "f"), [(5, 2), (9, 1), (9, 4)])
def test_it_forges_f_rows_from_what_it_needs_and_from_nothing_else(attack: Attack, n: int, f: int) -> None:
    full = view_of(n, f)
    before = (full.own.clone(), full.honest.clone())
    rows, memory = attack.remember(full, {})
    assert rows.shape == (f, D)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    assert torch.equal(full.own, before[0])
    assert torch.equal(full.honest, before[1])
    assert all(isinstance(value, torch.Tensor) for value in memory.values())
    hidden = {"own": "own", "honest": "honest", "rule": "target"}
    withheld = {field: None for knowledge, field in hidden.items() if knowledge not in attack.needs}
    same = attack.remember(replace(view_of(n, f), **withheld), {})[0]
    torch.testing.assert_close(same, rows, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("attack", EVERY + VARIANTS, ids=repr)
def test_poison_returns_a_batch_and_leaves_its_own_alone(attack: Attack) -> None:
    x, y = torch.rand(2, 6, 1, 5, 5), torch.arange(12).reshape(2, 6) % 10
    batch = Batch(x.clone(), y.clone(), torch.ones(2, 6))
    done = attack.poison(batch, 10)
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.y, y)
    assert done.x.shape == x.shape
    assert int(done.y.min()) >= 0
    assert int(done.y.max()) < 10
    changed = not (torch.equal(done.x, x) and torch.equal(done.y, y))
    assert changed == attack.poisons


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_attacks_are_values(attack: Attack) -> None:
    assert attack == type(attack)()
    assert hash(attack) == hash(type(attack)())
    with pytest.raises(FrozenInstanceError):
        attack.something = 1


def test_a_wrong_part_of_an_adaptive_attack_is_refused() -> None:
    with pytest.raises(Invalid, match=r"Adaptive.attack"):
        attacks.Adaptive(attacks.Zero())
