"""The adaptive search against a fine grid of real runs of the rule, and the worst case against the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor

from fedsim.attacks import ALIE, IPM, Adaptive, SignFlip, WorstCase
from fedsim.attacks.forecast import Forecast, Path
from fedsim.attacks.objective import Aim
from fedsim.check import Invalid
from fedsim.strategies import (
    NNA,
    NNM,
    Bucketing,
    CenteredClipping,
    Chain,
    GeometricMedian,
    Krum,
    MajorityVote,
    Mean,
    Median,
    MultiKrum,
    TrimmedMean,
)
from fedsim.types import Rule, Target, View

RULES = [
    Mean(),
    Median(),
    TrimmedMean(),
    Krum(),
    MultiKrum(),
    GeometricMedian(),
    NNA(pivot=0),
    CenteredClipping(tau=1.0),
    Chain(NNM(), Median()),
    Chain(NNM(), TrimmedMean()),
    Chain(NNM(), Krum()),
    Chain(Bucketing(), TrimmedMean()),
]
FINE = torch.linspace(-8, 8, 161)


def view_of(
    rule: Rule,
    n: int = 13,
    f: int = 3,
    d: int = 40,
    seed: int = 0,
    shift: float = 0.3,
    previous: Tensor | None = None,
    receive: Callable[[Tensor], Tensor] | None = None,
) -> View:
    """Honest rows whose coordinates differ in scale, around a common part."""
    make = Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=make) * torch.rand(d, generator=make) ** 3
    rows = rows + shift * torch.randn(d, generator=make)
    h = n - f
    take = receive or (lambda last: torch.cat([rows[:h], last]))
    target = Target(rule, f, previous, take, 5, h)
    return View(n, f, 0, torch.zeros(d), make, own=rows[h:], honest=rows[:h], target=target)


def damage_of(view: View, forged: Tensor, objective: str = "distance") -> float:
    s = view.target.receive(forged)[: view.target.honest].mean(0)
    return float(Aim(s, objective == "reverse")(view.target(forged)))


def best_of_grid(view: View, attack, objective: str = "distance") -> float:
    origin, direction = attack.line(view)
    rows = (origin + t * direction for t in FINE)
    return max(damage_of(view, row.expand(view.f, -1), objective) for row in rows)


@pytest.mark.parametrize("attack", [ALIE(), IPM(), SignFlip()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_it_finds_99_percent_of_the_best_damage(rule: Rule, attack) -> None:
    view = view_of(rule, seed=RULES.index(rule), shift=0.3)
    found = damage_of(view, Adaptive(attack, bound=8.0).forge(view))
    assert found >= 0.99 * best_of_grid(view, attack)


@pytest.mark.parametrize("rule", [Median(), Krum(), Chain(NNM(), TrimmedMean())], ids=repr)
def test_the_reverse_objective_turns_the_answer_back(rule: Rule) -> None:
    view = view_of(rule, seed=1)
    s = view.honest.mean(0)
    found = damage_of(view, Adaptive(IPM(), "reverse", bound=8.0).forge(view), "reverse")
    best = best_of_grid(view, IPM(), "reverse")
    assert found + s.norm() >= 0.99 * (best + s.norm())  # above what the honest mean itself has


def test_either_sign_may_win() -> None:
    """Three honest rows on a line, skewed: Krum is fooled farther on the side where the odd one lies."""
    for side in (1.0, -1.0):
        honest = side * torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.9]])
        target = Target(TrimmedMean(), 1, None, lambda last, h=honest: torch.cat([h, last]), 0, 5)
        view = View(6, 1, 0, torch.zeros(1), Generator(), honest=honest, target=target)
        forged = Adaptive(ALIE(side="+")).forge(view)
        answers = {t: float(target(torch.tensor([[t]]))) for t in (-5.0, 5.0)}
        worse = max(answers, key=lambda t: abs(answers[t] - float(honest.mean())))
        assert float(forged) * worse > 0


def test_the_factor_stays_in_bounds() -> None:
    view = view_of(Mean())
    for bound in (0.5, 30.0):
        forged = Adaptive(ALIE(side="+"), bound=bound).forge(view)
        origin, direction = ALIE(side="+").line(view)
        torch.testing.assert_close((forged[0] - origin).abs(), bound * direction, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------ the forecast
def path_of(view: View) -> Path:
    return Path.through(view.target, *ALIE().line(view), view.f)


@pytest.mark.parametrize("objective", ["distance", "reverse"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_forecast_is_what_the_rule_does(rule: Rule, objective: str) -> None:
    for previous in (None, torch.full((40,), 0.2)):
        view = view_of(rule, previous=previous)
        path = path_of(view)
        origin, direction = ALIE().line(view)
        assert Forecast.knows(path)
        factors = torch.tensor([-3.0, -0.7, 0.0, 0.4, 1.3, 9.0], dtype=torch.float64)
        run = torch.tensor(
            [damage_of(view, (origin + float(t) * direction).expand(3, -1), objective) for t in factors]
        )
        aim = Aim(path.s, objective == "reverse")
        torch.testing.assert_close(Forecast(path, aim)(factors).float(), run, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", [Median(), Chain(NNM(), TrimmedMean())], ids=repr)
def test_a_sample_of_columns_tells_enough(rule: Rule) -> None:
    view = view_of(rule, d=30_000)
    path = path_of(view)
    for t in (0.5, 1.5, 4.0):
        forged = path.rows[10:] + t * path.step
        expected = pytest.approx(damage_of(view, forged), rel=0.05, abs=1e-4)
        assert float(Forecast(path, Aim(path.s, against=False))(torch.tensor([t]))) == expected
    assert damage_of(view, Adaptive(bound=8.0).forge(view)) >= 0.99 * best_of_grid(view, ALIE())


@pytest.mark.parametrize("rule", [Krum(), Chain(NNM(), Median())], ids=repr)
def test_a_large_common_part_costs_no_digits(rule: Rule) -> None:
    view = view_of(rule, shift=3e3)  # the spread is 1e-3 of that and less
    assert path_of(view).straight
    assert damage_of(view, Adaptive(bound=8.0).forge(view)) >= 0.99 * best_of_grid(view, ALIE())


@dataclass(frozen=True)
class Foreign(Rule):
    """A user's own rule, of which nothing is known but its answers."""

    def __call__(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        return rows.detach().sort(0).values[f : len(rows) - f].mean(0)

    def max_f(self, n: int) -> int:
        return (n - 1) // 2


def test_any_other_rule_is_tried_out() -> None:
    foreign, known = view_of(Foreign()), view_of(TrimmedMean())
    assert not Forecast.knows(path_of(foreign))
    ends = [damage_of(known, Adaptive().forge(view)) for view in (foreign, known)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)
    with pytest.raises(Invalid, match="gives no gradient"):
        WorstCase().forge(foreign)


def test_the_servers_memory_is_looked_through() -> None:
    """What the rule sees may be m + beta * message; a memory that is no line is tried out instead."""
    memory = torch.randn(13, 40, generator=Generator().manual_seed(9))
    first = view_of(Krum())

    def accumulate(last: Tensor) -> Tensor:
        return memory + 0.1 * torch.cat([first.honest, last])

    def squash(last: Tensor) -> Tensor:
        return torch.cat([first.honest, last]).tanh()

    for receive in (accumulate, squash):
        view = view_of(Krum(), receive=receive)
        assert path_of(view).straight == (receive is accumulate)
        assert damage_of(view, Adaptive(bound=8.0).forge(view)) >= 0.99 * best_of_grid(view, ALIE())


def test_identical_honest_rows_and_a_line_of_no_length() -> None:
    honest = torch.ones(5, 4)
    target = Target(Median(), 2, None, lambda last: torch.cat([honest, last]), 0, 5)
    view = View(7, 2, 0, torch.zeros(4), Generator(), honest=honest, target=target)
    torch.testing.assert_close(Adaptive(ALIE()).forge(view), torch.ones(2, 4))
    assert Adaptive(IPM()).forge(view).isfinite().all()


def test_an_honest_mean_of_zero_and_a_broken_honest_row_stop_nothing() -> None:
    honest = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    for rows in (honest, torch.cat([honest, torch.full((1, 2), torch.nan)])):
        target = Target(Median(), 1, None, lambda last, r=rows: torch.cat([r, last]), 0, len(rows))
        view = View(len(rows) + 1, 1, 0, torch.zeros(2), Generator(), honest=rows, target=target)
        for objective in ("distance", "reverse"):
            forged = Adaptive(ALIE(), objective).forge(view)
            assert forged.shape == (1, 2)
            assert forged.isfinite().all() == rows.isfinite().all()


def test_peers_are_attacked_through_the_mean_of_their_answers() -> None:
    view = view_of(NNA(pivot=0))
    view = replace(view, target=replace(view.target, topology=torch.ones(13, 13, dtype=torch.bool)))
    assert not Forecast.knows(path_of(view))
    found = damage_of(view, Adaptive(bound=8.0).forge(view))
    assert found >= 0.99 * best_of_grid(view, ALIE())
    assert damage_of(view, WorstCase("distance", steps=2).forge(view)) >= 0.99 * found


# ------------------------------------------------------------ the worst case
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_worst_case_is_no_better_than_the_search(rule: Rule) -> None:
    view = view_of(rule, d=15)
    for objective in ("distance", "reverse"):
        worst = damage_of(view, WorstCase(objective, grid=32).forge(view), objective)
        searched = damage_of(view, Adaptive(ALIE(), objective).forge(view), objective)
        assert worst >= searched - 1e-3 * abs(searched)


def test_the_ascent_climbs() -> None:
    """A geometric median is moved by unit vectors: along the std none of them has the best direction."""
    view = view_of(GeometricMedian())
    ends = [damage_of(view, WorstCase("distance", steps=steps).forge(view)) for steps in (1, 20)]
    assert ends[1] > 1.05 * damage_of(view, Adaptive(ALIE()).forge(view))
    assert ends[1] >= ends[0]


def test_the_worst_case_of_a_median_is_known() -> None:
    """f rows at one end make the median an order statistic of the honest rows, a place or more off the middle."""
    view = view_of(Median(), n=9, f=2)
    ordered = view.honest.sort(0).values  # 7 honest of 9 rows: the median is place 4 of 9
    s = view.honest.mean(0)
    worst = torch.maximum((ordered[2] - s).abs(), (ordered[4] - s).abs()).norm()
    assert damage_of(view, WorstCase("distance").forge(view)) == pytest.approx(float(worst), rel=0.02)


def test_votes_have_no_gradient_but_a_worst_case() -> None:
    view = view_of(MajorityVote())
    worst = damage_of(view, WorstCase("distance").forge(view))
    assert worst >= damage_of(view, SignFlip().forge(view))
