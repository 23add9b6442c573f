"""A split is checked when it is dealt: nobody is without examples, and each is dealt once where that matters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.models import Logistic
from fedsim.privacy import CentralDP, ExampleDP, MessageDP
from fedsim.spec import Experiment
from fedsim.strategies import ByzClipSGD, Mean
from fedsim.task import Task
from fedsim.types import Dataset, Split

BASE = Experiment(
    task=Task(Blobs(train=100, test=20), Logistic()),
    method=ByzClipSGD(lr=0.1, tau=0.5),
    rule=Mean(),
    split=IID(),
    clients=3,
    rounds=2,
)


@dataclass(frozen=True)
class Own(Split):
    """Shards as they are given."""

    shards: tuple[tuple[float, ...], ...]

    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[np.ndarray]:
        return [
            np.array(shard, np.int64 if all(float(i).is_integer() for i in shard) else float)
            for shard in self.shards
        ]


GOOD = ((0.0, 1.0), (2.0,), (3.0, 4.0))


@pytest.mark.parametrize(
    ("shards", "sentence"),
    [
        (GOOD[:2], "deals to 2 clients, there are 3"),
        (((0.0,), (), (1.0,)), "client 1 gets"),
        (((0.0,), (1.5,), (2.0,)), "whole numbers"),
        (((0.0,), (100.0,), (2.0,)), "client 1 gets example 100"),
        (((0.0,), (-1.0,), (2.0,)), "client 1 gets example -1"),
    ],
)
def test_a_split_of_ones_own_is_checked(shards: tuple[tuple[float, ...], ...], sentence: str) -> None:
    Federation(replace(BASE, split=Own(GOOD)))
    with pytest.raises(Invalid, match=sentence):
        Federation(replace(BASE, split=Own(shards)))


@pytest.mark.parametrize("shards", [((0.0, 1.0), (1.0,), (2.0,)), ((0.0,) * 100, (1.0,), (2.0,))])
def test_an_example_dealt_twice_has_no_privacy_of_one_example(shards: tuple[tuple[float, ...], ...]) -> None:
    """Eight clients with the same examples printed epsilon = 2 for "one example"."""
    twice = replace(BASE, split=Own(shards))
    assert Federation(twice).sizes.tolist() == [len(shard) for shard in shards]
    for privacy in (ExampleDP(clip=1.0, noise=1.0), MessageDP(noise=1.0)):
        with pytest.raises(Invalid, match="privacy is for one example"):
            Federation(replace(twice, privacy=privacy))
    Federation(replace(twice, privacy=CentralDP(noise=1.0)))


def test_noise_that_would_repeat_is_refused() -> None:
    """Two draws of 2^32 and more would share a generator: counted before anything is drawn."""
    private = replace(BASE, privacy=ExampleDP(clip=1.0, noise=1.0), cohort=1)
    fed = Federation(private)
    for rounds, fine in ((2**32 // 3, True), (2**32 // 3 + 1, False)):
        fed.experiment = replace(private, rounds=rounds)
        if fine:
            fed._require_addresses()
        else:
            with pytest.raises(Invalid, match="two would be the same"):
                fed._require_addresses()
