"""Flat vectors, clips that keep their bound at any size, and work spread over threads that changes no result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.batches import Fixed
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.layout import Layout, clip_, flatten, norms, unflatten
from fedsim.machine.threads import each
from fedsim.models import MLP
from fedsim.privacy import MessageDP
from fedsim.spec import Experiment
from fedsim.strategies import ByzClipSGD, Mean
from fedsim.task import Task


@given(st.integers(1, 20_000), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_clip_is_the_formula(d: int, tau: float, seed: int) -> None:
    v = torch.randn(3, d, generator=torch.Generator().manual_seed(seed))
    v[1] = 0
    norm = np.linalg.norm(v.double().numpy(), axis=1, keepdims=True)
    expected = v.double().numpy() * np.minimum(1, tau / np.maximum(norm, 1e-300))
    np.testing.assert_allclose(clip_(v.clone(), tau).numpy(), expected, rtol=1e-6, atol=1e-12)
    assert torch.equal(clip_(v.clone(), tau)[0], clip_(v[0].clone(), tau))


def test_a_clipped_vector_keeps_its_bound_at_a_million_numbers() -> None:
    """One float32 sum over so many squares would let it exceed the bound by 1e-5: more than privacy was told."""
    v = torch.rand(1_200_000, generator=torch.Generator().manual_seed(0))
    assert float(clip_(v.clone(), 1.0).double().norm()) <= 1 + 2e-7
    assert float(norms(v)) == pytest.approx(float(v.double().norm()), rel=2e-7)


def test_flat_and_back() -> None:
    model = MLP(hidden=5).build((1, 2, 2), 3)
    x = flatten(model)
    parts = unflatten(x, model)
    assert all(torch.equal(parts[name], p) for name, p in model.named_parameters())
    many = unflatten(x.expand(4, -1), model)
    assert all(many[name].shape == (4, *p.shape) for name, p in model.named_parameters())


def test_a_layout_names_every_block_and_what_it_is_for() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.conv = nn.Embedding(5, 2), nn.Conv2d(1, 3, 2)
            self.first, self.norm = nn.Linear(2, 4, bias=False), nn.LayerNorm(4)
            self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    net = Net()
    net.middle.requires_grad_(False)
    layout = Layout.of(net)
    assert [(b.name, b.role) for b in layout.blocks] == [
        ("words.weight", "embedding"),
        ("conv.weight", "conv"),
        ("conv.bias", "vector"),
        ("first.weight", "hidden"),
        ("norm.weight", "vector"),
        ("norm.bias", "vector"),
        ("middle.weight", "hidden"),
        ("middle.bias", "vector"),
        ("last.weight", "head"),
        ("last.bias", "vector"),
    ]
    assert Layout.of(MLP(hidden=(4, 4)).build((1, 2, 2), 3)).blocks[0].role == "input"
    assert [b.name for b in layout.blocks if not b.trained] == ["middle.weight", "middle.bias"]
    assert layout.trained.width == len(flatten(net)) == layout.width - 20


@pytest.mark.parametrize("lead", [(), (3,)])
def test_views_of_a_layout_and_back(lead: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    layout = Layout.of(net)
    whole = torch.cat([p.detach().flatten() for p in net.parameters()])
    x = torch.randn(*lead, layout.trained.width)
    views = layout.trained.views(x)
    assert [v.shape for v in views] == [(*lead, 2, 4), (*lead, 2)]
    assert torch.equal(layout.trained.join(views), x)
    doubled = layout.trained.map(lambda block, view: view * (2 if block.role == "head" else 1), x)
    assert torch.equal(doubled, torch.cat([2 * x[..., :8], x[..., 8:]], -1))
    put = layout.put(whole, x)
    assert put.shape == (*lead, layout.width)
    assert torch.equal(layout.trained_of(put), x)
    assert torch.equal(put[..., :16], whole[:16].expand(*lead, 16))
    assert torch.equal(layout.trained_of(whole), flatten(net))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_neither_order_nor_noise(threads: int) -> None:
    experiment = Experiment(
        task=Task(data=Blobs(features=200), model=MLP(hidden=400)),
        split=IID(),
        clients=7,
        rule=Mean(),
        method=ByzClipSGD(lr=0.1, tau=1.0),
        privacy=MessageDP(noise=1.0),
        batches=Fixed(2),
        rounds=1,
    )
    zeros = torch.zeros(7, Federation(experiment).x0.numel())
    one = Federation(replace(experiment)).noisy(zeros, "message", 0, np.arange(7))
    torch.set_num_threads(threads)
    assert list(each(lambda i: i * i, range(10))) == [i * i for i in range(10)]
    assert torch.get_num_threads() == threads
    assert torch.equal(one, Federation(experiment).noisy(zeros, "message", 0, np.arange(7)))
