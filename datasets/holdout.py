"""A validation set carved out of the training data, so that nothing is ever chosen on the test set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedsim.check import Chance, Natural
from fedsim.types import Data, Dataset


@dataclass(frozen=True)
class Holdout(Data):
    """`data` without its test set: a share of the training examples, drawn at random, is the test set instead.

    At least one example on either side; of N training examples round(share * N) are held out.
    """

    held_out: ClassVar[bool] = True

    data: Data
    share: Chance = 0.1
    seed: Natural = 0

    def load(self) -> Dataset:
        whole = self.data.load()
        total = len(whole.train)
        held = min(max(1, round(self.share * total)), total - 1)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))
        test, train = order[:held].sort().values, order[held:].sort().values
        return replace(
            whole,
            train=whole.train.part(train),
            test=whole.train.part(test),
            groups=None if whole.groups is None else whole.groups[train],
            test_groups=None if whole.groups is None else whole.groups[test],
        )
