"""What counts as damage, each against a search by brute force over two rounds of a quadratic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from fedsim.attacks import ALIE, IPM, Adaptive, WorstCase
from fedsim.attacks.forecast import Forecast, Path
from fedsim.attacks.objective import Aim, aim_of
from fedsim.strategies import NNM, CenteredClipping, Chain, GeometricMedian, Krum, Mean, Median, TrimmedMean
from fedsim.types import Attack, Rule, State, Target, View

RULES = [Mean(), Median(), TrimmedMean(), Krum(), GeometricMedian(), Chain(NNM(), TrimmedMean())]
OBJECTIVES = ["distance", "reverse", "progress", "drift"]
H, F, D, STEP = 7, 2, 12, 0.3
CENTRES = torch.randn(H, D, generator=Generator().manual_seed(4)) * torch.linspace(0.2, 2, D) + 1.0
FINE = torch.linspace(-6, 6, 241)


def view_of(rule: Rule, x: Tensor, round: int, previous: Tensor | None) -> View:
    """Client i has the loss ||x - c_i||^2 / 2, and sends its gradient at x."""
    honest = x - CENTRES
    target = Target(rule, F, previous, lambda last: torch.cat([honest, last]), 0, H)
    return View(H + F, F, round, x, Generator().manual_seed(round), honest=honest, target=target)


def played(rule: Rule, attack: Attack) -> list[tuple[View, Tensor]]:
    """The views of two rounds of gradient descent, with what the rule answers to the attack in each."""
    x, previous, found = torch.zeros(D), None, list[tuple[View, Tensor]]()
    memory: State = {}
    for round in range(2):
        view = view_of(rule, x, round, previous)
        rows, memory = attack.remember(view, memory)
        previous = view.target(rows)
        found.append((view, previous))
        x = x - STEP * previous
    return found


def by_hand(objective: str, played: list[tuple[View, Tensor]]) -> Callable[[Tensor], float]:
    """The damage of an answer in the second round, from the first round's mean s and answer a, by its definition."""
    (first, a), (second, _) = played
    s0, s1 = first.honest.mean(0), second.honest.mean(0)
    u = 0.9 * s0 + 0.1 * s1
    return {
        "distance": lambda answer: float((answer - s1).norm()),
        "reverse": lambda answer: float(-(answer @ s1) / s1.norm()),
        "progress": lambda answer: float(-(answer @ u) / u.norm()),
        "drift": lambda answer: float((0.9 * (a - s0) + answer - s1).norm()),
    }[objective]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_second_round_is_as_bad_as_brute_force_finds(rule: Rule, objective: str) -> None:
    for line in (ALIE(), IPM()):
        rounds = played(rule, Adaptive(line, objective, bound=6.0))
        view, answer = rounds[1]
        harm = by_hand(objective, rounds)
        origin, direction = line.line(view)
        tried = [harm(view.target((origin + t * direction).expand(F, -1))) for t in FINE]
        scale = abs(max(tried)) + 1e-3 * float(view.honest.mean(0).norm())
        assert harm(answer) >= max(tried) - 0.01 * scale


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_worst_case_is_no_better_than_brute_force_along_its_lines(rule: Rule, objective: str) -> None:
    rounds = played(rule, WorstCase(objective, bound=6.0, grid=32, every=1))
    view, answer = rounds[1]
    harm, s = by_hand(objective, rounds), rounds[1][0].honest.mean(0)
    for _, direction in (ALIE().line(view), (s, -s)):
        tried = [harm(view.target((s + t * direction).expand(F, -1))) for t in FINE]
        assert harm(answer) >= max(tried) - 0.01 * (abs(max(tried)) + float(s.norm()))


def test_two_rounds_of_pushes_that_agree_do_more_than_two_that_do_not() -> None:
    """Against the mean, on a line: rounds of "distance" may push either way, "drift" goes on as it began."""
    rounds = played(Mean(), Adaptive(ALIE(), "drift", bound=6.0))
    (first, a), (second, b) = rounds
    pushes = [a - first.honest.mean(0), b - second.honest.mean(0)]
    assert float(pushes[0] @ pushes[1]) > 0.99 * float(pushes[0].norm() * pushes[1].norm())


@pytest.mark.parametrize("rule", [*RULES, CenteredClipping(tau=1.0)], ids=repr)
@pytest.mark.parametrize("against", [False, True])
def test_a_forecast_holds_for_any_point(rule: Rule, against: bool) -> None:
    point = torch.randn(D, generator=Generator().manual_seed(8))
    view = view_of(rule, torch.zeros(D), 0, torch.full((D,), 0.2))
    origin, direction = IPM().line(view)
    path, aim = Path.through(view.target, origin, direction, F), Aim(point, against)
    factors = torch.tensor([-3.0, -0.5, 0.0, 0.7, 2.0, 9.0], dtype=torch.float64)
    run = [float(aim(view.target((origin + float(t) * direction).expand(F, -1)))) for t in factors]
    torch.testing.assert_close(
        Forecast(path, aim)(factors), torch.tensor(run, dtype=torch.float64), rtol=1e-3, atol=1e-3
    )


def test_what_looks_at_one_round_remembers_nothing() -> None:
    view = view_of(Median(), torch.zeros(D), 0, None)
    s = view.honest.mean(0)
    assert all(aim_of(name, s, view.target, {})[1] == {} for name in ("distance", "reverse"))
    assert aim_of("progress", s, view.target, {})[1].keys() == {"u"}
    assert aim_of("drift", s, view.target, {})[1].keys() == {"drift", "s"}


@pytest.mark.parametrize("attack", [WorstCase(every=5), Adaptive(IPM(), "reverse", every=5)], ids=repr)
def test_between_two_searches_the_rule_is_asked_a_few_times(attack: Attack) -> None:
    """So it costs a fraction of a search in every round, and still backs off where its rows would be found out."""
    asked = []

    class Counted(Krum):
        def __call__(self, *args: Tensor, **rest: Tensor) -> Tensor:
            asked.append(1)
            return super().__call__(*args, **rest)

        def weights_from_gram(self, *args: Tensor, **rest: Tensor) -> Tensor:
            asked.append(1)
            return super().weights_from_gram(*args, **rest)

    view = view_of(Counted(), torch.zeros(D), 0, None)
    rows, memory = attack.remember(view, {})
    assert len(asked) > 20
    asked.clear()
    s = view.honest.mean(0)
    tight = Target(Counted(), F, None, lambda last: torch.cat([s + 0.5 * (view.honest - s), last]), 0, H)
    later = View(H + F, F, 1, view.x, view.generator, honest=view.honest, target=tight)
    kept, _ = attack.remember(later, memory)
    assert len(asked) <= 12
    assert bool((kept.norm(dim=1) <= 1.6 * rows.norm(dim=1)).all())
    harm = Aim(s, against=True)
    assert float(harm(tight(kept))) >= max(float(harm(tight(k * rows))) for k in (1.0, 0.6)) - 1e-6
