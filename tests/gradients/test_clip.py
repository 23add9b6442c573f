"""Clips by layer, a bound for each client, and the count of examples within it: every way equals the formula."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from fedsim.gradients import ClientGradients, Clip, one_client
from fedsim.gradients.clip import layer_sizes
from fedsim.layout import flatten, unflatten
from fedsim.models import MLP
from fedsim.types import Batch

N, B, FEATURES, CLASSES = 4, 5, 6, 3


class Twice(nn.Module):
    """A layer called twice: it goes by vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


NETS: dict[str, Callable[[], nn.Module]] = {
    "layer by layer": lambda: MLP(hidden=7).build((FEATURES,), CLASSES),
    "vmap": Twice,
}


def batches() -> Batch:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, B, FEATURES, generator=g, dtype=torch.float64)
    weight = torch.rand(N, B, generator=g, dtype=torch.float64)
    return Batch(x, torch.randint(CLASSES, (N, B), generator=g), weight)


def each_example(net: nn.Module, batch: Batch) -> Tensor:
    """The gradients of single examples, (n, b, d)."""

    def loss(x: Tensor, a: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, unflatten(x, net), (a[None],)), y[None])

    return vmap(vmap(grad(loss), (None, 0, 0)), (None, 0, 0))(flatten(net), batch.x, batch.y)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("memory", [None, 1])
def test_clips_are_the_formula(name: str, by_layer: bool, memory: int | None) -> None:
    torch.manual_seed(0)
    net, batch = NETS[name]().double(), batches()
    each = each_example(net, batch)
    # none at an example's own norm: whether that is within its bound is a matter of rounding
    bound = each.norm(dim=2).median(dim=1).values * torch.tensor([0.5, 1.01, 1.5, 1e9], dtype=torch.float64)
    parts = each.split(layer_sizes(net), 2) if by_layer else (each,)
    limit = bound[:, None] / len(parts) ** 0.5
    factors = [(limit / part.norm(dim=2)).clamp_max(1) for part in parts]
    expected = [((batch.weight * f)[..., None] * p).sum(1) for f, p in zip(factors, parts, strict=True)]
    within = (batch.weight * (torch.stack(factors) == 1).all(0)).sum(1)

    inside = torch.full((N,), -1.0, dtype=torch.float64)
    rows = ClientGradients(net, memory)(flatten(net), batch, clip=Clip(bound, by_layer, inside))
    torch.testing.assert_close(rows, torch.cat(expected, 1))
    torch.testing.assert_close(inside, within)

    for i in range(N):
        alone, one = torch.zeros(1, dtype=torch.float64), Batch(batch.x[i], batch.y[i], batch.weight[i])
        row = one_client(net, flatten(net), one, Clip(bound[i : i + 1], by_layer, alone))
        torch.testing.assert_close(row, rows[i])
        torch.testing.assert_close(alone[0], within[i])


def test_a_clip_by_layer_keeps_the_whole_within_its_bound() -> None:
    torch.manual_seed(0)
    net, batch = NETS["layer by layer"]().double(), batches()
    single = Batch(batch.x.flatten(0, 1)[:, None], batch.y.flatten()[:, None], torch.ones(N * B, 1).double())
    rows = ClientGradients(net)(flatten(net), single, clip=Clip(0.01, by_layer=True))
    torch.testing.assert_close(rows.norm(dim=1), torch.full((N * B,), 0.01, dtype=torch.float64))
