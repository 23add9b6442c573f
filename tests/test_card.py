"""On an accelerator: every component answers what it answers on the CPU, and the host reads only what it must.

The accelerator is pretended (`card.py`). Components come from the catalogue, so a new one is covered as it stands.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import card as card_module
import numpy as np
import pytest
import torch
from card import CARD, Card
from torch import Tensor

from fedsim import engines, runner
from fedsim.asynchronous import Asynchronous
from fedsim.attacks import Adaptive, Mimic, WorstCase
from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.config import catalog
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID, Dirichlet
from fedsim.federation import Federation
from fedsim.messages import ByLayer, TopK
from fedsim.models import GPT, LSTM, MLP, Frozen, GroupNormed, Module, ResNet
from fedsim.privacy import ExampleDP, MessageDP, Quantile
from fedsim.runner import Result, drive
from fedsim.spec import Experiment
from fedsim.strategies import (
    EF21,
    NNM,
    ByzClip21SGD2M,
    ByzClipSGD,
    Chain,
    FedBN,
    FedSGD,
    Mean,
    Median,
    MoNNA,
    PerLayer,
    SignSGD,
    TrimmedMean,
)
from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.task import Task
from fedsim.types import Dataset, Examples

pytestmark = pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="minutes: FEDSIM_LONG=1 runs it")

# What the host reads, and why: anything else fails. For a "number" and a "shape" it waits, a "copy" moves a tensor.
MEANT = {
    "copy attacks/adaptive.py:damage_along.run": "a damage for each factor that is tried",
    "copy attacks/forecast.py:Forecast._reduced": "a damage for each factor that is tried",
    "copy attacks/forecast.py:_against": "inner products with what damage is measured by, once a round",
    "copy attacks/forecast.py:_measure": "inner products of the rows, a small matrix",
    "copy attacks/mimic.py:Mimic._look": "one place among the clients, whose ids the host has",
    "copy fedsim/machine/rowfile.py:_bytes": "clients' states, where they are saved",
    "copy fedsim/messages/coder.py:words": "the words of a payload, which go on the wire",
    "copy fedsim/messages/selection.py:RandK.decode": "a payload is read on the host",
    "copy fedsim/messages/selection.py:TopK.encode": "the places in a payload",
    "copy fedsim/recall.py:Recalled.influence": "a weight for each row, where it is recorded",
    "copy fedsim/record.py:Record._save_torch": "a checkpoint",
    "copy fedsim/runner.py:_result": "the model, once a run is over",
    "copy strategies/kernels/base.py:Stage.influence.measure": "a weight for each row, where it is recorded",
    "copy strategies/kernels/gram.py:Points._first_centre": "256 columns of the rows, sorted there",
    "copy strategies/kernels/gram.py:Points._sum": "inner products: rules are quicker on the host",
    "copy strategies/rules/recalling.py:FLDetector._suspects": "scores of clients: groups are told on the host",
    "number attacks/forecast.py:Path.through.straight": "whether the server moves rows on a line, once a round",
    "number attacks/hidden.py:Hidden.strength": "a length, once a round",
    "number attacks/hidden.py:MinMax.largest": "a factor, once a round",
    "number attacks/hidden.py:MinSum.largest": "a factor, once a round",
    "number attacks/mimic.py:Mimic.remember": "whom it copies, once a round",
    "number attacks/worst_case.py:WorstCase._climb": "whether there is a slope, once a step",
    "number attacks/worst_case.py:_slope": "a damage, once a step",
    "number attacks/worst_case.py:_worst": "a damage for each of some rows that are tried",
    "number fedsim/engines/vector.py:rows": "whether the mean is finite, once a round",
    "number fedsim/env.py:AtClients._require_weights": "whether an example weighs too much for the noise",
    "number fedsim/federation.py:Federation.add_gaussian_noise": "a deviation for each client: they may follow a clip",
    "number fedsim/gradients/batched.py:ClientGradients._choose": "whether a route is right, once a run",
    "number fedsim/gradients/layerwise.py:Layerwise.__call__": "who must be clipped anew: once where examples are",
    "number fedsim/gradients/reference.py:_mixed": "a check of the specification",
    "number fedsim/gradients/reference.py:_unseen": "a check of the specification",
    "number fedsim/messages/floats.py:NaturalCompression._rounded": "whether a number is next to the largest",
    "number fedsim/personal.py:_worth": "the classes of a client, where clients' own models are measured",
    "number fedsim/personal.py:personal_metrics": "metrics, where they are recorded",
    "number fedsim/recall.py:recalled": "how many rows count, once a round",
    "number fedsim/round.py:_clipped": "a metric, where it is recorded",
    "number fedsim/runner.py:_measure": "metrics, where they are recorded",
    "number fedsim/task.py:_Evaluation._piece": "two numbers for 2,000 examples",
    "number strategies/kernels/base.py:Stage.influence.measure": "whether rows are broken, where it is recorded",
    "number strategies/kernels/base.py:_mix": "which rows are left, where some are broken",
    "number strategies/kernels/base.py:_seed": "the seed of a random rule",
    "number strategies/kernels/columns.py:Rows.without_broken": "whether rows are left out, where some are broken",
    "number strategies/kernels/columns.py:finite": "whether rows are broken, once a block",
    "number strategies/kernels/gram.py:Points._equal": "whether two rows are equal, where they are near",
    "number strategies/methods/estimators.py:PAGE.estimate": "a coin that all share, and who has begun, once a round",
    "number strategies/methods/jaguar.py:JaguarSignSGD.client_step": "the places of a round's differences",
    "number strategies/methods/local_sgd.py:DualLocalSGD.step": "how many sent, once a round",
    "number strategies/methods/scion.py:DropMuon._on": "which layers move, once a round",
    "number strategies/rules/layers.py:PerLayer._parts": "whether rows are broken",
    "number strategies/rules/penalty.py:EDiT.remember": "who counts, once a round",
    "number strategies/rules/recalling.py:FLDetector._seen": "how many rounds it saw",
    "number strategies/rules/recalling.py:FLDetector.remember": "how many rounds it saw, and a mean, once a round",
    "number strategies/rules/recalling.py:FoolsGold.remember": "how many count, once a round",
    "number strategies/rules/recalling.py:FoolsGold.weights": "whether any counts, once a round",
    "number strategies/rules/weighted.py:Mean.__call__": "whether rows are broken",
    "shape attacks/data.py:Backdoor.poison": "how many examples get the patch",
    "shape fedsim/messages/selection.py:TopK.__call__": "the largest numbers, k of each message",
    "shape fedsim/messages/selection.py:TopK.encode": "the largest numbers of a message, which go on the wire",
    "shape fedsim/recall.py:recalled": "which rows count, once a round",
    "shape fedsim/types.py:Examples.part": "the examples of other classes than a backdoor's, once a run",
    "shape strategies/kernels/columns.py:Rows.without_broken": "which rows are left, where some are broken",
    "shape strategies/rules/recalling.py:FLDetector._suspects": "who has a full window of scores",
    "shape strategies/rules/recalling.py:FLDetector.remember": "the scores of those who are known",
    "shape strategies/rules/recalling.py:FoolsGold.weights": "whose weight is rounding",
}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    with Card().there(monkeypatch) as there:
        yield there


def check(card: Card) -> None:
    found = [read for read in map(" ".join, card.reads) if read not in MEANT]
    assert not found, f"read from the card, and not in MEANT: {', '.join(found)}"


# Small ones, and those whose parts are components.
KNOWN = {
    "Adaptive": Adaptive(grid=4),
    "ByLayer": ByLayer(TopK(0.3)),
    "Chain": Chain(NNM(), Median()),
    "FedBN": FedBN(lr=0.5, kept=("head",)),
    "Frozen": Frozen(MLP(hidden=(8, 8)), parts=("1.*",)),
    "GPT": GPT(width=8, layers=1, heads=2),
    "GroupNormed": GroupNormed(MLP(hidden=8)),
    "LSTM": LSTM(width=8),
    "Module": Module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 3))),
    "PerLayer": PerLayer(Median(), sizes=(100, 200)),
    "ResNet": ResNet(blocks=1, width=4, groups=2),
    "WorstCase": WorstCase(steps=1, grid=4),
}
ELSEWHERE = {"Pretrained"}  # reads a file, and is its model from there on


def instance(kind: str, name: str) -> Any:
    """A component by name; numbers that it does not choose itself are 0.5, counts 2."""
    if name in KNOWN:
        return KNOWN[name]
    cls = catalog.names(kind)[name]
    required = [f for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return cls(**{f.name: 2 if "Count" in str(f.type) or "Natural" in str(f.type) else 0.5 for f in required})


def names(kind: str) -> list[str]:
    """The components of a kind that work in rounds, without their common base."""
    base = catalog.KINDS[kind][1].partition(":")[2]
    known = {name: cls for name, cls in catalog.names(kind).items() if not issubclass(cls, Asynchronous)}
    return [name for name in known if name != base and name not in ELSEWHERE]


def of(kind: str) -> Any:
    return pytest.mark.parametrize("name", names(kind))


def close(card_s: Tensor, cpu_s: Tensor) -> None:
    """Both are float32, by other kernels: a choice may differ only where it does not matter."""
    assert card_s.shape == cpu_s.shape
    assert torch.allclose(card_s.cpu().double(), cpu_s.double(), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- rules and mixers
def rows(kind: str, n: int) -> Tensor:
    x = torch.randn(n, 300, generator=torch.Generator().manual_seed(n))
    if kind == "broken":
        x[1, 7] = torch.nan
    elif kind == "equal":
        x[n - 2] = x[0]
    elif kind == "far":
        x[n - 2 :] = 1e6 * x[n - 2 :]
    return x


@pytest.mark.parametrize(
    ("kind", "n"), [("normal", 9), ("normal", 35), ("broken", 9), ("equal", 9), ("far", 9)]
)
@of("rules")
def test_a_rule(card: Card, name: str, kind: str, n: int) -> None:
    x, rule = rows(kind, n), instance("rules", name)
    most = 1 if name == "SMEA" else 2  # whose search would be long
    behind = [Chain(NNM(), rule)] if isinstance(rule, TwoHookRule) else []
    for part in [rule, *behind]:
        f = min(most, part.max_f(n))
        previous = torch.full((300,), 0.1)
        want = part(x, f, previous=previous, generator=torch.Generator().manual_seed(1))
        there = x.to(CARD)
        got = part(there, f, previous=previous.to(CARD), generator=torch.Generator(CARD).manual_seed(1))
        assert got.device.type == CARD
        close(got, want)
        if hasattr(part, "influence"):
            weight = part.influence(there, f, generator=torch.Generator(CARD).manual_seed(1))
            close(weight, part.influence(x, f, generator=torch.Generator().manual_seed(1)))
    check(card)


@of("rules")
def test_a_rule_among_peers(card: Card, name: str) -> None:
    x, rule, received = rows("normal", 9), instance("rules", name), torch.ones(9, 9, dtype=torch.bool)
    f = min(2, rule.max_f(9))
    answers = rule.each(x.to(CARD), f, received, generator=torch.Generator(CARD).manual_seed(1))
    close(answers, rule.each(x, f, received, generator=torch.Generator().manual_seed(1)))
    check(card)


@pytest.mark.parametrize(
    ("kind", "n"), [("normal", 9), ("normal", 35), ("broken", 9), ("equal", 9), ("far", 9)]
)
@of("mixers")
def test_a_mixer(card: Card, name: str, kind: str, n: int) -> None:
    x, mixer = rows(kind, n), instance("mixers", name)
    want = mixer(x, 2, generator=torch.Generator().manual_seed(1))
    got = mixer(x.to(CARD), 2, generator=torch.Generator(CARD).manual_seed(1))
    assert got.device.type == CARD
    close(got, want)
    check(card)


# ---------------------------------------------------------------- runs
BASE = Experiment(
    task=Task(data=Blobs(train=300, test=60), model=MLP(hidden=8), l2=1e-3),
    split=Dirichlet(1.0),
    clients=5,
    byzantine=1,
    rule=Chain(NNM(), Median()),
    method=FedSGD(lr=0.3),
    knowledge=("own", "honest", "rule"),
    batches=Fixed(6),
    rounds=2,
    evaluate_every=1,
)
PRIVACY = {
    "none": None,
    "example": ExampleDP(clip=0.5, noise=0.3, delta=1e-4),
    "message": MessageDP(noise=0.3, delta=1e-4),
}


def on(device: str, e: Experiment, engine: str, dataset: Dataset | None = None) -> Result:
    fed = Federation(e, device, dataset)
    result: Result = engines.hosted(engine, fed, lambda ask: drive(fed, ask))
    return result


def agree(
    card: Card, patch: pytest.MonkeyPatch, e: Experiment, engine: str, dataset: Dataset | None = None
) -> None:
    """The host reads what it must; and without noise, which a card draws in its own way, both models are the same."""
    if e.privacy:
        on(CARD, replace(e, rounds=1), engine, dataset)
        patch.setattr(Federation, "normal", lambda self, z, keys: z.zero_())
    there, here = (on(device, e, engine, dataset) for device in (CARD, "cpu"))
    ours, truth = (torch.cat([value.flatten() for value in r.model.values()]) for r in (there, here))
    assert float((ours - truth).norm()) <= 1e-4 * float(truth.norm())
    assert np.allclose(there.frame["loss"], here.frame["loss"], rtol=1e-4)
    check(card)


both = pytest.mark.parametrize("engine", ["loop", "vector"])


@pytest.mark.parametrize(
    ("engine", "privacy"),
    [("vector", "none"), ("vector", "example"), ("vector", "message"), ("loop", "none"), ("loop", "message")],
)
@of("methods")
def test_a_method(card: Card, monkeypatch: pytest.MonkeyPatch, name: str, privacy: str, engine: str) -> None:
    method = instance("methods", name)
    try:
        agree(card, monkeypatch, replace(BASE, method=method, privacy=PRIVACY[privacy]), engine)
    except Invalid as error:
        if privacy == "none":
            raise
        pytest.skip(str(error))


@of("attacks")
def test_an_attack(card: Card, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In front of a rule without choices, as some attacks seek ties; also in the server's memory, and among peers."""
    e = replace(BASE, attack=instance("attacks", name), rule=TrimmedMean())
    agree(card, monkeypatch, e, "vector")
    if e.attack.poisons:
        agree(card, monkeypatch, e, "loop")
    else:
        agree(card, monkeypatch, replace(e, attacked="memory"), "vector")
        agree(card, monkeypatch, replace(e, method=MoNNA(lr=0.3)), "vector")


