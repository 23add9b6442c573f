"""What methods may ask of their envs: on every engine the same, and nothing that no ledger counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import engines
from fedsim.batches import Batches, Fixed, Poisson
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.gradients import ClientGradients, hvps, losses, one_client, one_hvp, one_loss
from fedsim.gradients.layerwise import Layerwise
from fedsim.keys import Keys, uniform
from fedsim.layout import Layout, flatten
from fedsim.losses import CROSS_ENTROPY, Squared
from fedsim.method import Env, Method, ServerEnv
from fedsim.models import MLP
from fedsim.privacy import ExampleDP, MessageDP
from fedsim.round import Server
from fedsim.runner import Result, run
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean, Median
from fedsim.task import Task
from fedsim.types import Batch, Model, State


# ---------------------------------------------------------------- random numbers
def test_uniform_numbers_are_those_of_the_addresses() -> None:
    """Against NumPy's words of the same streams, two numbers of 24 bits each, and however they are cut into calls."""
    keys = Keys(3, 7)
    whole = uniform(keys.of("client", 2, np.arange(7)), 0, 70_001)
    words = keys.uniform(
        "client", 2, np.arange(7), 35_001
    )  # 53 bits, of which the upper 24 are the second number
    assert torch.equal(whole[:, 1::2], torch.from_numpy(np.floor(words * 2**24) / 2**24).float()[:, :35_000])
    assert abs(np.corrcoef(whole[:, 0:70_000:2].flatten(), whole[:, 1::2].flatten())[0, 1]) < 4 / 245_000**0.5
    parts = [uniform(keys.of("client", 2, np.arange(7)), at, 23) for at in range(0, 92, 23)]
    assert torch.equal(torch.cat(parts, 1), whole[:, :92])
    assert 0 <= float(whole.min()) < float(whole.max()) < 1
    assert abs(float(whole.double().mean()) - 0.5) < 4 / (12 * whole.numel()) ** 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_uniform_numbers_are_the_same_on_a_gpu() -> None:
    keys = Keys(3, 7).of("client", 2, np.arange(7))
    assert torch.equal(uniform(keys, 5, 100_000, "cuda").cpu(), uniform(keys, 5, 100_000))


# ---------------------------------------------------------------- losses and Hessians
class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5, 10))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.a).tanh() @ self.b


