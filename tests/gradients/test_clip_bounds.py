"""A clip bounds whatever comes: inputs, parameters and bounds over all of float32's range, on every route.

What leaves before noise is measured in float64. Single examples (b = 1) show the bound itself, several that a sum keeps
to the sum of its weights times the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from fedsim import engines
from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.datasets.load import Digits
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.gradients import ClientGradients, Clip, one_client
from fedsim.gradients.fallback import Loop, Vmap
from fedsim.layout import clip_, flatten, norms
from fedsim.losses import CROSS_ENTROPY
from fedsim.method import Method
from fedsim.models import MLP
from fedsim.privacy import ExampleDP, MessageDP, Quantile
from fedsim.round import Server
from fedsim.spec import Experiment
from fedsim.strategies import ByzClip21SGD2M, ByzClipSGD, FedAvg, FedSGD, Mean, SafeDSHB
from fedsim.task import Task
from fedsim.types import Batch

SLACK = 1 + 1e-5
BOUNDS = [1e-6, 1e-3, 1.0, 1e6]
SCALES = [1e-38, 1e-30, 1e-23, 1e-12, 1e-4, 1.0, 1e4, 1e12, 1e19, 1e30, 1e38]
PLACES, WIDTH, CLASSES = 5, 4, 3


class Centred(nn.Module):
    """Less the mean over places: a part that all places have in common is gone behind it, and of no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class Last(nn.Module):
    """The last place alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


class Tied(nn.Module):
    """A layer called twice, which no layerwise formula fits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


def tokens(hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, hidden), Centred(), nn.LayerNorm(hidden), Last(), nn.Linear(hidden, CLASSES)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(hidden=5).build((WIDTH,), CLASSES), (WIDTH,)),
    "tokens, from gradients": (lambda: tokens(3), (PLACES, WIDTH)),
    "tokens, from products": (lambda: tokens(64), (2, WIDTH)),
    "wide tokens, from products": (
        lambda: nn.Sequential(nn.Linear(40, 40), Centred(), Last(), nn.Linear(40, CLASSES)),
        (PLACES, 40),
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, CLASSES)
        ),
        (1, 5, 5),
    ),
    "tied": (Tied, (WIDTH,)),
}


def extremes(shape: tuple[int, ...], scale: float, seed: int) -> Tensor:
    """Two examples: numbers of this size, and those beside a part in common that is a million times as large."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *shape, generator=g) * min(scale, 1e30) * max(scale / 1e30, 1)
    x[1] += 1e6 * min(scale, 1e31)
    return x.clamp(-3e38, 3e38)


def routes(net: nn.Module) -> Iterator[tuple[str, Callable[[Tensor, Batch, Clip], Tensor]]]:
    """Gradients (n, d) of n clients, in all ways that there are."""
    chosen = ClientGradients(net)
    yield "chosen", lambda x, batch, clip: chosen(x, batch, clip=clip)
    for route in (Vmap(net, CROSS_ENTROPY), Loop(net, CROSS_ENTROPY)):

        def ready(x: Tensor, batch: Batch, clip: Clip, route: Vmap | Loop = route) -> Tensor:
            out = torch.empty(len(batch.y), len(x))
            route(x, batch, clip).write(slice(None), out)
            return out

        yield type(route).__name__, ready


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_every_route_keeps_to_the_bound(name: str, by_layer: bool) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build()
    ways = list(routes(net))
    for i, (inputs, size) in enumerate(product(SCALES, (1e-30, 1e-3, 1.0, 1e3, 1e18, 1e38))):
        x = (flatten(net) * size).clamp(-3e38, 3e38)
        both = extremes(shape, inputs, i)
        labels, ones = torch.tensor([0, 2]), torch.ones(2)
        bound = BOUNDS[i % len(BOUNDS)]
        for way, gradients in ways if i % 5 == 0 else ways[:1]:
            alone = Batch(both.unsqueeze(1), labels.unsqueeze(1), ones.unsqueeze(1))
            together = Batch(both[None], labels[None], torch.tensor([[0.25, 0.5]]))
            for batch in (alone, together):
                rows = gradients(x, batch, Clip(bound, by_layer))
                most = bound * float(batch.weight.sum(1).max()) * SLACK
                measured = rows.double().norm(dim=1)
                assert (measured <= most).all(), (way, inputs, size, bound, measured)


def test_a_common_part_that_a_layer_removes() -> None:
    """Products of float32 lose the norm of such a gradient: it would leave at many times the bound."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(40, 40), Centred(), Last(), nn.Linear(40, CLASSES))
    gradients = ClientGradients(net)
    for common in (1e2, 1e3, 1e4, 1e5, 1e6):
        x = torch.randn(1, 1, PLACES, 40) + common
        batch = Batch(x, torch.tensor([[1]]), torch.ones(1, 1))
        row = gradients(flatten(net), batch, clip=0.01)[0]
        assert float(row.double().norm()) <= 0.01 * SLACK
        right = one_client(net, flatten(net), Batch(x[0], batch.y[0], batch.weight[0]), 0.01)
        assert float((row - right).norm()) <= 0.02 * 0.01 * max(1, common / 1e4)


