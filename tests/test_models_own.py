"""Modules of one's own, changed models, and networks for text: what they compute, on all routes and engines."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.config import codec
from fedsim.datasets.load import Arrays, Blobs
from fedsim.datasets.split import IID
from fedsim.experiments.resolve import change
from fedsim.federation import Federation
from fedsim.gradients import ClientGradients, one_client
from fedsim.layout import flatten
from fedsim.models import CNN, GPT, LSTM, MLP, Frozen, GroupNormed, Logistic, Module, Pretrained, own
from fedsim.privacy import ExampleDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import FedAvg, Mean
from fedsim.task import Task
from fedsim.types import Batch, Model


class Net(nn.Module):
    """A backbone and a head."""

    def __init__(self, classes: int, width: int = 6, norm: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(20, width), nn.BatchNorm1d(width) if norm else nn.Tanh())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


class Needs(Net):
    def __init__(self, width: int) -> None:
        super().__init__(10, width)


def made(shape: tuple[int, ...], classes: int, hidden: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], hidden), nn.Tanh(), nn.Linear(hidden, classes))


def no_module() -> int:
    return 3


def experiment(model: Any, **changes: Any) -> Experiment:
    fields: dict[str, Any] = {
        "clients": 4,
        "rounds": 3,
        "evaluate_every": 1,
        "split": IID(),
        "batches": Fixed(8),
    }
    fields["task"] = Task(Blobs(train=200, test=50), model)
    return Experiment(method=FedAvg(lr=0.1), rule=Mean(), **(fields | changes))


def same_on_both(e: Experiment) -> dict[str, Tensor]:
    """The model after a run by the loop, which is that of the vector engine."""
    loop, vector = run(e, engine="loop"), run(e, engine="vector")
    for name, value in loop.model.items():
        torch.testing.assert_close(value, vector.model[name], rtol=1e-4, atol=2e-6)
    return loop.model


# ---------------------------------------------------------------- own modules
@pytest.mark.parametrize(
    ("text", "width"), [("Net", 6), ("Net(width=4)", 4), ("made(hidden=7)", 7), ("Needs(width=3)", 3)]
)
def test_a_module_of_one_s_own_by_its_place(text: str, width: int) -> None:
    e = change(experiment(Logistic()), [f"task.model={__name__}:{text}"])
    assert codec.decode(Experiment, e.to_dict(), own=True) == e
    assert e.fingerprint != experiment(Logistic()).fingerprint
    model = same_on_both(e)
    assert next(iter(model.values())).shape == (width, 20)
    with pytest.raises(Invalid, match="allowed here are the components of fedsim itself"):
        Experiment.from_json(e.to_json())


def test_a_class_a_function_or_an_object_is_a_model() -> None:
    assert experiment(Net) == experiment(own(Net)())
    assert experiment(made) == experiment(own(made)())
    assert experiment(own(Net)(width=4)) != experiment(Net)
    net = Net(10)
    held = experiment(net)
    assert held == experiment(Module(net))
    assert torch.equal(Federation(held).x0, flatten(net))
    assert Experiment.from_json(held.to_json()).fingerprint == held.fingerprint
    with torch.no_grad():
        net.head.bias.add_(1)
    assert experiment(net).fingerprint != held.fingerprint
    assert not torch.equal(Federation(held).x0, flatten(net))  # what was given is what it is
    net.head.bias.requires_grad_(False)
    assert experiment(net) != experiment(Net(10))
    with pytest.raises(Invalid, match="was in the memory of another process"):
        Federation(Experiment.from_json(held.to_json()))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: experiment(Needs), "model = Needs: width is missing"),
        (lambda: Module(3), "Module.net: is a int; must be an nn.Module"),
        (lambda: Federation(experiment(no_module)), "model = no_module: gives a int; must be an nn.Module"),
        (lambda: Federation(experiment(own(Net)(width="x"))), "model = Net: raises TypeError"),
        (lambda: change(experiment(Net), ["task.model=os:system"]), "model = 'os:system': must be a Model"),
        (lambda: change(experiment(Net), ["task.model=pathlib:Path"]), "must be a Model"),
        (lambda: change(experiment(Net), [f"task.model={__name__}:Net(depth=3)"]), "Net has no such field"),
        (lambda: Federation(experiment(Frozen(Net, ("body.*",)))), "Frozen.parts = 'body.*': fits no parameter"),
        (lambda: Federation(experiment(Frozen(Net, ("*",)))), "none of its 4 parameters is trained"),
        (lambda: Federation(experiment(own(Net)(norm=True))), "--set 'task.model=GroupNormed(module:name)'"),
        (lambda: Federation(experiment(MLP(), task=Task(Arrays({"a": np.eye(9), "b": np.eye(9)}, range(9)), MLP()))),
         "model = MLP: raises TypeError as it is built for inputs {'a': (9,), 'b': (9,)}"),
        (lambda: GPT(heads=3), "GPT.heads = 3"),
        (lambda: GPT().build((3, 4), 5), "GPT: inputs of shape (3, 4)"),
    ],
)  # fmt: skip
def test_bad_models_are_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(Invalid) as error:
        make()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- changed models
@pytest.mark.parametrize("privacy", [None, ExampleDP(clip=1.0, epsilon=8.0, delta=1e-3)])
def test_a_frozen_backbone_stays_and_its_head_learns(privacy: ExampleDP | None) -> None:
    e = experiment(Frozen(Net, ("features.*",)), privacy=privacy)
    fed = Federation(e)
    assert len(fed.x0) == 6 * 10 + 10
    before = dict(fed.model.named_parameters())
    after = same_on_both(e)
    assert torch.equal(after["features.0.weight"], before["features.0.weight"].detach())
    assert not torch.equal(after["head.weight"], before["head.weight"].detach())


def test_pretrained_numbers_with_a_new_head(tmp_path: Path) -> None:
    path = str(tmp_path / "net.pt")
    other = Net(3)
    torch.save(other.state_dict(), path)
    e = experiment(Pretrained(Net, path, leave=("head.*",)))
    assert torch.equal(Federation(e).x0[:120].view(6, 20), other.features[0].weight)  # type: ignore[arg-type]
    text = f"Frozen(Pretrained({__name__}:Net, '{path}', leave=['head.*']), ['features.*'])"
    assert len(Federation(change(e, [f"task.model={text}"])).x0) == 70
    for model, sentence in (
        (Pretrained(Net, path), r"head.weight is \(3, 6\), the model's \(10, 6\)"),
        (Pretrained(MLP(), path), "has no '1.weight'"),
        (Pretrained(Net, str(tmp_path / "no.pt")), "not a readable state_dict"),
    ):
        with pytest.raises(Invalid, match=sentence):
            Federation(experiment(model))
    torch.save({"a": Net(3)}, path)  # a whole module would run code
    with pytest.raises(Invalid, match="not a readable state_dict"):
        Federation(experiment(Pretrained(Net, path)))
    run(replace(experiment(MLP(4)), rounds=1), out=tmp_path / "run")
    again = Federation(experiment(Pretrained(MLP(4), str(tmp_path / "run" / "model.pt")))).x0
    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert torch.equal(again, torch.cat([value.flatten() for value in saved.values()]))


def test_group_norm_in_place_of_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, eps=0.1), nn.Flatten(), nn.BatchNorm1d(24))
    with torch.no_grad():
        net[1].weight.fill_(2.0)
    new = GroupNormed(Module(net), groups=4).build((1, 4, 4), 3)
    assert [type(m) for m in new] == [nn.Conv2d, nn.GroupNorm, nn.Flatten, nn.GroupNorm]
    assert (new[1].num_groups, new[1].eps, new[3].num_groups) == (3, 0.1, 4)
    assert (new[1].weight == 2).all()
    same_on_both(experiment(GroupNormed(own(Net)(norm=True, width=32), groups=2)))


# ---------------------------------------------------------------- text
T, V = 7, 9
TEXT: list[Model] = [
    GPT(width=8, layers=2, heads=2),
    GPT(width=8, layers=1, heads=4, places="last"),
    LSTM(width=6, layers=2, embedding=4),
    LSTM(width=6, layers=1, embedding=4, places="last"),
]


@pytest.mark.parametrize("model", TEXT, ids=repr)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_text_models_have_the_loop_s_gradients(model: Any, clip: float | None) -> None:
    torch.manual_seed(0)
    net = model.build((T,), V).double()
    x = torch.randint(0, V, (3, 4, T))
    y = torch.randint(0, V, (3, 4, T) if model.places == "all" else (3, 4))
    batch = Batch(x, y, torch.rand(3, 4, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = ClientGradients(net)(flatten(net), batch, clip=clip)
        loop = torch.stack([one_client(net, flatten(net), one, clip) for one in batch.each()])
    torch.testing.assert_close(rows, loop, rtol=1e-6, atol=1e-9)


def test_the_lstm_is_torch_s() -> None:
    torch.manual_seed(0)
    net: Any = LSTM(width=6, layers=2, embedding=4).build((T,), V).double()
    theirs = nn.LSTM(4, 6, 2, batch_first=True).double()
    with torch.no_grad():
        for i, cell in enumerate(net.cells):
            getattr(theirs, f"weight_ih_l{i}").copy_(cell.inp.weight)
            getattr(theirs, f"weight_hh_l{i}").copy_(cell.rec.weight)
            getattr(theirs, f"bias_ih_l{i}").copy_(cell.inp.bias)
            getattr(theirs, f"bias_hh_l{i}").zero_()
    x = torch.randint(0, V, (5, T))
    torch.testing.assert_close(net(x), net.head(theirs(net.token(x))[0]))
    assert LSTM(places="last").build((80,), 80)(x).shape == (5, 80)


def test_the_transformer_sees_no_later_place() -> None:
    torch.manual_seed(0)
    net: Any = GPT(width=8, layers=2, heads=2).build((T,), V).double()
    x = torch.randint(0, V, (2, T))
    later = x.clone()
    later[:, 4:] = (x[:, 4:] + 1) % V
    torch.testing.assert_close(net(x)[:, :4], net(later)[:, :4])
    assert not torch.allclose(net(x)[:, 4], net(later)[:, 4])
    block = net.blocks[0]
    z = torch.randn(2, T, 8, dtype=torch.float64)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.asked.weight)
        theirs.in_proj_bias.copy_(block.asked.bias)
        theirs.out_proj.load_state_dict(block.out.state_dict())
    n = block.norm1(z)
    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    half = z + theirs(n, n, n, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(block(z), half + block.down(nn.functional.gelu(block.up(block.norm2(half)))))


@pytest.mark.parametrize("model", TEXT, ids=repr)
def test_text_runs_on_both_engines(model: Any) -> None:
    tokens = np.random.default_rng(0).integers(0, V, (40, T + 1))
    y = tokens[:, 1:] if model.places == "all" else tokens[:, -1]
    e = experiment(Logistic(), rounds=2)
    same_on_both(replace(e, task=Task(Arrays(tokens[:, :-1], y), model)))


# ---------------------------------------------------------------- the benchmarks' networks
@pytest.mark.parametrize(
    ("layout", "shape", "classes", "d"),
    [
        ("leaf", (1, 28, 28), 62, 6_603_710),
        ("pfl", (3, 32, 32), 10, 1_626_442),
        ("niid", (3, 32, 32), 10, 62_006),
        ("niid", (1, 28, 28), 10, 44_426),
    ],
)
def test_the_networks_of_published_benchmarks(
    layout: Any, shape: tuple[int, ...], classes: int, d: int
) -> None:
    net = CNN(layout=layout).build(shape, classes)
    assert sum(p.numel() for p in net.parameters()) == d
    assert net(torch.zeros(2, *shape)).shape == (2, classes)
