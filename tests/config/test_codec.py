"""Experiments to dict, JSON, TOML and back; expressions and paths of a command line; fingerprints."""

from __future__ import annotations

import contextlib
import json
import sys
import tomllib
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsim.attacks import ALIE, IPM
from fedsim.batches import Fixed
from fedsim.check import Component, Invalid
from fedsim.config import catalog, codec
from fedsim.datasets.load import MNIST, Blobs
from fedsim.datasets.split import IID, Dirichlet
from fedsim.experiments.recipes import Comparison
from fedsim.experiments.resolve import change, resolve
from fedsim.models import MLP
from fedsim.privacy import ExampleDP, MessageDP
from fedsim.schedule import InverseTime, Milestones
from fedsim.spec import Experiment
from fedsim.strategies import NNM, ByzClip21SGD2M, Chain, HeavyBall, Krum, Mean, Median, TrimmedMean
from fedsim.strategies.kernels.base import TwoHookRule
from fedsim.task import Task
from fedsim.types import Rule

BASE = Experiment(
    task=Task(data=Blobs(), model=MLP(hidden=(8, 4))),
    split=Dirichlet(0.5),
    clients=20,
    byzantine=4,
    attack=ALIE(),
    rule=Chain(NNM(), Median()),
    method=ByzClip21SGD2M(lr=InverseTime(0.75, 50), tau=inf),
)

positive = st.floats(1e-6, 1e6)
methods = st.one_of(
    st.builds(ByzClip21SGD2M, lr=positive, tau=positive | st.just(inf), beta=st.floats(0.01, 1)),
    st.builds(
        HeavyBall, lr=st.builds(Milestones, positive, st.just((3, 7)), positive), momentum=st.floats(0, 0.99)
    ),
)
rules = st.sampled_from(
    [Mean(), Median(), Krum(), Chain(NNM(), TrimmedMean()), Chain(NNM(), NNM(), Median())]
)
privacies = st.none() | st.builds(ExampleDP, clip=positive, epsilon=positive, delta=st.floats(1e-9, 0.1))
experiments = st.builds(
    Experiment,
    task=st.just(BASE.task),
    split=st.sampled_from([IID(), Dirichlet(0.3)]),
    clients=st.integers(12, 40),
    byzantine=st.integers(1, 4),
    attack=st.sampled_from([None, ALIE(), ALIE(z=1.5), IPM(2.0)]),
    rule=rules,
    method=methods,
    privacy=privacies,
    batches=st.sampled_from([Fixed(4)]),
    seed=st.integers(0, 10**9),
)


@given(experiments)
def test_round_trips(e: Experiment) -> None:
    assert Experiment.from_dict(e.to_dict()) == e
    assert Experiment.from_json(e.to_json()) == e
    assert Experiment.from_dict(tomllib.loads(e.to_toml())) == e
    json.loads(e.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert Experiment.from_json(e.to_json()).fingerprint == e.fingerprint


@given(experiments, experiments)
def test_fingerprints_tell_experiments_apart(a: Experiment, b: Experiment) -> None:
    assert (a.fingerprint == b.fingerprint) == (a == b)


def test_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(BASE.to_toml())
    assert resolve(str(file)) == Comparison(BASE)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("rule=Mean", "rule", Mean()),
        ("rule=mean", "rule", Mean()),
        ("rule=Chain(NNM(), TrimmedMean)", "rule", Chain(NNM(), TrimmedMean())),
        ("rule=Krum(neighbours='n-f-1')", "rule", Krum(neighbours="n-f-1")),
        ("attack=ALIE(z=1.5)", "attack", ALIE(z=1.5)),
        ("attack=IPM(3)", "attack", IPM(3.0)),
        ("attack=none", "attack", None),
        ("method.tau=0.1", "method", ByzClip21SGD2M(lr=InverseTime(0.75, 50), tau=0.1)),
        ("method.lr=2", "method", ByzClip21SGD2M(lr=2.0, tau=inf)),
        ("method.lr=InverseTime(1, 10)", "method", ByzClip21SGD2M(lr=InverseTime(1, 10), tau=inf)),
        ("method=HeavyBall(lr=0.1)", "method", HeavyBall(lr=0.1)),
        ("task.data=mnist", "task", Task(data=MNIST(), model=MLP(hidden=(8, 4)))),
        ("task.model.hidden=(3, 2)", "task", Task(data=Blobs(), model=MLP(hidden=(3, 2)))),
        (
            "task.model.activation=relu",
            "task",
            Task(data=Blobs(), model=MLP(hidden=(8, 4), activation="relu")),
        ),
        ("privacy=MessageDP(epsilon=8, calibration=paper)", "privacy", None),
        ("seed=7", "seed", 7),
        ("dealt=honest", "dealt", "honest"),
        ("knowledge=own,honest,rule", "knowledge", ("own", "honest", "rule")),
    ],
)
def test_paths_and_expressions(text: str, field: str, value: object) -> None:
    if field == "privacy":
        changed = change(BASE, ["method.tau=1.0", text])
        assert changed.privacy == MessageDP(epsilon=8.0, calibration="paper")
    else:
        assert getattr(change(BASE, [text]), field) == value