@both
@pytest.mark.parametrize("clip", [0.5, "Quantile", "by layer"])
@pytest.mark.parametrize("mean", [False, True])
@of("privacy")
def test_privacy(
    card: Card, monkeypatch: pytest.MonkeyPatch, name: str, clip: Any, mean: bool, engine: str
) -> None:
    """Kept messages and those that are added up."""
    options: dict[str, Any] = {"noise": 0.3, "delta": 1e-4}
    if name == "ExampleDP":
        options |= {
            "clip": Quantile(start=0.5) if clip == "Quantile" else 0.5,
            "by_layer": clip == "by layer",
        }
    elif clip != 0.5:
        pytest.skip("it has no clip of its own")
    e = replace(BASE, method=ByzClipSGD(lr=0.3, tau=0.3) if name != "ExampleDP" else BASE.method)
    if name == "RandomizedResponse":
        e = replace(e, method=SignSGD(lr=0.3))
    if mean or name == "CentralDP":
        e = replace(e, rule=Mean(), byzantine=0)
    agree(card, monkeypatch, replace(e, privacy=catalog.names("privacy")[name](**options)), engine)


@both
@of("batches")
def test_batches(card: Card, monkeypatch: pytest.MonkeyPatch, name: str, engine: str) -> None:
    options = {"Fixed": {"size": 6}, "Epochs": {"size": 6}, "Poisson": {"size": 6}}.get(name, {})
    batches = catalog.names("batches")[name](**options)
    agree(card, monkeypatch, replace(BASE, batches=batches, cohort=4), engine)


