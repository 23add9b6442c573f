"""The training examples dealt to clients: what data and a split must keep to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.check import Invalid
from fedsim.keys import Keys
from fedsim.metrics import About
from fedsim.spec import Experiment
from fedsim.types import Dataset, Examples, Inputs, on_inputs

Ids = NDArray[np.int64]


def deal(experiment: Experiment, dataset: Dataset, keys: Keys) -> list[Ids]:
    """A shard for each client; Byzantine clients hold none where only honest ones are dealt to.

    Raises `Invalid` where a split leaves a client without examples, names one that is not there, or deals one twice
    where privacy is for one example.
    """
    owners = experiment.clients if experiment.dealt == "all" else experiment.honest
    total, name = len(dataset.train), type(experiment.split).__name__
    if owners > total:
        raise Invalid(
            f"clients = {owners} who hold data: at most one for each of the {total} training examples"
        )
    shards = experiment.split.deal(dataset, owners, keys.numpy("split"))
    if len(shards) != owners:
        raise Invalid(f"split = {name}: deals to {len(shards)} clients, there are {owners} who hold data")
    dealt = [_indices(shard, client, total, name) for client, shard in enumerate(shards)]
    if experiment.privacy is not None and experiment.privacy.level != "central":
        _require_once(dealt, total, name)
    return [*dealt, *(np.zeros(0, np.int64) for _ in range(experiment.clients - owners))]


def tested(dataset: Dataset, shards: list[Ids], honest: int) -> About:
    """What the test examples have to do with those that were dealt."""
    labels, held = dataset.train.y, [shard for shard in shards[:honest] if len(shard)]
    shares = None
    if dataset.classes and labels.dim() == 1 and not labels.is_floating_point():
        who = np.repeat(np.arange(len(held)), [len(shard) for shard in held])
        pairs = who * dataset.classes + labels.numpy()[np.concatenate(held)]
        counts = np.bincount(pairs, minlength=len(held) * dataset.classes).reshape(len(held), -1)
        shares = torch.from_numpy(counts / counts.sum(1, keepdims=True))
    return About(dataset.test_groups, _holders(dataset, shards, honest), shares)


def _holders(dataset: Dataset, shards: list[Ids], honest: int) -> Tensor | None:
    """The honest client that holds the training examples of each test example's owner; None where several hold them."""
    if dataset.groups is None or dataset.test_groups is None:
        return None
    owners, theirs = dataset.groups.numpy()[np.concatenate(shards)], dataset.test_groups
    who = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    holder = np.full(1 + int(max(owners.max(), theirs.max())), -1)
    holder[owners] = who
    if (holder[owners] != who).any():
        return None
    return torch.from_numpy(np.where(holder < honest, holder, -1))[theirs]


def _indices(shard: object, client: int, total: int, name: str) -> Ids:
    """A client's shard as indices of training examples."""
    found = np.asarray(shard)
    if found.ndim != 1 or not len(found):
        raise Invalid(
            f"split = {name}: client {client} gets {found.shape} indices; must be one or more, in a row"
        )
    if found.dtype.kind not in "iu":
        raise Invalid(
            f"split = {name}: client {client} gets indices of type {found.dtype}; must be whole numbers"
        )
    beyond = found[(found < 0) | (found >= total)]
    if len(beyond):
        raise Invalid(
            f"split = {name}: client {client} gets example {beyond[0]}; allowed are those from 0 to {total - 1}"
        )
    return found.astype(np.int64)


def _require_once(dealt: list[Ids], total: int, name: str) -> None:
    """Raise `Invalid` where an example lies with two clients, or twice with one: "one example" is then several."""
    every = np.concatenate(dealt)
    counts = np.bincount(every, minlength=total)
    if counts.max() > 1:
        example = int(counts.argmax())
        holders = [client for client, shard in enumerate(dealt) if (shard == example).any()]
        raise Invalid(
            f"split = {name}: deals example {example} {counts[example]} times (clients {holders[:3]}), and privacy is "
            "for one example; allowed is each example once, or no privacy"
        )


def require_alike(part: str, some: Examples) -> None:
    """Raise `Invalid` where inputs and labels are not as many."""

    def look(x: Tensor) -> Tensor:
        if len(x) != len(some.y):
            raise Invalid(f"data: {len(x)} {part} inputs x and {len(some.y)} labels y; must be as many")
        return x

    on_inputs(look, some.x)


def require_finite(inputs: Inputs) -> None:
    """Raise `Invalid` for inputs that no clip can bound."""

    def look(x: Tensor) -> Tensor:
        if not x.sum().isfinite() and not x.isfinite().all():
            first = int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
            raise Invalid(f"data: training example {first} holds NaN or Inf; allowed are finite inputs")
        return x

    on_inputs(look, inputs)
