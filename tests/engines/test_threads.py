"""The number of threads changes no answer, to the bit: of a rule, of noise, of a whole run.

All arithmetic runs on one of torch's threads, as torch splits products and sums by their number. What threads of
fedsim's own share is cut by the shape of the work alone.
"""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from rounding import on_threads
from test_parity import CASES, experiment
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim import attacks, strategies
from fedsim.attacks import ALIE
from fedsim.batches import Fixed
from fedsim.config import catalog
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.engines import vector
from fedsim.federation import Federation
from fedsim.machine.threads import allowed, each, one_thread
from fedsim.models import MLP
from fedsim.privacy import MessageDP
from fedsim.round import Server
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.states import States
from fedsim.strategies import FedSGD, Mean
from fedsim.strategies.kernels import columns
from fedsim.strategies.kernels.base import Stage
from fedsim.task import Task

pytestmark = on_threads
NUMBERS = [1, 2, 3]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that even toys have several."""
    monkeypatch.setattr(vector, "ALONE", 2**6)
    monkeypatch.setattr(vector, "CACHED", 2**8)
    monkeypatch.setattr(columns, "CACHED", 20 * 64)


class Watch(TorchDispatchMode):
    """Notes each operation of torch that may run on several threads."""

    def __init__(self) -> None:
        super().__init__()
        self.several, self.seen = set[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        if torch.get_num_threads() != 1:
            self.several.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("engine", ["vector", "loop"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_on_any_number_of_threads(case: str, engine: str) -> None:
    e = replace(experiment(*CASES[case]), rounds=2)
    results = []
    for threads in NUMBERS if engine == "vector" else [1, 3]:
        torch.set_num_threads(threads)
        with Watch() as watch:
            results.append(run(e, engine=engine, device="cpu"))
        assert torch.get_num_threads() == threads
        assert watch.seen > 100
        assert not watch.several
    first, *others = results
    for other in others:
        assert all(torch.equal(first.model[name], value) for name, value in other.model.items())
        columns_ = [name for name in first.frame if name not in ("seconds", "weights")]
        assert first.frame[columns_].equals(other.frame[columns_])


def large() -> Experiment:
    """Several shares of clients, several pieces of noise, blocks of columns."""
    return Experiment(
        task=Task(data=Blobs(features=200, train=4000), model=MLP(hidden=400), l2=1e-3),
        split=IID(),
        clients=40,
        rule=strategies.Chain(strategies.NNM(), strategies.Median()),
        method=strategies.ByzClip21SGD2M(lr=0.1, tau=1.0),
        privacy=MessageDP(noise=0.1),
        byzantine=8,
        attack=ALIE(),
        batches=Fixed(64),
        rounds=2,
    )


@pytest.mark.parametrize("mean", [False, True])
def test_a_large_run_is_the_same_on_any_number_of_threads(mean: bool) -> None:
    """As the pieces are cut; with the mean, where gradients, messages and noise are added up."""
    e = large()
    if mean:
        e = replace(e, rule=Mean(), byzantine=0, attack=None, method=FedSGD(lr=0.1), privacy=None)
    fed, models, shares = Federation(e), [], []
    for threads in NUMBERS:
        torch.set_num_threads(threads)
        shares.append(vector._shares(fed, np.arange(40), 0))
        models.append(run(e, device="cpu").model)
    assert len(shares[0]) > 1
    assert shares[0] == shares[1] == shares[2]
    assert all(torch.equal(models[0][name], value) for model in models[1:] for name, value in model.items())


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("mean", [False, True])
def test_two_shares_are_at_work_at_the_same_time(mean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = large()
    rule = Mean() if mean else cell.rule
    fed = Federation(replace(cell, rule=rule, byzantine=0, attack=None, clients=8, privacy=None), "cpu")
    ids, both = np.arange(8), Barrier(2)
    fed.batch(0, ids)
    prepare = fed.gradients.prepare

    def together(*args: Any) -> Any:
        both.wait(timeout=30)  # breaks where one waits for the other
        return prepare(*args)

    server = Server.start(fed)
    told, states = server.told(fed.experiment.method), States.start(fed.client_state(), 8, space=fed.space)
    vector.rows(fed, states.of(ids), told, 0, ids)  # the route of gradients is chosen
    monkeypatch.setattr(vector, "_shares", lambda fed, ids, round: [slice(0, 4), slice(4, 8)])
    monkeypatch.setattr(fed.gradients, "prepare", together)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        vector.rows(fed, states.of(ids), told, 0, ids)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("clients", [5, 40])
def test_noise_that_is_added_up_is_the_same_on_any_number_of_threads(clients: int) -> None:
    fed, sums = Federation(replace(large(), clients=40)), []
    for threads in NUMBERS:
        torch.set_num_threads(threads)
        zero = torch.zeros(1, fed.x0.numel())
        sums.append(fed.noisy(zero, "message", 0, np.arange(clients)))
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("n", [6, 25, 40])
@pytest.mark.parametrize("kind", ["rules", "mixers"])
def test_every_rule_and_mixer_is_the_same_on_any_number_of_threads(kind: str, n: int) -> None:
    """At a width of several blocks; n = 25 is where NNM + Median once moved by 8 %."""
    x = torch.randn(n, 79_510, generator=torch.Generator().manual_seed(n))
    for name in catalog.names(kind):
        part = instance(name)
        chained = kind == "rules" and isinstance(part, Stage)  # rules that remember stand alone
        for one in (part, strategies.Chain(strategies.NNM(), part)) if chained else (part,):
            f = min(2 if name == "SMEA" else n // 5, one.max_f(n))  # whose search would be long
            answers = []
            for threads in NUMBERS:
                torch.set_num_threads(threads)
                with Watch() as watch:
                    answers.append(one(x, f, generator=torch.Generator().manual_seed(0)))
                assert not watch.several, name
            assert all(torch.equal(answers[0], answer) for answer in answers[1:]), name


def instance(name: str) -> Any:
    """A component, of parameters without defaults 1.5; a chain of one mixer, a rule by layer."""
    if name == "Chain":
        return strategies.Chain(strategies.Bucketing(), strategies.TrimmedMean())
    if name == "PerLayer":
        return strategies.PerLayer(strategies.TrimmedMean(), sizes=(79_000, 510))
    found = getattr(strategies, name, None) or getattr(attacks, name)
    try:
        return found()
    except TypeError:
        return found(1.5)


def test_pieces_work_alone_and_what_they_start_uses_no_more() -> None:
    torch.set_num_threads(3)

    def work(i: int) -> tuple[int, int, list[int]]:
        inner = list(each(lambda _: torch.get_num_threads(), range(2)))
        return torch.get_num_threads(), allowed(), inner

    assert list(each(work, range(3))) == [(1, 1, [1, 1])] * 3
    assert list(each(work, range(1))) == [(1, 3, [1, 1])]  # here, with the others to spare
    with one_thread():
        assert torch.get_num_threads() == 1
        assert allowed() == 3
        assert list(each(work, range(3))) == [(1, 1, [1, 1])] * 3
    assert torch.get_num_threads() == allowed() == 3


def test_an_error_leaves_the_number_of_threads_as_it_was() -> None:
    torch.set_num_threads(3)
    with pytest.raises(ZeroDivisionError):
        list(each(lambda i: 1 / i, [0]))
    with pytest.raises(ZeroDivisionError), one_thread():
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 3