@both
def test_a_run_that_is_stopped_goes_on_from_its_checkpoint(
    card: Card, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str
) -> None:
    """With states of clients, in memory and in a file, and a server's memory, on the card as on the CPU."""
    monkeypatch.setattr(runner, "SAVE_SECONDS", 0.0)
    method = ByzClip21SGD2M(lr=0.3, tau=0.3)
    e = replace(BASE, method=method, rounds=4, cohort=4, rule=TrimmedMean(), attack=Mimic(warmup=2))

    def stop(round: int, metrics: Any) -> None:
        if round == 2:
            raise KeyboardInterrupt

    whole = runner.run(e, engine=engine, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        runner.run(e, engine=engine, device=CARD, out=tmp_path, progress=stop)
    rest = runner.run(e, engine=engine, device=CARD, out=tmp_path, resume=True)
    for name, value in whole.model.items():
        close(rest.model[name], value)
    check(card)


PLACES = {"compressors": "up", "estimators": "estimator", "moves": "move"}  # fields of EF21


@both
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (*PLACES, "coders") for name in names(kind)]
)
def test_a_part_of_a_message(
    card: Card, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, engine: str
) -> None:
    part = instance(kind, name)
    method = EF21(**({"up": TopK(0.2, part)} if kind == "coders" else {PLACES[kind]: part}))
    agree(card, monkeypatch, replace(BASE, method=method), engine)


