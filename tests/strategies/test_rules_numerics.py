"""Where others lose digits: weights around a large common part, huge Byzantine rows, tiny scales, exact optima."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import rule_oracles as oracle
import torch
from torch import Generator

from fedsim.check import Invalid
from fedsim.strategies import (
    CAF,
    MDA,
    NNA,
    NNM,
    RFA,
    SMEA,
    Bucketing,
    CenteredClipping,
    Chain,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NoisyMajorityVote,
    NoisyMedian,
    TrimmedMean,
)
from fedsim.strategies.kernels.base import Stage
from fedsim.strategies.kernels.columns import Rows
from fedsim.strategies.kernels.gram import Points
from fedsim.types import Rule


def near(n: int, d: int, seed: int, spread: float = 1e-3) -> torch.Tensor:
    """Rows that differ by `spread` around a common part of size 1, as model weights do."""
    generator = Generator().manual_seed(seed)
    return torch.randn(d, generator=generator) + spread * torch.randn(n, d, generator=generator)


def exact(rows: torch.Tensor) -> torch.Tensor:
    z = rows.double()
    return (z[:, None] - z[None]).square().sum(-1)


# ---------------------------------------------------------------- distances
@pytest.mark.parametrize("n", [10, 30])
@pytest.mark.parametrize("huge", [None, 1e3, 1e10, 1e17, 1e30])
def test_the_right_row_is_picked_among_near_rows_beside_huge_ones(n: int, huge: float | None) -> None:
    f = n // 5
    for seed in range(15):
        x = near(n, 3000, seed)
        if huge is not None:
            x[n - f :] = huge * torch.randn(f, 3000, generator=Generator().manual_seed(seed))
        scores = exact(x).sort(1).values[:, 1 : n - f - 1].sum(1)
        assert torch.equal(Krum()(x, f), x[scores.argmin()])
        order = scores.argsort()[: n - f]
        assert torch.allclose(MultiKrum()(x, f), x[order].double().mean(0).float(), rtol=1e-6, atol=1e-7)
        nearest = exact(x)[0].argsort()[: n - f]
        assert torch.allclose(NNA(0)(x, f), x[nearest].double().mean(0).float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1.0, 1e18, 1e37])
def test_distances_are_right_at_every_scale_of_float32(scale: float) -> None:
    x = (torch.randn(12, 500, generator=Generator().manual_seed(1)).double() * scale).float()
    _, squared = Points(Rows(x, finite=True), []).measure()
    assert torch.allclose(squared, exact(x), rtol=1e-4, atol=0)


def test_close_rows_far_from_the_others_have_right_distances_too() -> None:
    x = torch.cat(
        [near(9, 400, 1), 1e4 + near(6, 400, 2), -1e7 + 1e3 * near(3, 400, 3), torch.full((2, 400), 5e8)]
    )
    _, squared = Points(Rows(x), []).measure()
    assert torch.allclose(squared, exact(x), rtol=1e-4, atol=0)
    assert squared[18, 19] == 0


def test_a_row_that_hides_in_the_sampled_columns_is_no_centre() -> None:
    x = near(11, 64_000, 4)
    x[0] = x[1:].mean(0)
    x[0, 40] = 1e17  # between two sampled stretches
    assert torch.equal(Krum()(x, 2), x[exact(x).sort(1).values[:, 1:8].sum(1).argmin()])


def test_broken_rows_of_float64_include_those_too_large_to_square() -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    x[6, 0] = 1e200
    for rule in (Krum(), Chain(NNM(), Median()), GeometricMedian()):
        assert torch.equal(rule(x, 1), rule(x[:6], 0))


# ---------------------------------------------------------------- optima
@pytest.mark.parametrize("spread", [1e-8, 1e-2, 1.0, 1e6])
def test_the_geometric_median_converges_whatever_the_spread(spread: float) -> None:
    x = torch.randn(11, 6, generator=Generator().manual_seed(2), dtype=torch.float64)
    x[8:] += 4
    x = 1.0 + x * spread
    want = oracle.geometric_median(x.numpy(), 0)
    assert np.abs(GeometricMedian()(x, 3).numpy() - want).max() < 1e-4 * spread
    absolute = RFA(nu=0.1, start="origin")(x, 3).numpy()  # what an absolute floor does
    assert spread > 0.1 or np.abs(absolute - x.numpy().mean(0)).max() < 1e-1 * spread


def test_the_geometric_median_is_a_row_where_that_is_best() -> None:
    x = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [-3.0, -3.0], [0.1, 0.1]])
    for rows in (x, torch.cat([x, x[:1]]), torch.cat([x[:1]] * 4 + [x[1:3] * 1e8])):
        best = rows[(rows.double()[:, None] - rows.double()).norm(dim=-1).sum(1).argmin()]
        cost = lambda y, rows=rows: float((rows.double() - y.double()).norm(dim=1).sum())  # noqa: E731
        answer = GeometricMedian()(rows)
        assert cost(answer) <= cost(best) * (1 + 1e-7)
    assert GeometricMedian()(torch.cat([x[:1]] * 4 + [x[1:3] * 1e8])).tolist() == [0, 0]


def test_minimum_diameter_subsets_are_exact_far_beyond_listing_them() -> None:
    x = torch.randn(50, 20, generator=Generator().manual_seed(5))
    x[45:] *= 3
    f = 10
    kept = MDA().weights_from_gram((x @ x.T).double(), f)[0] > 0
    assert kept.sum() == 40
    assert comb(50, f) > 1e10
    squared = exact(x)
    diameter = squared[kept][:, kept].max()
    # no 40 rows have a smaller one: f of them at the most may meet all the conflicts that remain
    conflicts = torch.triu(squared >= diameter).nonzero()
    assert _smallest_cover(conflicts.tolist()) > f


def _smallest_cover(conflicts: list[list[int]]) -> int:
    """By integer programming."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = max(max(pair) for pair in conflicts) + 1
    rows = np.zeros((len(conflicts), n))
    for k, pair in enumerate(conflicts):
        rows[k, pair] = 1
    found = milp(
        np.ones(n), integrality=np.ones(n), bounds=Bounds(0, 1), constraints=LinearConstraint(rows, lb=1)
    )
    return round(found.fun)


