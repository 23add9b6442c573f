"""Mimic against a transcription of the authors' published procedure in NumPy float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsim.attacks import Mimic
from fedsim.types import View


def rounds_of(count: int, h: int = 6, d: int = 8) -> list[View]:
    """Views with one lasting direction of spread, so that the heuristic has something to find."""
    maker = torch.Generator().manual_seed(3)
    lasting = torch.randn(h, 1, generator=maker) * torch.randn(d, generator=maker) * 2
    rows = [lasting + torch.randn(h, d, generator=maker) for _ in range(count)]
    return [
        View(h + 2, 2, t, torch.zeros(d), torch.Generator().manual_seed(t), honest=x)
        for t, x in enumerate(rows)
    ]


@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_the_victims_are_those_of_the_published_procedure(warmup: int) -> None:
    views, memory = rounds_of(7), {}
    z = torch.randn(8, generator=torch.Generator().manual_seed(0)).double().numpy()
    mu, victim = np.zeros(8), -1
    for t, view in enumerate(views):
        g = view.honest.double().numpy()
        if t < warmup:
            mu = t / (1 + t) * mu + g.mean(0) / (1 + t)
            u = sum(((row - mu) @ z) * (row - mu) for row in g)
            z = t / (1 + t) * z + u / np.linalg.norm(u) / (1 + t)
            z /= np.linalg.norm(z)
            victim = int(np.argmax(g @ z))
        sent, memory = Mimic(warmup=warmup).remember(view, memory)
        assert torch.equal(sent, view.honest[victim].expand(2, -1))
    assert int(memory["t"]) == warmup


def test_the_victim_is_a_client_whoever_else_takes_part() -> None:
    first, second, third = (replace(view, ids=torch.arange(10, 16)) for view in rounds_of(3))
    sent, memory = Mimic().remember(first, {})
    victim = int(memory["victim"])
    place = victim - 10
    assert torch.equal(sent[0], first.honest[place])
    others = torch.tensor([j for j in range(6) if j != (place + 1) % 6])
    fewer = replace(second, honest=second.honest[others], ids=second.ids[others])
    sent, memory = Mimic().remember(fewer, memory)
    assert torch.equal(sent[0], second.honest[place])
    without = torch.tensor([j for j in range(6) if j != place])
    missing = replace(third, honest=third.honest[without], ids=third.ids[without])
    sent, memory = Mimic().remember(missing, memory)
    assert torch.equal(sent[0], missing.honest[(missing.honest @ memory["z"]).argmax()])
    assert int(memory["victim"]) == victim


def test_a_named_victim_needs_no_memory() -> None:
    view = rounds_of(1)[0]
    assert torch.equal(Mimic(victim=4).forge(view), view.honest[4].expand(2, -1))
    assert Mimic(victim=4).remember(view, {})[1] == {}


def test_the_memory_goes_in_and_comes_out_untouched() -> None:
    first, second = rounds_of(2)
    _, memory = Mimic(warmup=2).remember(first, {})
    kept = {name: value.clone() for name, value in memory.items()}
    Mimic(warmup=2).remember(second, memory)
    assert all(torch.equal(memory[name], value) for name, value in kept.items())


def test_identical_honest_rows_are_copied_all_the_same() -> None:
    view = View(5, 2, 0, torch.zeros(3), torch.Generator(), honest=torch.ones(3, 3))
    assert torch.equal(Mimic().forge(view), torch.ones(2, 3))