def dataset(x: Tensor, y: Tensor, classes: int = 3) -> Dataset:
    return Dataset(Examples(x, y), Examples(x[:4], y[:4]), classes)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


Y, TOKENS = torch.arange(6) % 3, torch.arange(42).view(6, 7) % 3
INPUTS = {  # a model takes those that it can
    "features": dataset(numbers(6, 20), Y),
    "grey": dataset(numbers(6, 1, 28, 28), Y),
    "colour": dataset(numbers(6, 3, 32, 32), Y),
    "windows": dataset(TOKENS, TOKENS),
}


@pytest.mark.parametrize(("engine", "privacy"), [("vector", "none"), ("vector", "example"), ("loop", "none")])
@of("models")
def test_a_model(card: Card, monkeypatch: pytest.MonkeyPatch, name: str, privacy: str, engine: str) -> None:
    task, taken = Task(data=Blobs(), model=instance("models", name)), 0
    e = replace(BASE, task=task, privacy=PRIVACY[privacy], clients=3, byzantine=0, f=1, rule=Mean())
    e = replace(e, rounds=1, split=IID(), batches=Fixed(2))
    for inputs in INPUTS.values():
        try:
            Federation(e, dataset=inputs)
        except Exception:
            continue
        taken += 1
        agree(card, monkeypatch, e, engine, inputs)
    assert taken