def test_the_smallest_top_eigenvalue_is_exact() -> None:
    x = torch.randn(16, 4, generator=Generator().manual_seed(6), dtype=torch.float64)
    x[13:] += 2
    assert np.abs(SMEA()(x, 3).numpy() - oracle.smea(x.numpy(), 3)).max() < 1e-9


def test_a_search_that_is_too_long_says_what_else_there_is() -> None:
    x = torch.randn(40, 400, generator=Generator().manual_seed(7))
    with pytest.raises(
        Invalid, match=r"SMEA: n = 40, f = 15: no answer after 50 steps; raise SMEA.steps, or take CAF"
    ):
        SMEA(steps=50)(x, 15)
    with pytest.raises(Invalid, match=r"MDA: n = 40, f = 15: no answer after 3 steps"):
        MDA(steps=3)(x, 15)


def test_both_maxima_of_caf_agree_where_no_row_is_far() -> None:
    x = torch.randn(12, 5, generator=Generator().manual_seed(8))
    assert torch.allclose(CAF()(x, 2), CAF("all")(x, 2), atol=1e-5)
    x[11] += 100
    assert (CAF()(x, 2) - x[:11].mean(0)).norm() < 1


# ---------------------------------------------------------------- robustness
def shifts(honest: torch.Tensor, f: int) -> list[torch.Tensor]:
    """Byzantine rows (f, d) of many kinds: along several directions, both ways, near and far; copies; splits."""
    mean, deviation = honest.mean(0), honest.std(0)
    directions = [
        mean,
        deviation,
        torch.ones_like(mean),
        torch.linalg.svd(honest - mean).Vh[0],
        honest[0] - mean,
    ]
    rows = [mean + t * v for v in directions for t in (-100, -3, -1, -0.3, 0.3, 1, 3, 100)]
    rows += [honest[0], honest[(honest - mean).norm(dim=1).argmax()]]
    together = [row.expand(f, -1) for row in rows]
    return together + [
        torch.stack([rows[(k + 5 * i) % len(rows)] for i in range(f)]) for k in range(len(rows))
    ]


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(), Krum(), GeometricMedian(), SMEA()], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_the_deviation_stays_below_the_proven_bound(rule: object, mixed: bool) -> None:
    chain = Chain(NNM(), rule) if mixed else rule  # type: ignore[arg-type]
    for n, f, d in ((11, 1, 3), (13, 3, 8), (11, 4, 20)):
        kappa = chain.kappa(n, f)
        for seed in range(3):
            honest = torch.randn(n - f, d, generator=Generator().manual_seed(seed), dtype=torch.float64)
            honest += torch.arange(d) / d
            z = honest - honest.mean(0)
            top = (
                isinstance(rule, SMEA) and not mixed
            )  # proven with the largest eigenvalue in place of the trace
            spread = float(torch.linalg.matrix_norm(z, 2) ** 2 if top else z.square().sum()) / (n - f)
            for byzantine in shifts(honest, f):
                off = chain(torch.cat([honest, byzantine]), f) - honest.mean(0)
                assert off.square().sum() <= kappa * spread * (1 + 1e-9)


