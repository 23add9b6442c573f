"""Runs with a canary: one client's training many times over, in one of two worlds each, and an adversary who looks on.

Each run is a row of the vector engine: a client and a model of its own, the same data but for one example (the canary),
noise of its own. The adversary knows everything but the world, and all that the accountant lets it know.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.check import Invalid
from fedsim.engines.vector import Clients
from fedsim.env import AtServer
from fedsim.experiments.audit.bounds import Floats
from fedsim.federation import Federation, Ids, deal
from fedsim.gradients import Clip
from fedsim.keys import Keys
from fedsim.layout import clip_
from fedsim.privacy import MessageDP
from fedsim.privacy.ledger import Ledger
from fedsim.spec import Experiment
from fedsim.strategies import Mean
from fedsim.types import Batch, Dataset, Examples, State, on_inputs

NUMBERS = 1 << 24  # at work at a time
FAR = 1e4  # how far out a canary gradient lies where a message is clipped: beyond any bound


class Shadows(Federation):
    """As many runs of a recipe's smallest client, each a client of its own; its last example is the canary's place.

    The ledger books the noise that is calibrated for the whole recipe; what is drawn is `noise_factor` times that.
    """

    def __init__(
        self, recipe: Experiment, runs: int, noise_factor: float, device: str, dataset: Dataset | None
    ) -> None:
        dataset = dataset or recipe.task.data.load()
        self.noise_factor = noise_factor
        shards = deal(recipe, dataset, Keys(recipe.seed, recipe.clients))
        self.shard = min((shard for shard in shards if len(shard)), key=len)
        if (
            recipe.batches.sampling == "fixed"
        ):  # others that are all alike hide no canary behind the luck of the draw
            self.shard = np.append(np.full(len(self.shard) - 1, self.shard[0]), self.shard[-1])
        super().__init__(_alone(recipe, runs, Federation(recipe, device, dataset).ledger), device, dataset)
        self.sizes, self.starts = np.full(runs, len(self.shard)), np.zeros(runs, np.int64)
        self.canaries = self._canaries()

    def watch(self, coins: Tensor, rounds: int) -> Floats:
        """The adversary's scores (runs,) after so many rounds; `coins` (runs,) are the worlds."""
        size = max(1, NUMBERS // max(len(self.shard) * _numbers(self.train), self.x0.numel()))
        chunks = np.split(np.arange(len(coins)), range(size, len(coins), size))
        return np.concatenate([self._watch(ids, coins[ids[0] : ids[-1] + 1], rounds) for ids in chunks])

    def normal(self, z: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        return super().normal(z, keys).mul_(self.noise_factor)

    def _deal(self, dataset: Dataset) -> list[Ids]:
        return [self.shard, *(np.zeros(0, np.int64) for _ in range(self.experiment.clients - 1))]

    def _watch(self, ids: Ids, coins: Tensor, rounds: int) -> Floats:
        method, k = self.experiment.method, len(ids)
        states = {name: v.expand(k, *v.shape).clone() for name, v in method.client_init(self.x0).items()}
        server: State = {**method.server_init(self.x0, k), "x": self.x0.expand(k, -1).clone()}
        scores = torch.zeros(k, dtype=torch.float64, device=self.device)
        for round in range(rounds):
            told = {name: server[name] for name in (method.sends, *method.tells)}
            batch = self.batch(round, ids)
            env = Witness(self, ids, round, states, told, batch, coins, scores)
            states, rows = method.client_step(states, env.x, batch, env)
            states |= env.kept
            server, seen = method.receive(server, rows, torch.arange(k, device=self.device))
            server = method.step(server, seen, AtServer(self, round))
        return scores.cpu().numpy()

    def _canaries(self) -> Batch:
        """Of some scaled examples of the data, the two (2, 1, ...) whose clipped gradients at x0 lie furthest apart."""
        few, labels = self.train.part(slice(0, 2)), self.train.y[:4]
        if self.classes and labels.dim() == 1:
            labels = torch.arange(min(self.classes, 4), device=self.device)

        def scaled(x: Tensor) -> Tensor:
            factors = (
                (1.0, -1.0, 30.0, -30.0) if x.is_floating_point() else (1, 1, 1, 1)
            )  # words are no numbers
            return (
                torch.cat([x * factor for factor in factors]).repeat_interleave(len(labels), 0).unsqueeze(1)
            )

        y = labels.repeat(4 * len(few), *[1] * (labels.dim() - 1)).unsqueeze(1)
        each = Batch(on_inputs(scaled, few.x), y, self.x0.new_ones(len(y), 1))
        privacy = self.example_privacy
        clip = None if privacy is None else Clip(privacy.bound(0), privacy.by_layer)
        rows = self.gradients(self.x0, each, clip=clip)
        pair = divmod(int(torch.cdist(rows, rows).argmax()), len(y))
        return each.part(torch.tensor(pair, device=self.device))


def _numbers(examples: Examples) -> int:
    """In the inputs of one example."""
    x = examples.part(slice(0, 1)).x
    return sum(
        t.numel() for t in (x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else (x,))
    )


def _beside(one: Batch, other: Batch) -> Batch:
    """The examples of both, client by client."""

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 1)

    return replace(
        one, x=on_inputs(both, one.x, other.x), y=both(one.y, other.y), weight=both(one.weight, other.weight)
    )


def _alone(recipe: Experiment, runs: int, ledger: Ledger | None) -> Experiment:
    """The recipe with as many clients as runs, nobody else, and noise as the recipe's ledger has it."""
    assert ledger is not None
    exact = {"calibration": "exact"} if isinstance(recipe.privacy, MessageDP) else {}
    noise: dict[str, Any] = {"epsilon": None, "noise": ledger.multiplier, "stop_at_epsilon": None, **exact}
    everyone: dict[str, Any] = {"clients": runs, "byzantine": 0, "f": None, "cohort": None, "dealt": "all"}
    return replace(recipe, privacy=replace(ledger.privacy, **noise), attack=None, rule=Mean(), **everyone)


class Witness(Clients):
    """What clients have at hand in a round (`Env`), with the canary put in and the adversary looking on.

    Example-level: the last example of the data is the first canary (tails) or the second (heads); where neighbours have
    one example more or less, it is missing (tails) or there. Message-level: all gradients point one way or the other.
    """

    def __init__(
        self,
        fed: Shadows,
        ids: Ids,
        round: int,
        state: State,
        told: State,
        batch: Batch,
        coins: Tensor,
        scores: Tensor,
    ) -> None:
        super().__init__(fed, ids, round, state, told, batch)
        self.shadows, self.coins, self.scores = fed, coins, scores
        batches, steps, sizes = fed.experiment.batches, fed.experiment.method.steps, fed.sizes[ids]
        index, weight = batches.draw(fed.choice, round, ids, sizes, steps)
        drawn = torch.from_numpy((index == len(fed.shard) - 1) & (weight > 0)).to(fed.device)
        self.drawn = drawn.chunk(steps, 1)  # where the canary is, in each step
        privacy = fed.experiment.privacy
        assert privacy is not None
        self.sampling = (
            "none" if privacy.accountant == "exact" else batches.sampling
        )  # what is booked as secret
        if self.sampling != "none" and fed.experiment.method.gradients > 1:
            raise Invalid(
                f"audit: {type(fed.experiment.method).__name__} takes several gradients of one batch, whose draw is "
                "secret to all of them at once; allowed is batches = Full()"
            )
        self.chance = batches.chance(len(fed.shard)) if self.sampling != "none" else 1.0
        self.one = float(1 / batches.expected(sizes[:1])[0])  # the weight of an example
        self.variance = fed.deviation(round, ids).double() ** 2

    def grad(self, x: Tensor, batch: Batch, tau: float = inf) -> Tensor:
        if self.mechanism is None:
            return clip_(torch.where(self.coins[:, None], FAR, -FAR).float().repeat(1, x.shape[-1]), tau)
        drawn = self.drawn[batch.step]
        others = replace(batch, weight=batch.weight.masked_fill(drawn, 0))
        here = drawn.any(1).float() * self.one
        there = here * self.coins if self.sampling == "poisson" else here
        canary = self._canary(self.coins.long(), there)
        bound = self.mechanism.bound  # which the gradients may move
        rows = super().grad(x, _beside(others, canary))
        released = rows - self.fed.regularise(torch.zeros_like(rows), x)
        self.scores += self._ratio(released, x, others, here, Clip(bound, self.mechanism.privacy.by_layer))
        return clip_(rows, tau)

    def noisy(self, message: Tensor) -> Tensor:
        sent = super().noisy(message)
        if self.shadows.message_privacy is not None:
            self.scores += sent.double().sum(1) / self.variance
        return sent

    def _canary(self, which: Tensor, weight: Tensor) -> Batch:
        """The canary that `which` (k,) names, at weight (k,), as batches (k, 1, ...)."""
        return replace(self.shadows.canaries.part(which), weight=weight[:, None])

    def _ratio(self, released: Tensor, x: Tensor, others: Batch, here: Tensor, clip: Clip) -> Tensor:
        """ln P(released | heads) - ln P(released | tails), (k,), to one who knows all that the accountant allows.

        Where sampling amplifies, whether the canary was drawn is not among it. In a batch of fixed size it comes in the
        place of another example, of which there is one kind only.
        """
        fed, instead = self.shadows, 0.0
        drawn, absent = torch.full_like(here, self.one), torch.zeros_like(here)
        weights = {"none": (here, here), "poisson": (absent, drawn), "fixed": (drawn, drawn)}[self.sampling]
        if self.sampling == "fixed":
            first = fed.train.part(torch.zeros(len(here), 1, dtype=torch.int64, device=here.device))
            others = Batch(first.x, first.y, torch.ones_like(here)[:, None])
            instead = self.one
        base, variance = fed.gradients(x, others, clip=clip), self.variance * clip.bound**2
        logs = []
        for which, weight in enumerate(weights):
            canary = self._canary(torch.full_like(self.coins, which, dtype=torch.int64), weight)
            move = (fed.gradients(x, canary, clip=clip) - instead * base).double()
            odds = ((released - base) * move - move**2 / 2).sum(1) / variance
            logs.append(torch.logaddexp(odds.new_tensor(1 - self.chance).log(), odds + np.log(self.chance)))
        return logs[1] - logs[0]