@both
@of("losses")
def test_a_loss(card: Card, monkeypatch: pytest.MonkeyPatch, name: str, engine: str) -> None:
    classes = name == "CrossEntropy"
    y = torch.arange(200) % (3 if classes else 2)
    inputs = dataset(numbers(200, 20), y if classes else y.float(), 3 if classes else 0)
    task = Task(data=Blobs(), model=MLP(hidden=8), loss=instance("losses", name))
    agree(card, monkeypatch, replace(BASE, task=task, split=IID()), engine, inputs)


# ---------------------------------------------------------------- what it would find
class OnTheCpu(TwoHookRule):
    def reduce(self, block: Tensor, f: int) -> Tensor:
        return block.mean(0) + torch.zeros(block.shape[1])


class HiddenItem(TwoHookRule):
    def reduce(self, block: Tensor, f: int) -> Tensor:
        return block.mean(0) * block.max().item()


class HiddenNumpy(TwoHookRule):
    def reduce(self, block: Tensor, f: int) -> Tensor:
        return torch.from_numpy(np.median(block.numpy(), axis=0)).to(block)


class HiddenCopy(TwoHookRule):
    def reduce(self, block: Tensor, f: int) -> Tensor:
        return block.cpu().median(0).values.to(block.device)


class HiddenBranch(TwoHookRule):
    def reduce(self, block: Tensor, f: int) -> Tensor:
        return block[0] if (block > 0).any() else block[1]


class HiddenMask(TwoHookRule):
    def reduce(self, block: Tensor, f: int) -> Tensor:
        block[block < 0] = 0
        return block[0]


class HostChance(TwoHookRule):
    def reduce(self, block: Tensor, f: int) -> Tensor:
        return block[0] + torch.randn(block.shape[1], generator=torch.Generator(block.device)).to(block)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (OnTheCpu, "two devices"),
        (HiddenItem, "number tests"),
        (HiddenNumpy, "numpy"),
        (HiddenCopy, "copy tests"),
        (HiddenBranch, "number tests"),
        (HiddenMask, "shape tests"),
        (HostChance, "a generator of the device"),
    ],
)
def test_planted_faults_are_found(
    card: Card, monkeypatch: pytest.MonkeyPatch, rule: type[TwoHookRule], found: str
) -> None:
    monkeypatch.setattr(card_module, "PRODUCT", (*card_module.PRODUCT, __file__))
    for n in (9, 35):
        rule()(rows("normal", n), 2)  # on the CPU none is a fault
        with pytest.raises((RuntimeError, TypeError, AssertionError), match=found):  # noqa: PT012
            rule()(rows("normal", n).to(CARD), 2)
            check(card)
        card.reads.clear()


def test_what_is_meant_is_there() -> None:
    """Each entry names a function of fedsim, so none outlives its code."""
    for read in MEANT:
        file, _, name = read.partition(" ")[2].partition(":")
        folder = "fedsim." if not file.startswith("fedsim/") else ""
        found: Any = import_module(
            folder + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        )
        for part in name.split("."):
            if isinstance(found, FunctionType):  # what is defined or written in it has no name outside
                assert f"def {part}(" in inspect.getsource(found), read
                break
            found = inspect.getattr_static(found, part)
            found = getattr(found, "__wrapped__", getattr(found, "fget", found))