def test_kappa_is_known_where_it_is_proven() -> None:
    assert Median().kappa(25, 5) == pytest.approx(4 * (4 / 3) ** 2)
    assert Chain(NNM(), Median()).kappa(25, 5) == pytest.approx(8 * 5 / 20 * (4 * (4 / 3) ** 2 + 1))
    assert Chain(Bucketing(), Median()).kappa(25, 5) is None
    assert Mean().kappa(25, 5) is None


# ---------------------------------------------------------------- each node for itself
def test_nna_at_every_node_follows_its_definition() -> None:
    n, f = 13, 3
    x = torch.randn(n, 7, generator=Generator().manual_seed(9))
    received = torch.rand(n, n, generator=Generator().manual_seed(10)) < 0.7
    received[:, n - f :] = True
    received.fill_diagonal_(True)
    answers = NNA().each(x, f, received)
    for i in range(n):
        have = received[i].nonzero()[:, 0]
        order = (x[have] - x[i]).double().norm(dim=1).argsort(stable=True)[: len(have) - f]
        assert torch.allclose(answers[i], x[have[order]].mean(0), atol=1e-6)
    x[4, 2] = float("nan")  # never received; it was one of the f
    answers = NNA().each(x, f, received)
    assert answers[4].tolist() == [0] * 7
    for i in (0, 12):
        have = torch.tensor([j for j in received[i].nonzero()[:, 0].tolist() if j != 4])
        keep = len(have) - (f - int(received[i, 4]))
        order = (x[have] - x[i]).double().norm(dim=1).argsort(stable=True)[:keep]
        assert torch.allclose(answers[i], x[have[order]].mean(0), atol=1e-6)


@pytest.mark.parametrize("rule", [Median(), TrimmedMean()])
@pytest.mark.parametrize("far", [0, 4, 5, 6])
def test_where_all_but_f_mixed_rows_are_the_same_the_answer_is_that_row(rule: Rule, far: int) -> None:
    """Beside the same chain in two steps, which knows nothing of it; with one far row too many nothing is the same."""
    rows, f = torch.randn(25, 700, generator=Generator().manual_seed(far)), 5
    rows[25 - far :] *= -10
    answer = Chain(NNM(), rule)(rows, f)
    assert torch.allclose(answer, rule(NNM()(rows, f), f), atol=1e-6)
    assert torch.allclose(answer, rows[:20].mean(0), atol=1e-6) == (far == f)


