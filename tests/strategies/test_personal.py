"""Models of clients' own: Ditto, FedPer and FedBN, and what is recorded of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transcribed import Client, Normed, after, close, experiment, fedavg, rounds, weights

from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.federation import Federation
from fedsim.models import MLP, Frozen, Logistic
from fedsim.runner import run
from fedsim.strategies import (
    Ditto,
    FedAvg,
    FedBN,
    FedPer,
)
from fedsim.task import Task


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_ditto_keeps_a_model_of_each_client(engine: str) -> None:
    """v_i <- v_i - lr (grad f_i(v_i) + pull (v_i - x)), with the x that was broadcast."""
    m = Ditto(lr=0.2, local_steps=2, personal_steps=3, pull=0.7)
    e = experiment(m)
    fed, played = rounds(e)
    x, own = fed.x0, dict.fromkeys(range(e.clients), fed.x0)
    for clients in played:
        ys = []
        for c in clients:
            ys.append(fedavg(c, x, m.lr, 2))
            for k in range(2, 5):
                own[c.i] = own[c.i] - m.lr * (c.grad(own[c.i], k) + m.pull * (own[c.i] - x))
        x = sum(p * y for p, y in zip(weights(clients), ys, strict=True))
    server, personal = after(e, engine)
    close(server, x)
    close(personal, torch.stack([own[i] for i in range(e.clients)]))


@pytest.mark.parametrize(
    "method", [FedPer(lr=0.2), FedBN(lr=0.2), FedPer(lr=0.2, kept=("0.*", "1.bias"))], ids=repr
)
@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_what_is_kept_is_trained_and_never_sent(method: FedPer, engine: str) -> None:
    """A client uses the server's shared part and its own kept one, which the plain algorithm has as well."""
    e = experiment(method)
    fed, played = rounds(e)
    layout = fed.layout.trained
    kept = layout.chosen(method.kept)
    names = {"head": {"3.weight", "3.bias"}, "norm": {"1.weight", "1.bias"}}
    wanted = names.get(method.kept[0], {"0.weight", "0.bias", "1.bias"})
    assert {b.name for b, k in zip(layout.blocks, kept.split(layout.sizes), strict=True) if k.all()} == wanted
    assert fed.width == int((~kept).sum()) == len(kept) - int(kept.sum())
    x, own = fed.x0, dict.fromkeys(range(e.clients), fed.x0)
    for clients in played:
        for c in clients:
            own[c.i] = fedavg(c, torch.where(kept, own[c.i], x), method.lr, method.local_steps)
        mean = sum(p * own[c.i] for p, c in zip(weights(clients), clients, strict=True))
        x = torch.where(kept, x, mean)
    server, personal = after(e, engine)
    close(server, x)
    assert torch.equal(server[kept], fed.x0[kept])
    close(personal, torch.stack([torch.where(kept, own[i], x) for i in range(e.clients)]))
    asked = {c.i for t in range(e.rounds) for c in [*(Client(fed, t, i) for i in fed.cohort(t).tolist())]}
    moved = {i for i in range(e.clients) if not torch.equal(personal[i][kept], fed.x0[kept])}
    assert moved == asked


def test_a_frozen_part_is_neither_sent_nor_kept() -> None:
    """What is trained and what is shared are two things: here the first layer is neither, the head is trained alone."""
    e = experiment(
        FedPer(lr=0.2), task=Task(data=Blobs(features=5, classes=3), model=Frozen(Normed(), ("0.*",)))
    )
    fed = Federation(e)
    names = [b.name for b in fed.layout.trained.blocks]
    assert names == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert (fed.layout.trained.width, fed.width) == (33, 12)
    result = run(e)
    for name, value in fed.model.named_parameters():
        assert torch.equal(result.model[name], value) == (not name.startswith("1."))


def test_a_model_of_which_nothing_or_all_is_kept_is_refused() -> None:
    for kept, said in ((("nothing",), "keeps 0 of"), (("*",), "keeps 69 of 69 numbers")):
        with pytest.raises(Invalid, match=said):
            Federation(experiment(FedPer(lr=0.1, kept=kept)))
    with pytest.raises(Invalid, match=r"FedBN\.kept = \['norm'\]: keeps 0 of"):
        Federation(experiment(FedBN(lr=0.1), task=Task(data=Blobs(), model=Logistic())))


def test_own_models_are_worth_more_on_one_s_own_classes() -> None:
    """Clients of one class or two: a head of one's own beats FedAvg's model, which records none of this."""
    e = experiment(
        FedPer(lr=0.3, local_steps=5),
        task=Task(data=Blobs(features=4, classes=5), model=MLP(hidden=6)),
        split=Dirichlet(0.1),
        rounds=10,
        evaluate_every=10,
        cohort=None,
    )
    last = run(e).frame.iloc[-1]
    average = run(replace(e, method=FedAvg(lr=0.3, local_steps=5))).frame
    assert last["personal_accuracy"] > float(average["accuracy"].iloc[-1])
    assert last["personal_accuracy_worst"] <= last["personal_accuracy"] <= 1
    assert not [name for name in average if name.startswith("personal")]


def test_a_personal_metric_is_the_accuracy_on_the_client_s_own_mix() -> None:
    e = experiment(Ditto(lr=0.2, local_steps=1, personal_steps=2), cohort=None)
    fed, models = Federation(e), after(e, "loop")[1].float()
    found = []
    assert isinstance(fed.test.x, Tensor)
    for i, model in enumerate(models):
        views = dict(zip([b.name for b in fed.layout.blocks], fed.layout.views(model), strict=True))
        right = torch.func.functional_call(fed.model, views, (fed.test.x,)).argmax(1) == fed.test.y
        own = fed.train.y[fed.starts[i] : fed.starts[i] + fed.sizes[i]]
        share = [float((own == c).double().mean()) for c in range(3)]
        by_class = [float(right[fed.test.y == c].double().mean()) for c in range(3)]
        found.append(sum(s * a for s, a in zip(share, by_class, strict=True)))
    last = run(e, engine="loop").frame.iloc[-1]
    assert last["personal_accuracy"] == pytest.approx(np.mean(found), abs=1e-6)
    assert last["personal_accuracy_worst"] == pytest.approx(min(found), abs=1e-6)
