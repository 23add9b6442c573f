"""The adversaries that try out the rule, on every rule there is; and the page on attacks, whose example is run."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fedsim import strategies
from fedsim.attacks import ALIE, Adaptive, WorstCase
from fedsim.attacks.objective import Aim
from fedsim.config.catalog import names
from fedsim.types import Attack, Rule, Target, View


def view_of(rule: Rule, n: int = 12, f: int = 2) -> View:
    rows = torch.randn(n, 9, generator=torch.Generator().manual_seed(1)) + 0.2
    target = Target(rule, f, None, lambda last: torch.cat([rows[: n - f], last]), 3, n - f)
    chance = torch.Generator().manual_seed(2)
    return View(n, f, 0, torch.zeros(9), chance, own=rows[n - f :], honest=rows[: n - f], target=target)


def rule_of(name: str) -> Rule:
    if name == "Chain":
        return strategies.Chain(strategies.ARC(), strategies.Bulyan())
    if name == "PerLayer":
        return strategies.PerLayer(strategies.Median())
    return names("rules")[name](**({"tau": 1.0} if name == "CenteredClipping" else {}))


@pytest.mark.parametrize("name", names("rules"))
def test_every_rule_can_be_searched_and_climbed(name: str) -> None:
    view = view_of(rule_of(name))
    s = view.honest.mean(0)

    def done(attack: Attack) -> float:
        return float(Aim(s, against=False)(view.target(attack.forge(view))))

    plain, searched, climbed = done(ALIE()), done(Adaptive(grid=8)), done(WorstCase("distance", steps=2))
    assert searched >= 0.99 * plain
    assert climbed >= 0.99 * plain


def test_the_example_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "own_attack.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    shrink, view = import_module("own_attack").Shrink(), view_of(strategies.Median())
    torch.testing.assert_close(shrink.forge(view)[0], 0.1 * view.honest.mean(0))
    assert Adaptive(shrink).forge(view).shape == (2, 9)
