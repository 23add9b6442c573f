"""Inputs and models made to break a clip: each was beyond its bound, or beyond memory, or ended the run, before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.check import Invalid
from fedsim.gradients import ClientGradients, Clip, one_client, require_certain
from fedsim.gradients.layers import Layer
from fedsim.gradients.layerwise import LOST, Layerwise
from fedsim.gradients.products import Linear
from fedsim.gradients.scales import Embedding
from fedsim.layout import LARGE, clip_factor, flatten
from fedsim.losses import CROSS_ENTROPY
from fedsim.models import MLP, Logistic
from fedsim.types import Batch

SLACK = 1 + 1e-5
CLASSES = 3


class Centred(nn.Module):
    """Less the mean over an axis."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.axis, keepdim=True)


class Mean(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)


def built(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "one place": (built(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)), (6,)),
    "few outputs": (
        built(nn.Linear(4, 3), Centred(), nn.LayerNorm(3), Mean(1), nn.Linear(3, CLASSES)),
        (5, 4),
    ),
    "products": (built(nn.Linear(40, 40), Centred(), nn.LayerNorm(40), Mean(1), nn.Linear(40, 3)), (5, 40)),
    "attention": (built(Attention(), Mean(1), nn.Linear(6, CLASSES)), (5, 6)),
    "convolutions": (
        built(
            nn.Conv2d(16, 64, 3, stride=2, padding=1),
            Centred(-1),
            nn.GroupNorm(2, 64),
            nn.Conv2d(64, 8, 2, dilation=2),
            Mean(2, 3),
            nn.Linear(8, CLASSES),
        ),
        (16, 5, 5),
    ),
    "words": (
        built(nn.Embedding(7, 5, padding_idx=0), Centred(), nn.LayerNorm(5), Mean(1), nn.Linear(5, CLASSES)),
        (),
    ),
}
GRADIENTS = {name: ClientGradients(net) for name, (net, _) in NETS.items()}


def drawn(shape: tuple[int, ...], kind: int, power: float, g: torch.Generator) -> Tensor:
    """Numbers of one size, of all sizes, ordinary ones beside a large part in common, or all the same."""
    t = torch.randn(shape, generator=g, dtype=torch.float64)
    if kind == 0:
        t = t * 10**power
    elif kind == 1:
        t = t * 10 ** (76 * torch.rand(shape, generator=g, dtype=torch.float64) - 38)
    elif kind == 2:
        t = t + 10 ** (abs(power) / 4)
    elif kind == 3:
        t = torch.full_like(t, 10**power)
    return t.clamp(-3e38, 3e38).float()


KINDS, POWERS = st.integers(0, 4), st.floats(-38, 38)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(NETS)),
    st.lists(st.tuples(KINDS, POWERS), min_size=6, max_size=6),
    st.lists(st.tuples(KINDS, POWERS), min_size=1, max_size=4),
    st.floats(-6, 6),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_inputs_parameters_and_bounds(
    name: str,
    parameters: list[tuple[int, float]],
    examples: list[tuple[int, float]],
    bound: float,
    by_layer: bool,
    seed: int,
) -> None:
    """Each weight and each example is of a kind and a size of its own; each a client, and all as one batch."""
    g = torch.Generator().manual_seed(seed)
    net, shape = NETS[name]
    weights = zip(net.parameters(), parameters * 4, strict=False)
    x = torch.cat(
        [
            p.detach().flatten() if kind == 4 else drawn((p.numel(),), kind, power, g)
            for p, (kind, power) in weights
        ]
    )
    inputs = torch.stack([drawn(shape or (6,), kind, power, g) for kind, power in examples])
    inputs = inputs if shape else torch.randint(0, 3, inputs.shape, generator=g)
    labels, b = torch.randint(CLASSES, (len(inputs),), generator=g), len(inputs)
    for batch in (
        Batch(inputs[:, None], labels[:, None], torch.ones(b, 1)),
        Batch(inputs[None], labels[None], torch.rand(1, b, generator=g)),
    ):
        inside = torch.full((len(batch.weight),), -1.0)
        clip = Clip(torch.full_like(inside, 10**bound), by_layer, inside)
        rows = GRADIENTS[name](x, batch, clip=clip)
        assert (rows.double().norm(dim=1) <= 10**bound * batch.weight.double().sum(1) * SLACK).all()
        assert ((inside >= 0) & (inside <= batch.weight.sum(1) * SLACK)).all()


def test_norms_of_sums_whose_inner_products_round() -> None:
    """All inputs of one value: sums of equal squares round one way, and the terms pull apart. It was off by 4e-3."""
    for k in (784, 20_000, 150_528):
        layer, worst = Linear(nn.Linear(k, 2, bias=False)), 0.0
        g = torch.Generator().manual_seed(k)
        for _ in range(40):
            c, ratio = 1 + torch.rand(2, generator=g), 0.8 + 0.3 * float(torch.rand((), generator=g))
            u = c[:, None].expand(2, k).contiguous()
            h = torch.tensor([[1.0, 0.0], [-ratio * float(c[0] / c[1]), 0.0]])
            squares, lengths = layer.sum_norms(u, h, 1)
            if lengths.square() <= LOST * squares:
                exact = (h.double().mT @ u.double()).square().sum()
                worst = max(worst, abs(float((exact / squares).sqrt()) - 1))
        assert worst < 1e-9


