"""A table of which one row changes at a time, beside all of it worked out anew: distances, sums, answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from fedsim.batches import Fixed
from fedsim.clock import Clock, Ladder
from fedsim.course import Course
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.engines import Everyone, vector
from fedsim.federation import Federation
from fedsim.models import MLP
from fedsim.spec import Experiment
from fedsim.strategies import IA2SGD, NNM, Chain, GeometricMedian, Krum, Mean, Ringleader, TrimmedMean
from fedsim.strategies.kernels import gram
from fedsim.strategies.kernels.columns import Rows
from fedsim.strategies.kernels.gram import Points
from fedsim.task import Task
from fedsim.types import Kept, Rule

N, D, F = 9, 300, 2
RULES: dict[str, Rule] = {
    "mean": Mean(),
    "Krum": Krum(),
    "geometric median": GeometricMedian(),
    "NNM + trimmed mean": Chain(NNM(), TrimmedMean()),
    "NNM + Krum": Chain(NNM(), Krum()),
}


def changes(seed: int) -> Iterator[tuple[Tensor, int | None]]:
    """A table as it changes: rows near to each other and far from the origin, liars, twins, and back again."""
    generator = Generator().manual_seed(seed)

    def row() -> Tensor:
        return common + torch.randn(D, generator=generator)

    common = (0.0, 1e2, 3e3)[seed % 3] * torch.randn(D, generator=generator)
    table = torch.stack([row() for _ in range(N)])
    yield table, None
    for step in range(30):
        i = int(torch.randint(N, (), generator=generator))
        lie = step % 5
        table[i] = 1e5 * row() if lie == 1 else table[i - 1].clone() if lie == 2 else row()
        yield table, i


@pytest.mark.parametrize("seed", range(6))
def test_distances_are_as_right_as_those_of_the_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside float64: to 1e-4 of each, equal rows at 0, and most of them without the product of all rows."""
    products, whole = 0, Points._inner

    def counted(points: Points, *args: Any) -> Tensor:
        nonlocal products
        products += len(args) < 3  # of all rows, not of a few close ones
        return whole(points, *args)

    monkeypatch.setattr(Points, "_inner", counted)
    old: dict[str, Tensor] = {}
    for table, changed in changes(seed):
        kept = Kept(changed, old)
        _, squared = Points(Rows(table), [None], kept).measure()
        z = torch.cat([table, torch.zeros(1, D)]).double()
        right = (z[:, None] - z[None]).square().sum(-1)
        torch.testing.assert_close(squared, right, rtol=1e-4, atol=0)
        assert torch.equal(squared, squared.T)
        old = kept.new
    assert 1 <= products <= 10  # of 31: where the middle has moved away, all are measured again


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RULES)
def test_answers_are_those_of_the_whole(name: str, seed: int) -> None:
    """Within 1e-4 of the distance between rows, as distances are, and float32; sums are equal to the bit."""
    rule, old = RULES[name], dict[str, Tensor]()
    for table, changed in changes(seed):
        kept = Kept(changed, old)
        answer = rule.of_table(table, F, kept, previous=None, generator=None)
        whole = rule(table, F)
        norms, spread = table.norm(dim=1), (table - table.median(0).values).norm(dim=1).median()
        rounding = 2e-7 * (norms.max() if name == "mean" else norms.median())
        assert (answer - whole).norm() <= 1e-4 * (spread if name != "mean" else 0) + rounding
        if name == "mean":
            assert torch.equal(answer, rule.of_table(table, F, Kept(), previous=None, generator=None))
        old = kept.new


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_kept_of_broken_rows_nor_of_a_table_that_was_not_looked_at(name: str) -> None:
    rule, (table, _) = RULES[name], next(changes(0))
    first = Kept()
    rule.of_table(table, F, first, previous=None, generator=None)
    assert first.new
    broken = table.clone()
    broken[3, 5] = torch.nan
    second = Kept(3, first.new)
    answer = rule.of_table(broken, F, second, previous=None, generator=None)
    assert not second.new
    torch.testing.assert_close(answer, rule(broken, F))
    assert Kept(3, second.new).of("inner", N, N) is None
    assert Kept(None, first.new).of("inner", N, N) is None


@pytest.mark.parametrize("method", [Ringleader(lr=0.2), Ringleader(lr=0.2, missing=1), IA2SGD(lr=0.05)])
def test_runs_measure_the_whole_table_seldom(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And come to what they come to where any row may have changed each time."""
    e = Experiment(
        task=Task(data=Blobs(), model=MLP(hidden=6)),
        split=Dirichlet(1.0),
        clients=7,
        rule=Chain(NNM(), Krum()),
        f=1,
        method=method,
        batches=Fixed(4),
        rounds=40,
        evaluate_every=40,
        clock=Clock(Ladder()),
    )

    def went() -> tuple[Tensor, int]:
        products, whole = 0, gram.Points._inner

        def counted(*arguments: Any) -> Tensor:
            nonlocal products
            products += len(arguments) == 3  # of all points
            return whole(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gram.Points, "_inner", counted)
            fed = Federation(e)
            course = Course.start(fed, fed.client_state())
            while course.goes_on(fed):
                course.advance(fed, Everyone(vector.rows), [])
        return course.server.x, products

    seldom, few = went()
    monkeypatch.setattr(Kept, "of", lambda self, name, *shape: None)
    always, many = went()
    assert few <= many / 3
    torch.testing.assert_close(seldom, always, rtol=1e-5, atol=1e-6)
