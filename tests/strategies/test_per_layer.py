"""A rule by layer against the rule itself, layer by layer; in a run it knows where the layers are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import rule_oracles as oracle
import torch
from test_layer_methods import experiment, final

from fedsim.attacks import ALIE
from fedsim.check import Invalid
from fedsim.federation import Federation
from fedsim.layout import Layout
from fedsim.models import MLP
from fedsim.runner import run
from fedsim.strategies import (
    NNM,
    Chain,
    FedMuon,
    FedSGD,
    FLDetector,
    Krum,
    Mean,
    Median,
    NoisyMedian,
    PerLayer,
)
from fedsim.types import Rule

SIZES = (6, 1, 3)


def rows(n: int = 9) -> torch.Tensor:
    return torch.randn(n, sum(SIZES), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rule", [Krum(), Chain(NNM(), Median())], ids=repr)
def test_each_layer_is_aggregated_alone(rule: Rule) -> None:
    by_hand = {"Krum": oracle.krum, "Chain": lambda z, f: oracle.median(oracle.nnm(z, f), f)}[
        type(rule).__name__
    ]
    found = PerLayer(rule, SIZES)(rows(), 2)
    expected = [torch.as_tensor(by_hand(part.double().numpy(), 2)) for part in rows().split(list(SIZES), 1)]
    torch.testing.assert_close(found, torch.cat(expected).float(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, rule(rows(), 2))


def test_a_broken_number_drops_its_row_in_every_layer() -> None:
    broken = rows()
    broken[4, 0] = torch.nan
    without = PerLayer(Median(), SIZES)(broken[[0, 1, 2, 3, 5, 6, 7, 8]], 1)
    torch.testing.assert_close(PerLayer(Median(), SIZES)(broken, 2), without)
    assert PerLayer(Median(), SIZES).influence(broken, 2)[4] == 0  # type: ignore[index]


def test_the_weight_of_a_row_is_its_mean_over_coordinates() -> None:
    rule = PerLayer(Krum(), SIZES)
    found, z = rule.influence(rows(), 2), rows()
    assert found is not None
    assert float(found.sum()) == pytest.approx(1)
    answer = rule(z, 2)
    for i in range(9):
        of_i = sum(
            size
            for size, a, b in zip(SIZES, answer.split(list(SIZES)), z[i].split(list(SIZES)), strict=True)
            if torch.equal(a, b)
        )
        assert float(found[i]) == pytest.approx(of_i / 10)


def test_random_rules_draw_and_the_last_answer_is_cut_too() -> None:
    rule = PerLayer(NoisyMedian(noise=1.0), SIZES)
    draws = [rule(rows(), 2, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_run_says_where_the_layers_are() -> None:
    e = experiment(FedSGD(0.1), clients=7, byzantine=2, attack=ALIE(), rule=PerLayer(Krum()))
    fed = Federation(e)
    assert isinstance(fed.rule, PerLayer)
    assert list(fed.rule.sizes) == fed.layout.sizes
    assert isinstance(e.rule, PerLayer)
    assert e.rule.sizes == ()
    engines = [final(e, engine) for engine in ("vector", "loop")]
    torch.testing.assert_close(engines[0], engines[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(engines[0], final(replace(e, rule=Krum())))
    weights = run(e).frame["byzantine_weight"]
    assert weights.between(0, 1).all()


def test_of_a_mean_layers_make_no_difference() -> None:
    e = experiment(FedSGD(0.1))
    torch.testing.assert_close(final(replace(e, rule=PerLayer(Mean()))), final(e), rtol=1e-5, atol=1e-6)


def test_longer_messages_have_the_layers_of_each_part() -> None:
    layout = Layout.of(MLP(4).build((3,), 2))
    rule = PerLayer(Median())
    assert rule.on(layout, 2 * layout.width + 3).sizes == (*layout.sizes, *layout.sizes, 3)  # type: ignore[attr-defined]
    assert len(Federation(experiment(FedMuon(), rule=rule)).rule.sizes) == 2 * 6  # type: ignore[attr-defined]


def test_what_it_cannot_be_is_refused() -> None:
    for inner in (FLDetector(), PerLayer(Median())):
        with pytest.raises(Invalid, match=r"PerLayer\.rule = .*: must be a rule that"):
            PerLayer(inner)
    with pytest.raises(Invalid, match="add up to 10, and rows have 4"):
        PerLayer(Median(), SIZES)(torch.zeros(3, 4))
