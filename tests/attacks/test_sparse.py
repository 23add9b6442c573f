"""Attacks that choose their places, by brute force over all choices in small federations."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch

from fedsim.attacks import Concentrated, FillVote
from fedsim.layout import Block, Layout
from fedsim.messages import Signs, TopK
from fedsim.strategies import MajorityVote
from fedsim.types import View


def view_of(honest: torch.Tensor, f: int) -> View:
    return View(len(honest) + f, f, 0, honest.new_zeros(honest.shape[1]), torch.Generator(), honest=honest)


def test_no_other_places_hurt_more() -> None:
    """Of all rows of the norm with 3 of 8 places, none has a smaller product with the honest mean."""
    honest = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    s, norm = honest.mean(0), honest.norm(dim=1).median()
    row = Concentrated(share=3 / 8).forge(view_of(honest, 2))
    assert row.shape == (2, 8)
    assert int((row[0] != 0).sum()) == 3
    torch.testing.assert_close(row[0].norm(), norm)
    # of some places the worst row is along -s there: its product is -norm ||s_T||
    least = min(float(-norm * s[list(there)].norm()) for there in combinations(range(8), 3))
    assert float(row[0] @ s) == pytest.approx(least, rel=1e-5)


def test_the_rarest_places_are_those_that_few_honest_clients_send() -> None:
    honest = torch.tensor([[1.0, 0, 2, 0, 5], [1, 3, 0, 0, 5], [1, 0, 0, 0, 5]])
    row = Concentrated(share=0.4, places="rarest").forge(view_of(honest, 1))[0]
    assert row.nonzero()[:, 0].tolist() == [1, 2]  # one row each; nobody sends place 3: there the mean is 0
    assert (row[[1, 2]] < 0).all()
    none = Concentrated(share=0.4).forge(view_of(torch.zeros(3, 5), 1))
    assert not none.any()


@pytest.mark.parametrize("places", ["largest", "rarest"])
def test_it_passes_through_the_compressor_of_its_share(places: str) -> None:
    honest = torch.randn(7, 40, generator=torch.Generator().manual_seed(2))
    layout = Layout((Block("w", (40,), "vector"),))
    rows = Concentrated(share=0.1, places=places).forge(view_of(honest, 3))
    assert torch.equal(TopK(0.1)(rows, layout, torch.rand), rows)


@pytest.mark.parametrize("f", [1, 2, 3])
@pytest.mark.parametrize("h", [1, 2, 3, 4])
def test_no_other_votes_turn_more(h: int, f: int) -> None:
    """Against every honest majority the outcome is the worst that f votes can make; without one they decide it."""
    for votes in product((-1.0, 0.0, 1.0), repeat=h):
        honest = torch.tensor(votes)[:, None]
        forged = FillVote().forge(view_of(honest, f))
        v, outcome = int(sum(votes)), float(MajorityVote()(torch.cat([honest, forged])))
        every = [
            float(MajorityVote()(torch.cat([honest, torch.tensor(own)[:, None]])))
            for own in product((-1.0, 0.0, 1.0), repeat=f)
        ]
        side = 1 if v >= 0 else -1
        assert side * outcome == min(side * other for other in every)
        assert bool(forged.any()) == (abs(v) <= f)


def test_with_room_for_few_the_turned_votes_come_first() -> None:
    """v = 1, 3, 2, 0, 6 and f = 3: room for two places goes to 2 and then 1, the vote of the rest stays."""
    honest = torch.tensor([[1.0, 1, 1, 0, 1]] * 6)
    honest[:5, 0] = torch.tensor([1.0, 1, -1, -1, 0])
    honest[:3, 1] = 0
    honest[:4, 2] = 0
    forged = FillVote().forge(view_of(honest, 3))
    assert honest.sum(0).tolist() == [1, 3, 2, 0, 6]
    assert forged[0].tolist() == pytest.approx([-4 / 3, -0.5, -5 / 3, -1, 0])
    sent = TopK(0.4, Signs())(forged, Layout((Block("w", (5,), "vector"),)), torch.rand)
    assert sent[0].nonzero()[:, 0].tolist() == [0, 2]
    assert MajorityVote()(torch.cat([honest, sent])).tolist() == [-1, 1, -1, 0, 1]
    assert MajorityVote()(torch.cat([honest, forged])).tolist() == [-1, 0, -1, -1, 1]