class Folded(Own):
    """What vmap cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > 1e9 else 1.5 * x)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(hidden=6).build((8,), 10), (8,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 10)
        ),
        (2, 4, 4),
    ),
    "own": (Own, (8,)),
    "folded": (Folded, (8,)),
}


@pytest.mark.parametrize("net", NETS)
def test_losses_and_hessian_products_of_all_clients(net: str) -> None:
    torch.manual_seed(0)
    build, shape = NETS[net]
    model, n, b = build().double(), 3, 4
    batch = Batch(torch.randn(n, b, *shape).double(), torch.randint(0, 10, (n, b)), torch.rand(n, b).double())
    gradients, x = ClientGradients(model), flatten(model)
    v = torch.randn(n, len(x)).double()
    for at in (x, x * torch.linspace(0.9, 1.1, n)[:, None]):
        own = [(y, u, part) for y, u, part in zip(at.expand(n, -1), v, batch.each(), strict=True)]
        truth = torch.stack([one_loss(model, y, part, CROSS_ENTROPY) for y, _, part in own]).detach()
        torch.testing.assert_close(losses(gradients, at, batch), truth)
        products = torch.stack([one_hvp(model, y, u, part, CROSS_ENTROPY) for y, u, part in own])
        torch.testing.assert_close(hvps(gradients, at, v, batch), products)
        for (y, u, part), product in zip(own, products, strict=True):
            ahead, behind = (one_client(model, y + s * 1e-5 * u, part) for s in (1, -1))
            torch.testing.assert_close(product, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(
                one_loss(model, y, part, CROSS_ENTROPY).detach(),
                nn.functional.cross_entropy(
                    torch.func.functional_call(model, dict(zip_views(model, y)), (part.x,)),
                    part.y,
                    reduction="none",
                )
                @ part.weight,
            )
    assert isinstance(gradients.route, Layerwise) == (net in ("mlp", "cnn"))
    assert gradients.twice == (net != "folded")


def zip_views(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
    layout = Layout.of(model)
    return [(block.name, view) for block, view in zip(layout.blocks, layout.views(x), strict=True)]


def test_the_hessian_of_least_squares_is_its_matrix() -> None:
    """loss = mean (w'x - y)^2, so H v = 2 mean x x' v."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 1, bias=False).double(), torch.randn(6, 4).double(), torch.randn(6).double()
    batch, v = Batch(x, y, torch.full((6,), 1 / 6).double()), torch.randn(4).double()
    torch.testing.assert_close(one_hvp(model, flatten(model), v, batch, Squared()), 2 * x.T @ (x @ v) / 6)


# ---------------------------------------------------------------- a method that asks for everything
@dataclass(frozen=True)
class Everything(Method):
    """Sends (gradient with a Hessian correction and own noise, common mask and loss): 2 d numbers."""

    sends: ClassVar[str] = "y"
    tells: ClassVar[tuple[str, ...]] = ("last", "count")
    lr: float = 0.1

    @property
    def gradients(self) -> int:
        return 2

    def width(self, layout: Layout) -> int:
        return 2 * layout.width

    def client_init(self, x: Tensor) -> State:
        return {"m": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        last = env.told["last"]
        moved = env.first_gradient() - env.grad(last.expand_as(state["m"]), batch)
        hessian = env.hvp(x, (x - last).expand_as(state["m"]), batch)
        noise = env.uniform(x.shape[-1]) - env.uniform(x.shape[-1])
        m = state["m"] + moved + hessian + 1e-3 * noise + env.told["count"]
        mask = (env.common(x.shape[-1]) < 0.5).float() * env.loss(x, batch).unsqueeze(-1)
        assert env.layout.width == x.shape[-1]
        return {"m": m}, torch.cat([m, mask], -1)

    def server_init(self, x: Tensor, n: int) -> State:
        return {"x": x, "y": x + 0.01, "last": x - 0.01, "count": x.new_zeros(1)}

    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        m, mask = aggregate.chunk(2)
        drawn = env.common(len(m)) < 0.5
        assert torch.equal(mask != 0, drawn)  # what the clients drew
        x = state["x"] - self.lr * m * (0.5 + env.uniform(len(m)))
        return {"x": x, "y": x + 0.01 * mask, "last": state["x"], "count": state["count"] + 1e-3}


def experiment(method: Method, model: Model | None = None) -> Experiment:
    return Experiment(
        task=Task(data=Blobs(features=5), model=model or MLP(hidden=4), l2=1e-2),
        split=IID(),
        clients=7,
        cohort=5,
        f=1,
        rule=Median(),
        method=method,
        batches=Fixed(6),
        rounds=4,
        evaluate_every=1,
    )


def same(a: Result, b: Result, tolerance: float = 0.0) -> bool:
    return all(float((a.model[name] - v).abs().max()) <= tolerance for name, v in b.model.items())


@pytest.mark.parametrize("rule", [Median(), Mean()], ids=repr)
def test_everything_on_every_engine(rule: Median | Mean) -> None:
    e = replace(experiment(Everything()), rule=rule)
    loop, vector, grid = (run(e, engine=engine) for engine in ("loop", "vector", "grid"))
    assert same(loop, grid)
    assert same(loop, vector, 2e-6)
    assert not same(loop, run(replace(e, seed=1)))


def test_everything_resumes_to_the_bit(tmp_path: Path) -> None:
    def interrupt(round: int, _: object) -> None:
        if round == 2:
            raise KeyboardInterrupt

    e = experiment(Everything())
    with pytest.raises(KeyboardInterrupt):
        run(e, out=tmp_path, progress=interrupt)
    assert same(run(e), run(e, out=tmp_path, resume=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_everything_on_a_gpu() -> None:
    e = experiment(Everything())
    assert same(run(e, engine="loop"), run(e, device="cuda"), 1e-5)


def test_a_message_of_another_width_is_refused() -> None:
    @dataclass(frozen=True)
    class Wide(FedSGD):
        def width(self, layout: Layout) -> int:
            return layout.width + 1

    with pytest.raises(Invalid, match=r"Wide: a message of shape \(74,\), its `width` says \(75,\)"):
        run(experiment(Wide(lr=0.1)), engine="loop")


# ---------------------------------------------------------------- privacy
@dataclass(frozen=True)
class Asks(FedSGD):
    what: str = "loss"

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        g = env.first_gradient()
        return state, g + (env.hvp(x, g, batch) if self.what == "hvp" else env.loss(x, batch).unsqueeze(-1))


@pytest.mark.parametrize("engine", ["loop", "vector"])
@pytest.mark.parametrize("what", ["loss", "hvp"])
def test_what_no_ledger_counts_is_refused(what: str, engine: str) -> None:
    e = replace(experiment(Asks(lr=0.1, what=what)), privacy=ExampleDP(clip=1.0, noise=1.0))
    with pytest.raises(
        Invalid, match=f"Asks: env.{what} tells of examples what is neither clipped nor noised"
    ):
        run(e, engine=engine)


@dataclass(frozen=True)
class Difference(FedSGD):
    """k gradients of one batch, at several points: their sum."""

    k: int = 2
    asks: int = 2
    local: int = 1

    @property
    def steps(self) -> int:
        return self.local

    @property
    def gradients(self) -> int:
        return self.k

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        parts = list(batch.split(self.local))
        return state, sum((env.grad(x + 0.1 * j, part) for part in parts for j in range(self.asks)), 0 * x)


@pytest.mark.parametrize("batches", [Fixed(6), Poisson(rate=0.2)], ids=repr)
@pytest.mark.parametrize("k", [2, 3])
def test_k_gradients_of_a_batch_are_one_release_at_z_over_sqrt_k(batches: Batches, k: int) -> None:
    def spent(method: Method, noise: float) -> float:
        e = replace(experiment(method), privacy=ExampleDP(clip=1.0, noise=noise), batches=batches)
        return float(run(e).summary["epsilon"])

    together = spent(Difference(lr=0.1, k=k, asks=k), 2.0)
    assert together == pytest.approx(spent(FedSGD(lr=0.1), 2.0 / k**0.5), rel=1e-9)
    assert together == pytest.approx(
        spent(Difference(lr=0.1, k=k, asks=1), 2.0)
    )  # what is announced is paid for
    budget = replace(experiment(Difference(lr=0.1, k=k)), privacy=ExampleDP(clip=1.0, epsilon=4.0))
    one = replace(budget, method=FedSGD(lr=0.1))
    ratio = Federation(budget).ledger.multiplier / Federation(one).ledger.multiplier  # type: ignore[union-attr]
    assert ratio == pytest.approx(k**0.5, rel=1e-3)


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_noise_of_gradients_of_one_batch_is_drawn_afresh(engine: str) -> None:
    e = experiment(Difference(lr=0.1, local=2))
    e = replace(e, privacy=ExampleDP(clip=1e-3, noise=1e4), cohort=None, task=replace(e.task, l2=0.0))
    fed = Federation(e)
    _, messages = engines.get(engine)(fed, {}, Server.start(fed).told(e.method), 1, np.arange(7))
    noise = fed.x0.new_zeros(7, len(fed.x0))
    for call in range(4):
        noise += fed.noisy(0 * noise, "gradient", 1, np.arange(7), call, 1e-3)
    torch.testing.assert_close(messages.rows, noise, rtol=1e-4, atol=1e-2 * float(noise.std()))
    kept = [fed.noisy(0 * noise, "gradient", t, np.arange(7), c) for t in range(3) for c in range(4)]
    assert len({float(each[0, 0]) for each in kept}) == 12


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_a_gradient_more_than_announced_is_refused(engine: str) -> None:
    e = replace(experiment(Difference(lr=0.1, k=2, asks=3)), privacy=ExampleDP(clip=1.0, noise=1.0))
    with pytest.raises(
        Invalid, match="asks for gradient 3 on batch 1 of a round, its `steps` says 1 and its `grad"
    ):
        run(e, engine=engine)
    run(replace(e, privacy=None), engine=engine)


def test_wide_messages_are_noised_as_a_whole() -> None:
    @dataclass(frozen=True)
    class Wide(FedSGD):
        @property
        def message_bound(self) -> float | None:
            return 1.0

        def width(self, layout: Layout) -> int:
            return 2 * layout.width

        def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
            g = env.first_gradient(1.0)
            return state, env.noisy(torch.cat([g, -g], -1) / 2**0.5)

        def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
            return super().step(state, aggregate[: len(state["x"])], env)

    e = replace(experiment(Wide(lr=0.1)), privacy=MessageDP(noise=0.1))
    loop, vector, grid = (run(e, engine=engine) for engine in ("loop", "vector", "grid"))
    assert same(loop, grid)
    assert same(loop, vector, 1e-6)
