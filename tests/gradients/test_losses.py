"""Losses and inputs of every kind: the numbers, their gradients on every route, and runs on every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.attacks import Backdoor, LabelFlip
from fedsim.batches import Fixed, Poisson
from fedsim.check import Invalid
from fedsim.config import codec
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.gradients import ClientGradients, one_client
from fedsim.gradients.fallback import Loop, Vmap
from fedsim.gradients.layerwise import Layerwise
from fedsim.layout import flatten
from fedsim.losses import Binary, CrossEntropy, Huber, Squared
from fedsim.method import Method
from fedsim.models import MLP, Logistic
from fedsim.privacy import ExampleDP, MessageDP, Privacy
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import NNM, ByzClip21SGD2M, Chain, FedAvg, FedSGD, Mean, Median
from fedsim.task import Task
from fedsim.types import Batch, Data, Dataset, Examples, Loss, Model, Rule


# ---------------------------------------------------------------- the numbers
def by_hand(loss: Loss, outputs: Tensor, y: Tensor) -> list[float]:
    """Each example's loss from its formula, number by number, in double precision."""

    def one(out: Tensor, label: Tensor) -> float:
        if isinstance(loss, CrossEntropy):
            return float(torch.logsumexp(out, 0) - out[int(label)])
        error = float(out) - float(label)
        if isinstance(loss, Squared):
            return error**2
        if isinstance(loss, Huber):
            return error**2 / 2 if abs(error) <= loss.delta else loss.delta * (abs(error) - loss.delta / 2)
        p = 1 / (1 + float((-out).exp()))
        return -float(label) * log(p) - (1 - float(label)) * log(1 - p)

    values = []
    for out, label in zip(outputs, y, strict=True):
        places = [(out, label)] if label.dim() == 0 else list(zip(out, label, strict=True))
        each = [one(o.squeeze() if o.numel() == 1 else o, v) for o, v in places]
        values.append(sum(each) / (len(each) if loss.over == "mean" else 1))  # type: ignore[attr-defined]
    return values


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


CASES: list[tuple[Loss, Callable[[], tuple[Tensor, Tensor]]]] = [
    (CrossEntropy(), lambda: (numbers(5, 3), torch.randint(0, 3, (5,)))),
    (CrossEntropy(), lambda: (numbers(5, 4, 3), torch.randint(0, 3, (5, 4)))),
    (CrossEntropy(over="sum"), lambda: (numbers(5, 4, 3), torch.randint(0, 3, (5, 4)))),
    (Squared(), lambda: (numbers(5, 1), numbers(5))),
    (Squared(), lambda: (numbers(5), numbers(5))),
    (Squared(over="sum"), lambda: (numbers(5, 2), numbers(5, 2))),
    (Huber(delta=0.7), lambda: (numbers(5, 2), 2 * numbers(5, 2))),
    (Binary(), lambda: (numbers(5, 1), torch.randint(0, 2, (5,)))),
    (Binary(over="sum"), lambda: (numbers(5, 3), torch.randint(0, 2, (5, 3)).double())),
]


