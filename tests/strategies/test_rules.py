"""Conformance of all rules and mixers with the table, by property tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rounding import on_threads
from rule_table import FIXED, KINDS, MEAN, ORDER, PLAIN, RULES, SCALE, SHIFT, SLOPE, TABLE, Claim, close, draw

from fedsim import strategies
from fedsim.check import Invalid
from fedsim.strategies import (
    NNM,
    Bucketing,
    Chain,
    Clipping,
    FLTrust,
    GeometricMedian,
    Krum,
    MeanAroundMedian,
    Median,
    NoisyMajorityVote,
    NoisyMedian,
    TrimmedMean,
)
from fedsim.strategies.kernels import columns
from fedsim.strategies.kernels.base import Stage
from fedsim.types import Mixer, Rule

Case = tuple[str, int, int, int, int]
every = pytest.mark.parametrize("claim", TABLE, ids=str)
every_rule = pytest.mark.parametrize("claim", RULES, ids=str)


def claiming(what: str) -> Any:
    return pytest.mark.parametrize("claim", [claim for claim in TABLE if claim.has(what)], ids=str)


@st.composite
def cases(draws: Any, kinds: tuple[str, ...] = KINDS) -> Case:
    f = draws(st.integers(0, 3))
    n = draws(st.integers(2 * f + 1, 4 * f + 6))
    return draws(st.sampled_from(kinds)), n, f, draws(st.integers(1, 9)), draws(st.integers(0, 2**31))


def rows_for(claim: Claim, case: Case) -> tuple[torch.Tensor, int]:
    kind, n, f, d, seed = case
    assume(f <= claim.part.max_f(n) and kind in claim.kinds)
    if "GeometricMedian" in str(claim.part) and claim.cost is None:
        assume(d > 2 and n > 2)  # on a line it may not be unique
    return draw(kind, n, f, d, seed), f


@every
@settings(max_examples=25)
@given(case=cases())
def test_agrees_with_its_oracle(claim: Claim, case: Case) -> None:
    x, f = rows_for(claim, case)
    want = claim.oracle(x.numpy(), f)
    assert claim.same(claim.part(x, f), want, x, f, 1e-6)
    assert claim.same(claim.part(x.float(), f), want, x, f, claim.tolerance)


@claiming(ORDER)
@settings(max_examples=10)
@given(case=cases(PLAIN))
def test_the_order_of_the_rows_does_not_matter(claim: Claim, case: Case) -> None:
    x, f = rows_for(claim, case)
    assume(
        "Krum" not in str(claim.part) or len(x) >= f + 4
    )  # with one neighbour alone two rows tie, each the other's
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(case[-1]))
    if isinstance(claim.part, strategies.MDA):  # subsets of one diameter: the diameter is what is common
        a, b = (
            x[rows][claim.part.weights_from_gram(x[rows] @ x[rows].T, f)[0] > 0]
            for rows in (order, slice(None))
        )
        assert torch.cdist(a, a).max() == pytest.approx(float(torch.cdist(b, b).max()), rel=1e-9)
    else:
        assert claim.same(claim.part(x[order], f), claim.part(x, f), x, f, 1e-5)


@claiming(SHIFT)
@settings(max_examples=10)
@given(case=cases(("normal",)))
def test_the_answer_shifts_with_the_rows(claim: Claim, case: Case) -> None:
    x, f = rows_for(claim, case)
    shift = torch.linspace(-3, 5, x.shape[1], dtype=torch.float64)
    assert claim.same(claim.part(x + shift, f) - shift, claim.part(x, f), x, f, 1e-5)


@claiming(SCALE)
@settings(max_examples=15)
@given(case=cases(("normal", "far")), power=st.integers(-110, 100))
def test_the_answer_scales_with_the_rows(claim: Claim, case: Case, power: int) -> None:
    x, f = rows_for(claim, case)
    x = x.float()
    assert claim.same(
        claim.part(x * 2.0**power, f).double() * 2.0**-power, claim.part(x, f), x, f, claim.tolerance
    )


@claiming(MEAN)
@settings(max_examples=10)
@given(case=cases())
def test_with_nobody_byzantine_it_is_the_mean(claim: Claim, case: Case) -> None:
    x, _ = rows_for(claim, (*case[:2], 0, *case[3:]))
    assert close(claim.part(x, 0), x.mean(0), x, 1e-6)


@claiming(FIXED)
@settings(max_examples=10)
@given(case=cases(("normal",)))
def test_copies_of_one_row_are_the_answer(claim: Claim, case: Case) -> None:
    x, f = rows_for(claim, case)
    x = x.float()[:1].expand(len(x), -1)
    assert close(claim.part(x, f), x[0], x, 1e-6)


@every
@settings(max_examples=10)
@given(
    f=st.integers(0, 2),
    broken=st.lists(st.sampled_from([float("nan"), float("inf"), -float("inf")]), min_size=1, max_size=3),
    kind=st.sampled_from(PLAIN),
    seed=st.integers(0, 2**31),
)
def test_rows_that_are_not_finite_never_move_the_answer(
    claim: Claim, f: int, broken: list[float], kind: str, seed: int
) -> None:
    x = draw(kind, 4 * (f + len(broken)) + 3, f, 5, seed).float()
    bad = torch.randn(len(broken), 5)
    for row, value in zip(bad, broken, strict=True):
        row[seed % 5] = value
    assert torch.equal(claim.part(torch.cat([x, bad]), f + len(bad)), claim.part(x, f))


@every
def test_more_broken_rows_than_f_and_nothing_but_broken_rows(claim: Claim) -> None:
    x = torch.randn(9, 6)
    x[1:7, 2] = float("nan")
    left = claim.part(x, 1)
    assert left.isfinite().all()
    assert torch.equal(left, claim.part(torch.cat([x[:1], x[7:]]), 0) if claim.part.max_f(3) >= 0 else left)
    x[:, 2] = float("inf")
    assert claim.part(x, 1).tolist() == ([0.0] * 6 if isinstance(claim.part, Rule) else [])


@every
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
def test_the_rows_are_never_written_to_however_they_lie(claim: Claim, layout: str) -> None:
    wide = torch.randn(24, 80)
    x = {"rows": wide[:20, :40], "columns": wide.T[:20], "strided": wide[:20, ::2]}[layout]
    before = x.clone()
    answer = claim.part(x, 2)
    assert torch.equal(x, before)
    assert close(answer, claim.part(before, 2).double(), x, 1e-5)


@on_threads
@every
def test_blocks_and_threads_do_not_change_the_answer(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw("normal", 20, 2, 700, 5).float()
    whole = claim.part(x, 2)
    monkeypatch.setattr(columns, "CACHED", 20 * 64)
    torch.set_num_threads(1)
    one = claim.part(x, 2)
    torch.set_num_threads(3)
    two = claim.part(x, 2)
    claim.part(x[:, :100], 2)  # two blocks
    assert torch.get_num_threads() == 3
    assert torch.equal(one, two)
    assert close(one, whole.double(), x, 1e-5)


@on_threads
@pytest.mark.parametrize(("n", "d"), [(10, 300_000), (32, 70_000), (100, 6221)])
@pytest.mark.parametrize(
    "rule",
    [
        Median(),
        TrimmedMean(),
        MeanAroundMedian(),
        Chain(NNM(), TrimmedMean()),
        NoisyMedian(),
        NoisyMajorityVote(),
    ],
    ids=repr,
)
def test_threads_do_not_change_the_answer(rule: Rule, n: int, d: int) -> None:
    """Of several blocks each, by networks and by sorting."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(n))
    torch.set_num_threads(1)
    one = rule(x, n // 5, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(2)
    assert torch.equal(one, rule(x, n // 5, generator=torch.Generator().manual_seed(0)))


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_answer(claim: Claim) -> None:
    x = draw("normal", 20, 2, 3000, 5).float()
    assert close(claim.part(x.cuda(), 2).cpu(), claim.part(x, 2).double(), x, 1e-5)


@every
def test_the_gradient_is_the_slope(claim: Claim) -> None:
    x = draw("normal", 9, 1, 3, 7).requires_grad_()
    answer = claim.part(x, 1)
    slope = torch.autograd.grad(answer.sum(), x, allow_unused=True)[0]
    assert answer.requires_grad
    assert slope.isfinite().all()
    if claim.has(SLOPE):
        assert torch.autograd.gradcheck(lambda rows: claim.part(rows, 1), x, atol=2e-3, rtol=1e-3)
    assert close(answer.detach(), claim.part(x.detach(), 1), x.detach(), 1e-6)


@pytest.mark.parametrize("claim", [claim for claim in TABLE if isinstance(claim.part, Stage)], ids=str)
@settings(max_examples=10)
@given(case=cases(PLAIN))
def test_inner_products_are_enough(claim: Claim, case: Case) -> None:
    x, f = rows_for(claim, case)
    assume(claim.has(ORDER) or f == 0 or case[0] != "far")
    weights = claim.part.weights_from_gram(x @ x.T, f)
    mixed = weights @ x
    if not isinstance(claim.part, Rule):
        answer = mixed
    elif claim.part.linear:
        answer = mixed[0]
        assert weights.shape == (1, len(x))
    else:
        answer = claim.part.stages[-1].reduce(mixed, f)
    assert claim.same(answer, claim.part(x, f), x, f, 1e-5)


@every_rule
@settings(max_examples=10)
@given(case=cases(("normal",)))
def test_influence_is_the_weight_in_the_answer(claim: Claim, case: Case) -> None:
    x, f = rows_for(claim, case)
    influence = claim.part.influence(torch.cat([x, torch.full_like(x[:1], torch.nan)]), f)
    assert influence[-1] == 0
    if claim.part.linear:
        assert close(influence[:-1] @ x, claim.part(x, max(0, f - 1)), x, 1e-5)
    else:
        assert (influence >= 0).all()
        assert (
            float(influence.sum()) <= 1 + 1e-5
        )  # what a clip takes from a row, and columns without a vote, are missing
        if claim.has(SHIFT):
            assert float(influence.sum()) == pytest.approx(1, rel=1e-5)


def test_influence_on_wide_rows_looks_at_some_columns_and_still_sees_a_broken_row() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(9, 200_000, generator=g)
    x[8] += 1.5
    kept = ((x >= x.kthvalue(3, 0).values) & (x <= x.kthvalue(7, 0).values)).double().mean(1) / 5
    for rule in (TrimmedMean(), strategies.Chain(strategies.Bucketing(1), TrimmedMean())):
        assert float((rule.influence(x, 2, generator=g) - kept).abs().max()) < 0.01
    x[8, 7] = torch.nan
    assert TrimmedMean().influence(x, 2)[8] == 0


def test_influence_of_coordinate_rules_counts_the_columns_where_a_row_was_kept() -> None:
    x = torch.tensor([[0.0, 9.0, 3.0, 1.0], [1.0, 1.0, 1.0, 2.0], [2.0, 2.0, 2.0, 3.0]])
    assert TrimmedMean().influence(x, 1).tolist() == [0, 0.5, 0.5]
    votes = torch.tensor([[1.0, -2.0, 3.0, 4.0], [5.0, -6.0, -7.0, -8.0], [-9.0, 1.0, 2.0, 0.0]])
    assert strategies.MajorityVote().influence(votes, 1).tolist() == [
        0.375,
        0.25,
        0.375,
    ]  # the last column is a tie, as row 2 has it


# ---------------------------------------------------------------- what is asked of it
def test_the_table_holds_every_rule_and_mixer() -> None:
    parts = {getattr(strategies, name) for name in strategies.__all__}
    known = {part for part in parts if isinstance(part, type) and issubclass(part, Rule | Mixer)}
    assert known - {type(claim.part) for claim in TABLE} == {Bucketing}  # random: it has tests of its own


@every
@given(n=st.integers(1, 30), f=st.integers(-3, 30))
@settings(max_examples=10)
def test_f_beyond_what_it_can_take_is_refused(claim: Claim, n: int, f: int) -> None:
    x = draw("normal", n, 0, 4, n)
    if 0 <= f <= claim.part.max_f(n):
        assert claim.part(x, f).isfinite().all()
    else:
        with pytest.raises(Invalid, match=f"f = {f} with n = "):
            claim.part(x, f)


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(3),
        torch.zeros(0, 4),
        torch.zeros(4, 0),
        torch.zeros(4, 4, dtype=torch.int64),
        torch.zeros(4, 4).half(),
    ],
)
def test_what_is_no_matrix_of_floats_is_refused(rows: torch.Tensor) -> None:
    with pytest.raises(Invalid, match="must be"):
        Median()(rows)


def test_a_chain_ends_in_a_rule_behind_mixers() -> None:
    for parts in ((), (NNM(),), (Median(), Median()), (Median(), NNM())):
        with pytest.raises(Invalid, match="Chain"):
            Chain(*parts)
    x = draw("normal", 12, 2, 5, 1)
    assert torch.equal(
        Chain(NNM(), Chain(Clipping(2.0), TrimmedMean()))(x, 2),
        Chain(NNM(), Clipping(2.0), TrimmedMean())(x, 2),
    )


def test_a_chain_asks_each_part_about_the_rows_that_reach_it() -> None:
    chain = Chain(Bucketing(3), Krum())
    assert chain.max_f(15) == 1  # 5 buckets, and Krum needs n >= 2 f + 3
    with pytest.raises(Invalid, match="Krum: f = 2 with n = 5: allowed is from 0 to 1"):
        chain(torch.zeros(15, 2), 2)


def test_linear_rules_are_those_without_a_reduction() -> None:
    assert Krum().linear
    assert Chain(NNM(), GeometricMedian()).linear
    assert not Chain(NNM(), Median()).linear
    with pytest.raises(Invalid, match="linear in the rows"):
        strategies.NNA(Median())


def test_a_trusted_row_of_zeros_trusts_nobody() -> None:
    rows = torch.tensor([[0.0], [-1.5], [1.5], [0.0]])
    assert torch.equal(FLTrust(0)(rows), torch.zeros(1))