@pytest.mark.parametrize("d", [1, 7, 4096, 10_000])
@pytest.mark.parametrize("scale", SCALES)
def test_norms_and_clips_of_messages(d: int, scale: float) -> None:
    g = torch.Generator().manual_seed(d)
    v = (torch.randn(3, d, generator=g).clamp(-3, 3) * scale / 3).clamp(-3e38, 3e38)
    v[1] *= torch.rand(d, generator=g) ** 20  # of many sizes
    exact = v.double().norm(dim=1)
    held = exact <= torch.finfo(torch.float32).max
    torch.testing.assert_close(norms(v).double()[held], exact[held], rtol=2e-6, atol=1e-45)
    for tau in BOUNDS:
        clipped = clip_(v.clone(), tau)
        assert (clipped.double().norm(dim=1) <= tau * SLACK).all()
        inside = exact <= tau
        assert torch.equal(clipped[inside], v[inside])
    for broken in (torch.nan, torch.inf):
        assert not clip_(v.clone().index_fill(1, torch.tensor([0]), broken), 1.0).any()


METHODS: list[Method] = [
    ByzClipSGD(lr=0.1, tau=1e-3),
    ByzClip21SGD2M(lr=0.1, tau=1e-3),
    FedAvg(lr=0.1, tau=1e-3, local_steps=2),
    SafeDSHB(lr=0.1, tau=1e-3),
]


def experiment(method: Method, privacy: ExampleDP | MessageDP) -> Experiment:
    return Experiment(
        task=Task(Digits(), MLP(hidden=4)),
        method=method,
        rule=Mean(),
        split=IID(),
        privacy=privacy,
        batches=Fixed(3),
        clients=4,
        rounds=3,
    )


@pytest.mark.parametrize("engine", ["loop", "vector", "grid"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e6, 1e25])
@pytest.mark.parametrize(
    ("method", "privacy"),
    [
        *((method, MessageDP(noise=1.0)) for method in METHODS),
        (ByzClip21SGD2M(lr=0.1, tau=float("inf")), ExampleDP(clip=0.01, noise=1.0)),
        (FedAvg(lr=0.1, local_steps=2), ExampleDP(clip=0.01, noise=1.0, by_layer=True)),
        (FedSGD(lr=0.1), ExampleDP(clip=Quantile(start=0.01), noise=1.0)),
    ],
    ids=repr,
)
def test_what_leaves_every_engine_is_bounded(
    engine: str,
    scale: float,
    method: Method,
    privacy: ExampleDP | MessageDP,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the one place where noise is added."""
    fed = Federation(experiment(method, privacy))
    fed.train = replace(fed.train, x=fed.train.x * scale)
    monkeypatch.setattr("fedsim.engines.grid.Federation", lambda *a, **k: fed, raising=False)
    left: list[Tensor] = []
    add = Federation.add_gaussian_noise

    def watched(self: Federation, rows: Tensor, deviations: Tensor, purpose: str, *rest, **more) -> Tensor:  # type: ignore[no-untyped-def]
        if purpose != "count":
            left.append(rows.detach().double().norm(dim=1))
        return add(self, rows, deviations, purpose, *rest, **more)

    monkeypatch.setattr(Federation, "add_gaussian_noise", watched)
    ask, server = engines.Everyone(engines.get(engine)), Server.start(fed)
    states = fed.client_states()
    ids = fed.cohort(0)
    ask(fed, states, server.told(method), 0, ids)
    bound = 0.01 if isinstance(privacy, ExampleDP) else 1e-3
    assert left
    for norm in left:  # a single row of all clients is their sum
        assert (
            norm <= bound * (1 if len(norm) == len(ids) or engine != "vector" else len(ids)) * SLACK
        ).all()


def test_bounds_that_float32_cannot_keep_are_refused() -> None:
    for tau in (1e-7, 1e7, 0.0, -1.0, float("nan")):
        with pytest.raises(Invalid, match="tau"):
            ByzClip21SGD2M(lr=0.1, tau=tau)
        with pytest.raises(Invalid, match="clip"):
            ExampleDP(clip=tau, noise=1.0)
    for noise in (1e-4, 1e5, float("inf")):
        with pytest.raises(Invalid, match="noise"):
            MessageDP(noise=noise)