@pytest.mark.parametrize(
    ("loss", "drawn"), CASES, ids=lambda case: repr(case) if isinstance(case, Loss) else ""
)
def test_a_loss_is_its_formula_and_its_gradient_is_autograd_s(
    loss: Loss, drawn: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    torch.manual_seed(0)
    outputs, y = drawn()
    values = loss(outputs, y)
    torch.testing.assert_close(values, torch.tensor(by_hand(loss, outputs, y), dtype=torch.float64))
    outputs.requires_grad_()
    (slope,) = torch.autograd.grad(loss(outputs, y).sum(), outputs)
    torch.testing.assert_close(loss.gradient(outputs.detach(), y), slope)


# ---------------------------------------------------------------- the routes
class Words(nn.Module):
    """The next word at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.out = nn.Embedding(7, 5), nn.Linear(5, 6), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.words(x)).cumsum(1)))


class Two(nn.Module):
    """A picture and some features, by name or by place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.side, self.out = nn.Conv2d(1, 3, 2), nn.Linear(4, 5), nn.Linear(32, 10)

    def forward(self, picture: Tensor, features: Tensor) -> Tensor:
        both = [self.conv(picture).flatten(1), self.side(features)]
        return self.out(torch.cat(both, 1).tanh())


class Scaled(nn.Module):
    """A parameter outside of every layer that is known: the way of vmap."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(()))

    def forward(self, *args: Tensor, **inputs: Tensor) -> Tensor:
        return self.scale * self.inner(*args, **inputs)


N, B = 3, 4


def batch(x: object, y: Tensor) -> Batch:
    weight = torch.rand(N, B, dtype=torch.float64)
    weight[1, B // 2 :] = 0
    return Batch(x, y, weight)  # type: ignore[arg-type]


ROUTES: dict[str, tuple[Loss, Callable[[], nn.Module], Callable[[], Batch]]] = {
    "squared": (
        Squared(),
        lambda: MLP(hidden=6).build((8,), 1),
        lambda: batch(numbers(N, B, 8), numbers(N, B)),
    ),
    "huber, two targets": (
        Huber(delta=0.5),
        lambda: MLP(hidden=6).build((8,), 2),
        lambda: batch(numbers(N, B, 8), 3 * numbers(N, B, 2)),
    ),
    "binary": (
        Binary(),
        lambda: Logistic().build((8,), 1),
        lambda: batch(numbers(N, B, 8), torch.randint(0, 2, (N, B))),
    ),
    "windows": (
        CrossEntropy(),
        Words,
        lambda: batch(torch.randint(0, 7, (N, B, 6)), torch.randint(0, 7, (N, B, 6))),
    ),
    "windows, summed": (
        CrossEntropy(over="sum"),
        Words,
        lambda: batch(torch.randint(0, 7, (N, B, 6)), torch.randint(0, 7, (N, B, 6))),
    ),
    "a dict": (
        CrossEntropy(),
        Two,
        lambda: batch(
            {"features": numbers(N, B, 4), "picture": numbers(N, B, 1, 4, 4)}, torch.randint(0, 10, (N, B))
        ),
    ),
    "a tuple": (
        CrossEntropy(),
        Two,
        lambda: batch((numbers(N, B, 1, 4, 4), numbers(N, B, 4)), torch.randint(0, 10, (N, B))),
    ),
}


def oracle(net: nn.Module, loss: Loss, part: Batch, clip: float | None) -> Tensor:
    total = torch.zeros_like(flatten(net))
    for j in range(B):
        one = part.map(lambda t, j=j: t[j : j + 1])  # type: ignore[misc]
        x = one.x
        out = net(**x) if isinstance(x, dict) else net(*x) if isinstance(x, tuple) else net(x)
        gradients = torch.autograd.grad(loss(out, one.y).sum(), list(net.parameters()))
        each = torch.cat([g.flatten() for g in gradients])
        total += one.weight[0] * each * (1.0 if clip is None else min(1.0, clip / float(each.norm())))
    return total


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("route", [Layerwise, Vmap, Loop])
@pytest.mark.parametrize("case", ROUTES)
def test_every_route_takes_the_gradient_of_the_loss(case: str, route: type, clip: float | None) -> None:
    torch.manual_seed(0)
    loss, build, drawn = ROUTES[case]
    net, batches = build().double(), drawn()
    net = net if route is Layerwise else Scaled(net).double()
    gradients = ClientGradients(net, loss=loss)
    if route is Loop:
        gradients.route = Loop(net, loss)
    if not isinstance(batches.x, Tensor) and isinstance(net, Scaled) and clip:
        with pytest.raises(Invalid, match="takes several inputs and has parameters of its own"):
            one_client(net, flatten(net), batches.part(0), clip, loss)
        return
    rows = gradients(flatten(net), batches, clip=clip)
    assert isinstance(gradients.route, route)
    for row, part in zip(rows, batches.each(), strict=True):
        torch.testing.assert_close(row, oracle(net, loss, part, clip))
        torch.testing.assert_close(one_client(net, flatten(net), part, clip, loss), row)
    many = flatten(net) * torch.linspace(0.9, 1.1, N)[:, None]
    apart = torch.stack(
        [one_client(net, x, part, clip, loss) for x, part in zip(many, batches.each(), strict=True)]
    )
    torch.testing.assert_close(gradients(many, batches, clip=clip), apart)


# ---------------------------------------------------------------- on every engine
@dataclass(frozen=True)
class Drawn(Data):
    """60 examples of a kind, and 20 to test."""

    kind: str

    def load(self) -> Dataset:
        torch.manual_seed(1)
        x = torch.randn(80, 6)
        if self.kind == "numbers":
            return self._cut(x, (x[:, 0] - 2 * x[:, 1]).sin(), 0)
        if self.kind == "pairs":
            return self._cut(x, torch.stack([x[:, 0].sin(), x[:, 1]], 1), 0)
        if self.kind == "yes or no":
            return self._cut(x, (x[:, 0] > 0).long(), 2)
        if self.kind == "text":
            words = torch.randint(0, 7, (80, 6))
            return self._cut(words[:, :-1], words[:, 1:], 7)
        return self._cut(
            {"features": x[:, :4], "picture": torch.randn(80, 1, 4, 4)}, (x[:, 0] > 0).long(), 10
        )

    def _cut(self, x: object, y: Tensor, classes: int) -> Dataset:
        whole = Examples(x, y)  # type: ignore[arg-type]
        return Dataset(whole.part(slice(0, 60)), whole.part(slice(60, 80)), classes)


@dataclass(frozen=True)
class Net(Model):
    kind: str

    def build(self, shape: object, classes: int) -> nn.Module:
        if self.kind == "text":
            assert shape == (5,)
            return Words()
        assert shape == {"features": (4,), "picture": (1, 4, 4)}
        return Two()


def doubled(outputs: Tensor, y: Tensor) -> Tensor:
    """Twice the absolute error."""
    return 2 * (outputs[:, 0] - y).abs()


TASKS = {
    "squared": Task(data=Drawn("numbers"), model=MLP(hidden=5), loss=Squared()),
    "huber": Task(data=Drawn("pairs"), model=MLP(hidden=5), loss=Huber(), l2=1e-3),
    "binary": Task(data=Drawn("yes or no"), model=Logistic(), loss=Binary()),
    "text": Task(data=Drawn("text"), model=Net("text")),
    "two inputs": Task(data=Drawn("both"), model=Net("both")),
    "own": Task(data=Drawn("numbers"), model=MLP(hidden=5), loss=doubled),  # type: ignore[arg-type]
}
METHODS: list[tuple[Method, Rule, Privacy | None]] = [
    (FedAvg(lr=0.1, local_steps=2), Mean(), None),
    (FedSGD(lr=0.2), Chain(NNM(), Median()), ExampleDP(clip=0.5, noise=0.5)),
    (ByzClip21SGD2M(lr=0.2, tau=0.5), Median(), MessageDP(noise=0.1)),
]


def experiment(task: Task, method: Method, rule: Rule, privacy: Privacy | None) -> Experiment:
    return Experiment(
        task=task,
        method=method,
        rule=rule,
        privacy=privacy,
        split=IID(),
        batches=Fixed(4),
        clients=5,
        f=1,
        rounds=3,
        evaluate_every=1,
    )


@pytest.mark.parametrize("chosen", METHODS, ids=lambda m: type(m[0]).__name__)
@pytest.mark.parametrize("task", TASKS)
def test_any_task_on_any_engine(task: str, chosen: tuple[Method, Rule, Privacy | None]) -> None:
    e = experiment(TASKS[task], *chosen)
    loop, vector, grid = (run(e, engine=engine) for engine in ("loop", "vector", "grid"))
    for name, value in loop.model.items():
        assert torch.equal(grid.model[name], value)
        torch.testing.assert_close(vector.model[name], value, rtol=1e-5, atol=1e-6)
    assert loop.frame["loss"].notna().all()
    assert ("accuracy" in loop.frame) == (task in ("binary", "text", "two inputs"))


def test_the_mean_of_windows_is_what_a_run_reports() -> None:
    result = run(experiment(TASKS["text"], *METHODS[0]))
    net, test = Words(), Drawn("text").load().test
    net.load_state_dict(result.model)
    assert isinstance(test.x, Tensor)
    out = net(test.x).detach()
    assert result.summary["loss"] == pytest.approx(
        float(F.cross_entropy(out.flatten(0, 1), test.y.flatten()))
    )
    assert result.accuracy == pytest.approx(float((out.argmax(-1) == test.y).double().mean()))


# ---------------------------------------------------------------- one's own
def test_a_function_of_one_s_own_is_a_loss_by_its_place() -> None:
    e = experiment(TASKS["own"], *METHODS[0])
    place = f"{__name__}:doubled"
    assert e.to_dict()["task"]["loss"] == {"name": place}
    assert codec.decode(Experiment, e.to_dict(), own=True) == e
    changed = codec.update(replace(e, task=TASKS["squared"]), [("task.loss", place)])
    assert changed == e
    with pytest.raises(Invalid, match="allowed here are the components of fedsim itself"):
        Experiment.from_json(e.to_json())


def total(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.sum(-1) - y).square()


def test_the_gradient_of_a_sum_is_one_number_seen_many_times() -> None:
    e = experiment(Task(Blobs(train=50, test=10), Logistic(), loss=total), *METHODS[0])
    e = replace(e, batches=Poisson(rate=0.3))
    loop, vector = (run(e, engine=engine).model for engine in ("loop", "vector"))
    for name, value in loop.items():
        torch.testing.assert_close(vector[name], value, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- what cannot work
def short(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs[:, 0] - y).abs().mean()


def raises(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs @ y


def listed(outputs: Tensor, y: Tensor) -> object:
    return [0.0] * len(y)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            replace(TASKS["squared"], loss=short),
            r"loss = short: \(\) for 4 examples; must be a tensor of shape \(b,\)",
        ),
        (replace(TASKS["squared"], loss=listed), "loss = listed: list for 4 examples"),
        (replace(TASKS["squared"], loss=raises), "loss = raises: raises RuntimeError"),
        (replace(TASKS["squared"], loss=CrossEntropy()), "CrossEntropy: labels are float32 from -"),
        (
            replace(TASKS["binary"], loss=Squared()),
            "Squared: labels are int64 from 0 to 1; must be finite numbers",
        ),
        (replace(TASKS["squared"], loss=Binary()), "Binary: labels are float32 from .*; must be 0 or 1"),
        (replace(TASKS["text"], loss=Binary()), "Binary: labels are int64 from 0 to 6; must be 0 or 1"),
        (Task(data=Drawn("text"), model=Net("text"), loss=Squared()), "must be finite numbers"),
        (Task(data=Drawn("pairs"), model=Logistic(), loss=doubled), "loss = doubled: "),
    ],
)
def test_labels_and_losses_that_do_not_fit_are_refused(task: Task, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        run(experiment(task, *METHODS[0]))


def test_attacks_on_classes_refuse_numbers() -> None:
    for attack in (LabelFlip(), Backdoor()):
        e = replace(experiment(TASKS["squared"], *METHODS[0]), attack=attack, byzantine=1)
        with pytest.raises(Invalid, match=type(attack).__name__):
            run(e)


def test_a_model_with_fewer_outputs_than_classes_is_refused() -> None:
    @dataclass(frozen=True)
    class Narrow(Model):
        def build(self, shape: object, classes: int) -> nn.Module:
            return Logistic().build((4,), 2)

    task = Task(data=Blobs(classes=3, features=4), model=Narrow())
    with pytest.raises(Invalid, match=r"outputs of shape \(4, 2\) for labels of shape \(4,\) up to 2"):
        run(experiment(task, *METHODS[0]))