# ---------------------------------------------------------------- chance, and memory
def test_bucketing_deals_every_row_once_by_the_generator() -> None:
    x = torch.randn(11, 4, generator=Generator().manual_seed(11))
    one, again, other = (Bucketing(3)(x, 1, generator=Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert one.shape == (4, 4)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    weights = Bucketing(3).weights_from_gram((x @ x.T).double(), 1, generator=Generator().manual_seed(5))
    assert sorted((weights > 0).sum(1).tolist()) == [2, 3, 3, 3]
    assert (weights > 0).sum(0).tolist() == [1] * 11
    assert torch.allclose(weights.float() @ x, one, atol=1e-6)


@pytest.mark.parametrize("n", [40, 200])
def test_many_buckets_are_means_of_their_rows(n: int) -> None:
    """Products that skip the zeros, wide, by blocks, and before a rule; a broken row breaks its bucket alone."""
    rows = torch.randn(n, 3000, generator=Generator().manual_seed(1))
    weights = Bucketing(2).weights_from_gram(torch.eye(n), 0, generator=Generator().manual_seed(2))
    means = weights @ rows.double()
    mixed = Bucketing(2)(rows, generator=Generator().manual_seed(2))
    assert torch.allclose(mixed.double(), means, atol=1e-6)
    answer = Chain(Bucketing(2), Median())(rows, generator=Generator().manual_seed(2))
    assert torch.allclose(answer.double(), Median()(means), atol=1e-6)
    rows[3, 5] = torch.nan
    assert Bucketing(2)(rows, generator=Generator().manual_seed(2)).isfinite().all()


def test_the_generator_is_left_alone_by_rules_without_chance() -> None:
    generator = Generator().manual_seed(3)
    Chain(NNM(), Median())(torch.randn(9, 3), 2, generator=generator)
    assert torch.equal(generator.get_state(), Generator().manual_seed(3).get_state())


def test_noise_before_the_median_closes_its_gap_to_the_mean() -> None:
    """Chen et al., section 5: of the rows 1, 2, 10 the median is 2 and the mean 4.33; noise of 20 brings about 4.45."""
    rows = torch.tensor([[1.0], [2.0], [10.0]]).expand(3, 200_000)
    centres = [
        float(NoisyMedian(b)(rows, 0, generator=Generator().manual_seed(1)).mean())
        for b in (0.0, 1.0, 5.0, 20.0)
    ]
    assert centres == sorted(centres)
    assert centres[0] == 2
    assert centres[-1] == pytest.approx(13 / 3, abs=0.25)
    votes = NoisyMajorityVote(20.0)(rows - 3, 0, generator=Generator().manual_seed(1))
    assert float(votes.mean()) > 0.02  # without noise the vote is -1, against the sign of the mean
    assert (NoisyMajorityVote(0.0)(rows - 3) == -1).all()


def test_centred_clipping_walks_from_the_previous_answer() -> None:
    x = torch.randn(8, 5, generator=Generator().manual_seed(12)) + 3
    previous = torch.full((5,), 2.5)
    want = oracle.centered_clipping(x.double().numpy(), 0, previous.double().numpy())
    assert np.allclose(CenteredClipping(1.5, 2)(x, 2, previous=previous).numpy(), want, atol=1e-5)
    points = torch.cat([x, previous[None]]).double()
    weights = CenteredClipping(1.5, 2).weights_from_gram(points @ points.T, 2, previous=True)
    assert np.allclose((weights @ points).numpy()[0], want, atol=1e-5)
    assert torch.allclose(
        Chain(NNM(), CenteredClipping(9.0))(x, 2, previous=previous), _cc(NNM()(x, 2), previous), atol=1e-5
    )


def _cc(rows: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    return CenteredClipping(9.0)(rows, 0, previous=previous)


@pytest.mark.parametrize(
    ("part", "m"),
    [
        (Krum(), 1),
        (GeometricMedian(), 1),
        (RFA(), 1),
        (CenteredClipping(1.0), 1),
        (NNM(), 8),
        (Median(), 8),
        (Chain(NNM(), CenteredClipping(1.0)), 1),
        (Chain(Bucketing(), Median()), 4),
    ],
    ids=str,
)
def test_the_previous_answer_has_a_weight_whatever_the_rule(part: Stage, m: int) -> None:
    points = torch.randn(9, 5, generator=Generator().manual_seed(13), dtype=torch.float64)
    generator = Generator().manual_seed(1)
    with_previous = part.weights_from_gram(points @ points.T, 1, previous=True, generator=generator)
    assert with_previous.shape == (m, 9)
    if "CenteredClipping" not in str(part):
        generator = Generator().manual_seed(1)
        alone = part.weights_from_gram(points[:8] @ points[:8].T, 1, generator=generator)
        assert torch.allclose(with_previous, torch.nn.functional.pad(alone, (0, 1)))