def test_changes_are_made_at_once() -> None:
    """Half of these alone would not fit: 15 Byzantine clients need more than 20 in all."""
    changed = change(BASE, ["byzantine=15", "clients=60"])
    assert (changed.clients, changed.byzantine) == (60, 15)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rule=Medain", "rule = 'Medain': unknown; did you mean Median?"),
        ("rule=ALIE", "rule = 'ALIE': unknown"),
        ("rul=Mean", "rul: Experiment has no field 'rul'; did you mean rule?"),
        ("method.tua=1", "tua: ByzClip21SGD2M has no field 'tua'; did you mean tau?"),
        ("method.tau=-1", "ByzClip21SGD2M.tau = -1: must be from 1e-06 to 1e+06"),
        ("method.tau=abc", "ByzClip21SGD2M.tau = 'abc': must be a valid number"),
        ("method=HeavyBall", "HeavyBall: lr is missing"),
        ("attack=ALIE(zz=1)", "attack.zz: ALIE has no such field"),
        ("attack=ALIE(z=", "attack = 'ALIE(z=': allowed are names"),
        ("rule=nowhere:Rule", "rule = 'nowhere:Rule': cannot be imported (No module named 'nowhere')"),
        ("rule=.nowhere:Rule", "rule = '.nowhere:Rule'"),
        ("rule=test_codec:Theirs", "module 'test_codec' has no attribute 'Theirs'"),
        ("rule=os:system('x')", "rule = 'os:system': must be a Rule"),
        ("rule=fedsim.attacks:ALIE", "rule = 'fedsim.attacks:ALIE': must be a Rule"),
        ("attack=print('x')", "attack = 'print': unknown"),
        ("attack=__import__('os').system('x')", "attack = "),
        ("byzantine=10", "byzantine = 10: at most 9 of 20 clients"),
        ("f=10", "f = 10 with n = 20"),
        ("rule=Krum --set f=9", ""),
        ("cohort=21", "cohort = 21: at most the number of clients, 20"),
        ("privacy=MessageDP(epsilon=1)", "sends messages without a bound"),
        ("privacy=ExampleDP(clip=1, epsilon=0)", "ExampleDP.epsilon = 0: must be greater than 0"),
        ("privacy=ExampleDP(clip=1)", "give exactly one of the two"),
        ("knowledge=own", "needs the knowledge 'honest'"),
        ("seed", "allowed is PATH=VALUE"),
        ("seed.x=1", "seed = 0 has no fields"),
    ],
)
def test_bad_input_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(Invalid) as error:
        change(BASE, [text])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@given(
    st.sampled_from(["rule", "attack", "method", "method.tau", "task.model", "seed", "privacy"]),
    st.text(max_size=20),
)
def test_no_text_does_anything_but_set_or_refuse(path: str, text: str) -> None:
    with contextlib.suppress(Invalid):
        assert isinstance(change(BASE, [f"{path}={text}"]), Experiment)


def test_every_component_is_saved_under_its_own_name() -> None:
    for name, component in catalog.everything().items():
        assert catalog.place(component) == name
        assert catalog.find(name.lower(), "x", (Component,)) is component


@dataclass(frozen=True)
class Mine(TwoHookRule):
    """A user's own rule."""

    note: str = ""

    def reduce(self, block: Tensor, f: int) -> Tensor:
        return block[0]


def test_a_user_s_own_component_has_a_fingerprint_but_is_not_imported_from_a_file() -> None:
    own = replace(BASE, rule=Mine())
    assert own.fingerprint != BASE.fingerprint
    assert own.to_dict()["rule"]["name"] == f"{__name__}:Mine"
    for read in (
        lambda: Experiment.from_dict(own.to_dict()),
        lambda: Experiment.from_json(own.to_json()),
        lambda: Experiment.from_dict(own.to_dict() | {"rule": "nowhere:Rule"}),
    ):
        with pytest.raises(Invalid, match="unknown; allowed here are the components of fedsim itself"):
            read()
    assert "nowhere" not in sys.modules
    assert codec.encode(own)["attack"]["name"] == "ALIE"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("test_codec:Mine", Mine()),
        ("test_codec:Mine()", Mine()),
        ("test_codec:Mine(note='a:b')", Mine("a:b")),
        ("Chain(NNM(), test_codec:Mine('x'))", Chain(NNM(), Mine("x"))),
        ("fedsim.strategies:Krum", Krum()),
    ],
)
def test_who_names_a_component_of_one_s_own_gets_it(text: str, rule: Rule, tmp_path: Path) -> None:
    """On a command line and in a file of one's own."""
    changed = change(BASE, [f"rule={text}"])
    assert changed.rule == rule
    (tmp_path / "e.toml").write_text(changed.to_toml())
    assert resolve(str(tmp_path / "e.toml")).main == changed


def test_every_name_belongs_to_one_component() -> None:
    named = [(name, component) for kind in catalog.KINDS for name, component in catalog.names(kind).items()]
    assert len({name for name, _ in set(named)}) == len(set(named))
