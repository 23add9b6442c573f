"""Frozen parameters: of no gradient, no clip and no noise, on every route and every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_client_gradients import Text, check, images, words
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.federation import Federation
from fedsim.gradients import Clip, one_client
from fedsim.gradients.fallback import Loop, Vmap
from fedsim.gradients.layerwise import Layerwise
from fedsim.layout import Layout, flatten, parameters
from fedsim.method import Method
from fedsim.models import CNN, MLP
from fedsim.privacy import ExampleDP, MessageDP, Privacy
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import NNM, ByzClip21SGD2M, Chain, FedAvg, HeavyBall, Mean, Median, MoNNA
from fedsim.task import Task
from fedsim.types import Batch, Model, Rule


class Own(nn.Module):
    """Weights outside of any layer that is known: the way of vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(12, 5)), nn.Parameter(torch.randn(5, 10))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.a).tanh() @ self.b


class Branching(Own):
    """What vmap cannot follow: one client after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > 1e9 else 1.5 * x)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], type]] = {
    "mlp": (lambda: MLP(hidden=(8, 7)).build((1, 3, 4), 10), lambda: images(1, 3, 4), Layerwise),
    "cnn": (lambda: CNN(layout="deep").build((3, 8, 8), 10), lambda: images(3, 8, 8), Layerwise),
    "text": (Text, lambda: words(11), Layerwise),
    "own": (Own, lambda: images(1, 3, 4), Vmap),
    "branching": (Branching, lambda: images(1, 3, 4), Loop),
}
TRAINED: dict[str, Callable[[int, int, nn.Parameter], bool]] = {
    "head": lambda i, n, p: i >= n - 2 and (n > 2 or i == n - 1),
    "body": lambda i, n, p: i < n - 2 or (n == 2 and i == 0),
    "biases": lambda i, n, p: p.dim() == 1 or (n == 2 and i == 1),
    "matrices": lambda i, n, p: p.dim() > 1,
}


def frozen(net: nn.Module, trained: str) -> nn.Module:
    every = list(net.parameters())
    for i, p in enumerate(every):
        p.requires_grad_(TRAINED[trained](i, len(every), p))
    return net


def oracle(net: nn.Module, batch: Batch, clip: float | None) -> Tensor:
    """Example by example: the gradient of the trained parameters alone is clipped, weighted and added up."""
    total = torch.zeros_like(flatten(net))
    moving = [p for p in net.parameters() if p.requires_grad]
    for x, y, weight in zip(batch.x, batch.y, batch.weight, strict=True):
        loss = F.cross_entropy(net(x[None]), y[None])
        each = torch.cat([g.flatten() for g in torch.autograd.grad(loss, moving)])
        factor = 1.0 if clip is None else min(1.0, clip / max(float(each.norm()), 1e-300))
        total += weight * factor * each
    return total


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("net", NETS)
def test_gradients_and_clips_are_of_what_is_trained(net: str, trained: str, clip: float | None) -> None:
    if net == "branching" and clip is not None:
        pytest.skip("no per-example gradients of such a model by Opacus either")
    torch.manual_seed(0)
    build, batches, route = NETS[net]
    model, batch = frozen(build().double(), trained), batches()
    before = [p.clone() for p in model.parameters()]
    one = Batch(batch.x[0], batch.y[0], batch.weight[0])
    torch.testing.assert_close(one_client(model, flatten(model), one, clip), oracle(model, one, clip))
    assert isinstance(check(model, batch, clip).route, route)
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_a_clip_by_layer_counts_the_layers_that_are_trained() -> None:
    torch.manual_seed(0)
    model, batch = frozen(MLP(hidden=(8, 7)).build((1, 3, 4), 10).double(), "head"), images(1, 3, 4)
    one = Batch(batch.x[0], batch.y[0], batch.weight[0])
    whole = one_client(model, flatten(model), one, Clip(0.3))
    torch.testing.assert_close(one_client(model, flatten(model), one, Clip(0.3, by_layer=True)), whole)


# ---------------------------------------------------------------- in a federation
@dataclass(frozen=True)
class Frozen(Model):
    """An MLP of 332 parameters with 150 to train: the second of two layers."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        net = MLP(hidden=14).build(shape, classes)
        net[1].requires_grad_(False)
        return net


@dataclass(frozen=True)
class Stone(Model):
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return MLP(hidden=3).build(shape, classes).requires_grad_(False)


EXAMPLE, MESSAGE = ExampleDP(clip=0.5, noise=1.0), MessageDP(noise=0.5)


def experiment(model: Model, method: Method, rule: Rule, privacy: Privacy | None) -> Experiment:
    return Experiment(
        task=Task(data=Blobs(classes=10, features=12), model=model, l2=1e-3),
        split=Dirichlet(1.0),
        clients=6,
        f=1,
        rule=rule,
        method=method,
        privacy=privacy,
        rounds=3,
        evaluate_every=1,
    )


CASES = [
    (FedAvg(lr=0.5, local_steps=3), Mean(), None),
    (HeavyBall(lr=0.5), Mean(), EXAMPLE),
    (ByzClip21SGD2M(lr=0.5, tau=0.3), Chain(NNM(), Median()), MESSAGE),
    (MoNNA(lr=0.5), Median(), None),
]


@pytest.mark.parametrize("engine", ["loop", "vector", "grid"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case[0]).__name__)
def test_what_is_frozen_does_not_move(case: tuple[Method, Rule, Privacy | None], engine: str) -> None:
    e = experiment(Frozen(), *case)
    start = parameters(Federation(e).x0, Federation(e).model)
    end, loop = run(e, engine=engine).model, run(e, engine="loop").model
    assert list(end) == list(start) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    for name in start:
        assert torch.equal(end[name], start[name]) == name.startswith("1.")
        torch.testing.assert_close(end[name], loop[name], rtol=1e-5, atol=1e-6)
        assert engine == "vector" or torch.equal(end[name], loop[name])


def test_messages_and_noise_are_of_the_trained_part_and_the_ledger_is_the_same() -> None:
    """The clip and the noise of 182 frozen numbers are gone; how many numbers a release has costs nothing."""
    frozen_, whole = (Federation(experiment(m, *CASES[1])) for m in (Frozen(), MLP(hidden=14)))
    assert (frozen_.x0.numel(), whole.x0.numel()) == (150, 332)
    assert Layout.of(frozen_.model).width == 332
    assert Layout.of(frozen_.model).trained.width == 150
    drawn = frozen_.noisy(torch.zeros(6, 150), "gradient", 0, frozen_.cohort(0))
    assert drawn.shape == (6, 150)
    spent = [fed.ledger.charge(fed.cohort(0)).epsilon for fed in (frozen_, whole) if fed.ledger]
    assert spent[0] == spent[1]


def test_a_model_that_is_all_frozen_is_refused() -> None:
    with pytest.raises(Invalid, match="none of its 4 parameters is trained; at least one must"):
        Federation(experiment(Stone(), *CASES[0]))


def test_a_run_with_a_frozen_part_goes_on_to_the_bit(tmp_path: Path) -> None:
    def interrupt(round: int, _: object) -> None:
        if round == 2:
            raise KeyboardInterrupt

    e = experiment(Frozen(), *CASES[0])
    with pytest.raises(KeyboardInterrupt):
        run(e, out=tmp_path, progress=interrupt)
    whole, resumed = run(e).model, run(e, out=tmp_path, resume=True).model
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
