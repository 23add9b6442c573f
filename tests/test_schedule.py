"""Step sizes over rounds, against torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from fedsim.check import Invalid
from fedsim.schedule import Cosine


def test_cosine_is_torch_s_behind_its_warm_up() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    theirs, expected = CosineAnnealingLR(optimiser, 10, eta_min=0.1), []
    for _ in range(10):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    ours = Cosine(0.4, rounds=14, end=0.1, warmup=4)
    assert [ours.at(t) for t in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [ours.at(t) for t in range(4, 14)] == pytest.approx(expected)
    assert ours.at(14) == ours.at(100) == pytest.approx(0.1)
    assert Cosine(1.0, rounds=2).at(0) == 1.0


def test_a_warm_up_ends_before_the_run() -> None:
    with pytest.raises(Invalid, match=r"Cosine\.warmup = 5: must be below rounds = 5"):
        Cosine(0.1, rounds=5, warmup=5)
