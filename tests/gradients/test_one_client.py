"""The specification of a client's gradient against plain backward passes, Opacus and PyTorch's optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.check import Invalid
from fedsim.gradients import ClientGradients, one_client, require_certain
from fedsim.layout import flatten
from fedsim.models import CNN, MLP, Logistic
from fedsim.types import Batch, Model

SHAPE = (1, 16, 16)
MODELS = [Logistic(), MLP(hidden=9), CNN()]


def batch_of(b: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, *SHAPE, generator=generator, dtype=torch.float64)
    weight = torch.rand(b, generator=generator, dtype=torch.float64)
    return Batch(x, torch.randint(0, 5, (b,), generator=generator), weight)


def per_example(net: nn.Module, batch: Batch) -> Tensor:
    """Each example's gradient (b, d) by a backward pass of its own."""
    rows = []
    for x, y in zip(batch.x, batch.y, strict=True):
        net.zero_grad()
        F.cross_entropy(net(x[None]), y[None]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return torch.stack(rows)


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_is_the_weighted_sum_of_clipped_example_gradients(model: Model) -> None:
    net, batch = model.build(SHAPE, 5).double(), batch_of(6)
    each = per_example(net, batch)
    torch.testing.assert_close(one_client(net, flatten(net), batch), batch.weight @ each)
    clip = float(each.norm(dim=1).median())  # some are clipped, some are not
    factor = torch.clamp(clip / each.norm(dim=1), max=1)
    assert 0 < int((factor < 1).sum()) < 6
    torch.testing.assert_close(one_client(net, flatten(net), batch, clip), (batch.weight * factor) @ each)


@pytest.mark.parametrize("ghost", [False, True], ids=["hooks", "ghost"])
@pytest.mark.parametrize("model", MODELS, ids=repr)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_clipping_is_that_of_opacus(model: Model, ghost: bool) -> None:
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    net, batch, clip = model.build(SHAPE, 5).double(), batch_of(8), 1.5
    batch = Batch(batch.x, batch.y, torch.full_like(batch.weight, 1 / 8))
    ours = one_client(net, flatten(net), batch, clip)
    own = copy.deepcopy(net)
    sgd = torch.optim.SGD(own.parameters(), lr=0.1)
    options = {"noise_multiplier": 0.0, "max_grad_norm": clip, "expected_batch_size": 8}
    if ghost:
        private = GradSampleModuleFastGradientClipping(own, max_grad_norm=clip, use_ghost_clipping=True)
        optimiser = DPOptimizerFastGradientClipping(sgd, **options)
        DPLossFastGradientClipping(private, optimiser, nn.CrossEntropyLoss())(
            private(batch.x), batch.y
        ).backward()
    else:
        private, optimiser = GradSampleModule(own), DPOptimizer(sgd, **options)
        F.cross_entropy(private(batch.x), batch.y).backward()
    optimiser.pre_step()
    theirs = torch.cat([p.grad.flatten() for p in own.parameters()])
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_long_gradients_keep_to_the_bound_in_single_precision() -> None:
    net = MLP(hidden=2000).build((28, 28), 10)
    batch = Batch(torch.randn(1, 28, 28), torch.tensor([3]), torch.ones(1))
    norm = float(one_client(net, flatten(net), batch, 0.1).double().norm())
    assert abs(norm / 0.1 - 1) < 1e-6


def test_leaves_the_model_as_it_was() -> None:
    net, batch = CNN().build(SHAPE, 5).double(), batch_of(4)
    before = copy.deepcopy(net.state_dict())
    one_client(net, 2 * flatten(net), batch)
    one_client(net, 2 * flatten(net), batch, 1.0)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in net.parameters())


@pytest.mark.parametrize(
    ("layer", "instead"),
    [
        (nn.BatchNorm1d(8), "use nn.GroupNorm instead"),
        (nn.SyncBatchNorm(8), "use nn.GroupNorm instead"),
        (nn.InstanceNorm1d(8, track_running_stats=True), "set track_running_stats=False"),
        (nn.Dropout(0.1), "leave it out or set p=0"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_refuses_examples_that_depend_on_others_or_on_chance(layer: nn.Module, instead: str) -> None:
    net = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3))
    batch = Batch(torch.randn(2, 4), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(Invalid, match=instead):
        one_client(net, flatten(net), batch)
    with pytest.raises(Invalid, match=instead):
        ClientGradients(net)


class Chance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3)


@pytest.mark.parametrize("layer", [nn.RReLU(), Chance(), nn.Tanh()], ids=lambda v: type(v).__name__)
def test_chance_is_found_wherever_it_is(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3))
    batch = Batch(torch.randn(4, 4), torch.tensor([0, 1, 2, 0]), torch.ones(4))
    before = torch.get_rng_state()
    with nullcontext() if isinstance(layer, nn.Tanh) else pytest.raises(Invalid, match="depends on chance"):
        require_certain(net, flatten(net), batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gradient_that_is_zero_but_for_rounding_is_no_fault() -> None:
    """That of a bias which a norm behind it takes out again."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    batch = Batch(torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1]), torch.full((5,), 0.2))
    plain, clipped = (one_client(net, flatten(net), batch, clip) for clip in (None, 1e6))
    torch.testing.assert_close(plain, clipped, rtol=1e-4, atol=1e-6)


class Aside(nn.Module):
    """A weight that is also read outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.inner(x)), self.inner.weight)


def test_refuses_to_clip_what_opacus_does_not_see() -> None:
    batch = Batch(torch.randn(3, 5), torch.tensor([0, 1, 4]), torch.ones(3))
    net = Aside()
    assert one_client(net, flatten(net), batch).norm() > 0
    with pytest.raises(Invalid, match=r"inner\.weight is read outside of its layer"):
        one_client(net, flatten(net), batch, 1.0)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.out = kind(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = (
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x[..., :4]).mean(1))


@pytest.mark.parametrize("build", [lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU), Attending])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_what_opacus_has_no_rule_for_is_clipped_all_the_same(
    build: Callable[[], nn.Module], clip: float | None
) -> None:
    """By hand, an example at a time; on the vector engine's route alike, and without a warning of vmap's."""
    torch.manual_seed(0)
    net = build().double()
    batch = Batch(torch.randn(2, 4, 6, 5).double(), torch.randint(0, 3, (2, 4)), torch.rand(2, 4).double())
    rows = ClientGradients(net)(flatten(net), batch, clip=clip)
    for i in range(2):
        right = torch.zeros_like(rows[0])
        for x, y, weight in zip(batch.x[i], batch.y[i], batch.weight[i], strict=True):
            parts = torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), list(net.parameters()))
            one = torch.cat([part.flatten() for part in parts])
            right += weight * one * (1.0 if clip is None else min(1.0, clip / float(one.norm())))
        torch.testing.assert_close(rows[i], right)
        torch.testing.assert_close(one_client(net, flatten(net), batch.part(i), clip), right)