@pytest.mark.parametrize("model", [Logistic(), MLP(hidden=30)])
def test_messages_that_are_summed_before_they_are_written(model: Logistic | MLP) -> None:
    """What a client adds to the sum, for inputs of one value, for opposite examples, for those of large norms."""
    net = model.build((784,), 2)
    gradients = ClientGradients(net)
    g = torch.Generator().manual_seed(0)
    known = 0
    for size in (1e-3, 1.0, 1e3, 1e9):
        x = size * (1 + torch.rand(8, 4, 1, generator=g).expand(8, 4, 784)).contiguous()
        x[1::2] *= 1 + 1e-2 * torch.randn(4, 4, 784, generator=g)
        batch = Batch(x, torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]]).repeat(4, 1), torch.full((8, 4), 0.25))
        ready = gradients.prepare(flatten(net) * 1e-3, batch)
        norm = ready.norms()
        for i in (norm <= LARGE).nonzero()[:, 0].tolist():
            out = torch.empty(1, flatten(net).numel())
            ready.write(slice(i, i + 1), out, clip_factor(norm[i : i + 1], 1e-4))
            assert float(out.double().norm()) <= 1e-4 * SLACK
            known += 1
    assert known >= 8


def test_an_example_in_doubt_leaves_the_others_alone() -> None:
    """A client with one such example: what all others add is the same to the bit, whatever it is."""
    net = built(nn.Linear(40, 40), Centred(), Mean(1), nn.Linear(40, CLASSES))
    gradients, g = ClientGradients(net), torch.Generator().manual_seed(3)
    x = torch.randn(1, 6, 5, 40, generator=g)
    labels, x0 = torch.randint(CLASSES, (1, 6), generator=g), flatten(net)

    def row(last: Tensor, weight: float) -> Tensor:
        inputs = torch.cat([x[:, :5], last.expand(1, 1, 5, 40)], 1)
        weights = torch.tensor([[0.2] * 5 + [weight]])
        inside = torch.zeros(1)
        rows = gradients(x0, Batch(inputs, labels, weights), clip=Clip(torch.tensor([0.1]), inside=inside))
        assert float(inside) <= float(weights.sum())
        return rows[0]

    plain = row(torch.zeros(1), 0.0)
    assert isinstance(gradients.route, Layerwise)
    for last in (torch.tensor(1e30), torch.tensor(1e6) + torch.randn(5, 40, generator=g), torch.tensor(3e38)):
        assert torch.equal(row(last, 0.0), plain)
        # what it adds itself is bounded; its digits are those of products of 1e6 and more, and the kernels' own
        assert float((row(last, 1.0).double() - plain.double()).norm()) <= 0.1 * SLACK + 1e-6


def test_an_embedding_s_norms_of_many_places() -> None:
    """From its sums by index: equal to those of the gradient, without a matrix of places by places (17 GB here)."""
    g = torch.Generator().manual_seed(0)
    layer: Layer = Embedding(nn.Embedding(50, 8, padding_idx=0))
    x = torch.randint(0, 50, (128, 4096), generator=g)
    h = torch.randn(128, 4096, 8, generator=g)
    x[0], h[1] = 3, 0
    found = layer.square_norms(x, h)
    for j in (0, 1, 2, 77):
        rows = torch.zeros(50, 8, dtype=torch.float64).index_add_(0, x[j], h[j].double())
        rows[0] = 0
        assert float(found.squares[j]) == pytest.approx(float(rows.square().sum()), rel=1e-9)


def test_equal_terms_of_one_index_add_up_within_the_bound() -> None:
    net = built(nn.Embedding(8, 16), Mean(1), nn.Linear(16, CLASSES))
    batch = Batch(torch.full((1, 8, 2048), 3), torch.zeros(1, 8, dtype=torch.long), torch.full((1, 8), 1 / 8))
    row = ClientGradients(net)(3 * flatten(net), batch, clip=1e-3)
    assert float(row.double().norm()) <= 1e-3 * SLACK


def test_ill_conditioned_data_are_not_taken_for_a_weight_that_is_read_elsewhere() -> None:
    """All digits of a sum are lost, in float64 too: that told of a weight outside of its layer, and ended the run."""
    net = NETS["few outputs"][0]
    for seed in (91, 318, 485, 884, 1478):  # those of 1,500 that did
        g = torch.Generator().manual_seed(seed)

        def part(t: Tensor, g: torch.Generator = g) -> Tensor:
            kind = int(torch.randint(5, (), generator=g))
            power = 76 * float(torch.rand((), generator=g)) - 38
            return t if kind == 4 else drawn(tuple(t.shape), kind, power, g)

        x0 = torch.cat([part(p.detach().flatten()) for p in net.parameters()])
        x = torch.stack([part(torch.randn(5, 4, generator=g)) for _ in range(3)])
        one_client(net, x0, Batch(x, torch.randint(3, (3,), generator=g), torch.ones(3)), 1.0)


class Mixed(nn.Module):
    """Batch statistics without a module that is known for them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.outer((y - y.mean(0)) / (1 + y.var(0, unbiased=False)).sqrt())


def test_a_model_that_mixes_the_examples_of_a_batch_is_refused() -> None:
    """Each example's clipped gradient would follow from all of them: one of b would move b."""
    torch.manual_seed(0)
    net, x = Mixed(), torch.randn(4, 6)
    batch = Batch(x, torch.tensor([0, 1, 2, 0]), torch.ones(4))
    with pytest.raises(Invalid, match="depends on the other examples"):
        require_certain(net, flatten(net), batch)
    for other, shape in NETS.values():
        inputs = torch.randn(4, *shape) if shape else torch.randint(3, (4, 6))
        require_certain(other, flatten(other), Batch(inputs, batch.y, batch.weight), CROSS_ENTROPY)
