"""Clients of one federation that are each a run of its own: the same data but for one example, the canary.

All go through the real drawing, weighting, engine and clip; their models are those of a few clients that nobody judges,
so that given these the runs are independent. What is drawn, clipped and noised is looked at where it happens.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.dealing import deal
from fedsim.engines import vector
from fedsim.env import AtServer
from fedsim.experiments.audit.canary import Placed, candidates, furthest, numbers
from fedsim.experiments.audit.releases import Evidence
from fedsim.federation import Federation, Ids
from fedsim.gradients import ClientGradients, Clip
from fedsim.gradients.fallback import Known
from fedsim.gradients.layers import Ready
from fedsim.keys import Keys
from fedsim.layout import norms
from fedsim.machine.threads import one_thread
from fedsim.privacy import MessageDP
from fedsim.privacy.ledger import Ledger
from fedsim.spec import Experiment
from fedsim.strategies import Mean
from fedsim.types import Batch, Dataset, Examples, Round, State, on_inputs

NUMBERS = 1 << 22  # at work at a time
FAR = 1e4  # how far out a gradient lies where the message is clipped: beyond any bound
GUIDES = 8  # clients whose messages move the model
CHECKED = 4  # clients of a chunk whose whole batch is computed in both worlds


class Watched(ClientGradients):
    """The gradients of clients, and beside them what the canary moves."""

    fed: Shadows

    def prepare(self, x: Tensor, batch: Batch, clip: Clip | None = None) -> Ready:
        if not isinstance(batch, Placed):
            return super().prepare(x, batch, clip)
        if clip is None:  # message-level: all gradients point one way or the other
            far = torch.where(self.fed.coins[self.fed.of(batch)][:, None], FAR, -FAR)
            return Known(far.to(x).repeat(1, x.shape[-1]))
        self.fed.note(x, batch, clip)
        return super().prepare(x, batch, clip)


class Shadows(Federation):
    """As many runs of a recipe's smallest client, each a client of its own; its last example is the canary's place.

    Heads: the canary is there; tails: its opposite is, or, where neighbours have one example more or less, none. The
    ledger books the noise that is calibrated for the whole recipe; what is drawn is `noise_factor` times that.
    """

    evidence: Evidence | None = None  # while clients are looked at

    def __init__(
        self, recipe: Experiment, runs: int, noise_factor: float, device: str, dataset: Dataset | None
    ) -> None:
        dataset = dataset or recipe.task.data.load()
        self.noise_factor = noise_factor
        shards = deal(recipe, dataset, Keys(recipe.seed, recipe.clients))
        self.shard = min((shard for shard in shards if len(shard)), key=len)
        if recipe.batches.sampling == "fixed":
            # others that are all alike hide no canary behind the luck of the draw
            self.shard = np.append(np.full(len(self.shard) - 1, self.shard[0]), self.shard[-1])
        super().__init__(_alone(recipe, runs, Federation(recipe, device, dataset).ledger), device, dataset)
        m = len(self.shard)
        self.sizes, self.starts = np.full(runs, m), np.arange(runs, dtype=np.int64) * m
        self.gradients = Watched(self.model, loss=self.loss)
        self.gradients.fed = self
        assert self.ledger is not None
        none = self.ledger.privacy.accountant == "exact" or isinstance(self.ledger.privacy, MessageDP)
        self.sampling = "none" if none else recipe.batches.sampling  # what is booked as secret
        self.chance = recipe.batches.chance(m) if self.sampling != "none" else 1.0
        self.candidates = candidates(self.train, self.classes)
        both = on_inputs(lambda x, c: torch.cat([x, c[:2, 0]]), self.train.x, self.candidates.x)
        self.train = Examples(both, torch.cat([self.train.y, self.candidates.y[:2, 0]]))
        self.lock = Lock()

    @property
    def mean_only(self) -> bool:
        """Never: every message is looked at."""
        return False

    # ------------------------------------------------------------ the real federation, but for the canary
    def normal(self, z: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        return super().normal(z, keys).mul_(self.noise_factor)

    def _deal(self, dataset: Dataset) -> list[Ids]:
        return [self.shard, *(np.zeros(0, np.int64) for _ in range(self.experiment.clients - 1))]

    def _fetched(self, place: Tensor, weight: Tensor) -> Batch:
        client, index = place // len(self.shard), place % len(self.shard)
        canary = (index == len(self.shard) - 1) & (weight > 0)
        heads = self.coins[client]
        where = torch.where(canary, len(self.shard) + heads.long(), index)
        there = weight.masked_fill(canary & ~heads, 0) if self.sampling == "poisson" else weight
        batch = super()._fetched(where, there)
        return Placed(batch.x, batch.y, batch.weight, place=place, drawn=weight * canary)

    def add_gaussian_noise(
        self,
        rows: Tensor,
        deviations: Tensor,
        purpose: str,
        round: Round,
        ids: Ids,
        call: int = 0,
        out: Tensor | None = None,
    ) -> Tensor:
        before = rows.clone() if self.evidence and purpose in ("gradient", "message") else None
        sent = super().add_gaussian_noise(rows, deviations, purpose, round, ids, call, out)
        if before is not None:
            assert isinstance(round, int)  # asynchronous methods are refused
            self._see(before, sent, purpose, round, ids, call)
        return sent

    # ------------------------------------------------------------ the runs
    @one_thread()
    def watch(self, coins: Tensor, rounds: int) -> Evidence:
        """What is seen of all runs in so many rounds; `coins` (runs,) bool are the worlds."""
        self.coins = coins.to(self.device)
        runs, method = len(coins), self.experiment.method
        path = self._path(rounds)
        evidence = Evidence(runs, rounds, method.steps, self.width, self.chance)
        width = max(len(self.shard) * numbers(self.train), self.x0.numel())
        size = max(GUIDES, NUMBERS // width)
        for start in range(0, runs, size):
            ids = np.arange(start, min(start + size, runs))
            states = {name: v.expand(len(ids), *v.shape).clone() for name, v in self.client_state().items()}
            self.first = start
            self.up, self.down, self.own = self.x0.new_zeros(3, len(ids), self.x0.numel())
            self.bound = self.x0.new_ones(len(ids))
            for round, (told, canaries) in enumerate(path):
                self._put(canaries)
                self.evidence = evidence
                states, _ = vector.rows(self, states, told, round, ids)
                self.evidence = None
        return evidence

    def of(self, batch: Placed) -> Tensor:
        """Whose batches these are, (k,)."""
        return batch.place[:, 0] // len(self.shard)

    def _path(self, rounds: int) -> list[tuple[State, Batch]]:
        """What is broadcast in each round, and the two canaries whose gradients are there furthest apart."""
        method, ids = self.experiment.method, np.arange(min(GUIDES, len(self.coins)))
        peers = len(self.coins) if method.peer else len(ids)
        server: State = method.server_init(self.x0, peers)
        states = {name: v.expand(len(ids), *v.shape).clone() for name, v in self.client_state().items()}
        self.first, path = 0, []
        self.up, self.down, self.own = self.x0.new_zeros(3, len(ids), self.x0.numel())
        self.bound = self.x0.new_ones(len(ids))
        for round in range(rounds):
            told = {name: server[name] for name in (method.sends, *method.tells)}
            x = told[method.sends]
            path.append((told, self._furthest(x[0] if method.peer else x, round)))
            self._put(path[-1][1])
            states, messages = vector.rows(self, states, told, round, ids)
            server, seen = method.receive(server, messages.rows, torch.from_numpy(ids).to(self.device))
            mean = seen.mean(0)
            server = method.step(
                server, mean.expand(peers, -1) if method.peer else mean, AtServer(self, round)
            )
        return path

    def _put(self, canaries: Batch) -> None:
        """The canaries where the data is fetched from."""

        def put(to: Tensor, two: Tensor) -> Tensor:
            to[-2:] = two[:, 0]
            return to

        on_inputs(put, self.train.x, canaries.x)
        put(self.train.y, canaries.y)
        self.canaries = canaries

    def _furthest(self, x: Tensor, round: int) -> Batch:
        """The two (2, 1, ...) whose clipped gradients at x lie furthest apart; tails first."""
        privacy = self.example_privacy
        clip = None if privacy is None else Clip(privacy.bound(round), privacy.by_layer)
        pair = furthest(self.gradients(x, self.candidates, clip=clip))
        return self.candidates.part(torch.tensor(pair, device=self.device))

    # ------------------------------------------------------------ what is seen
    def note(self, x: Tensor, batch: Placed, clip: Clip) -> None:
        """Keep what the canary moves in these clients' next release, in either world, and how it was drawn."""
        ids = self.of(batch).cpu().numpy()
        here, weights = batch.drawn.sum(1), torch.maximum(batch.weight, batch.drawn).amax(1)
        booked = float(1 / self.experiment.batches.expected(self.sizes[:1])[0])
        one = torch.where(weights > 0, weights, booked)  # what an example weighs in this batch
        heads = self.coins[torch.from_numpy(ids).to(self.device)]
        tails_g, heads_g = (self._gradient(self.canaries.part(w), x, len(ids), clip) for w in (0, 1))
        if self.sampling == "poisson":
            up, down = one[:, None] * heads_g, torch.zeros_like(heads_g)
            own = (here * heads)[:, None] * heads_g
            moved = here * norms(heads_g)
        elif self.sampling == "fixed":
            first = self.train.part(slice(0, 1))
            base = self._gradient(Batch(first.x, first.y, here[:1]), x, len(ids), clip)
            up, down = one[:, None] * (heads_g - base), one[:, None] * (tails_g - base)
            own = here[:, None] * (torch.where(heads[:, None], heads_g, tails_g) - base)
            moved = here * norms(heads_g - tails_g)
        else:
            up, down = here[:, None] * heads_g, here[:, None] * tails_g
            own = torch.where(heads[:, None], up, down)
            moved = here * norms(heads_g - tails_g)
        at = torch.from_numpy(ids - self.first).to(self.device)
        self.up[at], self.down[at], self.own[at] = up, down, own
        self.bound[at] = clip.bound if isinstance(clip.bound, Tensor) else torch.full_like(here, clip.bound)
        if self.evidence:
            few = slice(0, CHECKED)
            moved[few] = torch.maximum(moved[few], self._both_worlds(x, batch.part(few), clip.part(few)))
            limit = self._sensitivity() * self.bound[at]
            with self.lock:
                self.evidence.moved(float((moved / limit).max()))
                self.evidence.drawn(ids, (here > 0).cpu().numpy())

    def _gradient(self, one: Batch, x: Tensor, k: int, clip: Clip) -> Tensor:
        """The clipped gradient of one example at weight 1, (1, d), or (k, d) where models or clips differ."""
        alike = x.dim() == 1 and not isinstance(clip.bound, Tensor)
        wide = one.map(lambda t: t.reshape(1, 1, *t.shape[1:]).expand(1 if alike else k, 1, *t.shape[1:]))
        rows = x.new_empty(len(wide.weight), x.shape[-1])
        weight = torch.ones(len(wide.weight), 1, device=x.device)
        plain = Batch(wide.x, wide.y, weight)
        self.gradients.prepare(x, plain, replace(clip, inside=None)).write(slice(None), rows)
        return rows

    def _both_worlds(self, x: Tensor, batch: Batch, clip: Clip) -> Tensor:
        """How far the release of a whole batch moves (k,) where heads become tails."""
        assert isinstance(batch, Placed)
        rows = []
        here = x if x.dim() == 1 else x[: len(batch.weight)]
        for world in (False, True):
            weight = torch.maximum(batch.weight, batch.drawn)
            index = batch.place % len(self.shard)
            where = torch.where(batch.drawn > 0, len(self.shard) + int(world), index)
            if self.sampling == "poisson" and not world:
                weight = weight.masked_fill(batch.drawn > 0, 0)
            seen = Federation._fetched(self, where, weight)
            out = x.new_empty(len(weight), x.shape[-1])
            self.gradients.prepare(here, seen, replace(clip, inside=None)).write(slice(None), out)
            rows.append(out)
        return norms(rows[1] - rows[0])

    def _sensitivity(self) -> float:
        """The booked sensitivity of a release, over the clip where it is a gradient."""
        assert self.ledger is not None
        privacy, bound = self.ledger.privacy, self.experiment.method.message_bound
        reach = privacy.client_sensitivity(self.ledger.plan.batches, self.sizes[:1], bound)
        return float(reach[0]) * (2 if isinstance(privacy, MessageDP) else 1)

    def _see(self, before: Tensor, sent: Tensor, purpose: str, round: int, ids: Ids, call: int) -> None:
        """One noisy release of clients `ids`: is the noise what was booked, and which world does it speak for?"""
        evidence, ledger = self.evidence, self.ledger
        assert evidence is not None
        assert ledger is not None
        at = torch.from_numpy(ids - self.first).to(self.device)
        z = ledger.multiplier * float(ledger.privacy.factors((round,))[0])
        noise = sent - before
        if purpose == "message":
            reach = self._sensitivity()
            sigma = torch.full((len(ids),), z * reach, dtype=torch.float64, device=self.device)
            scores = sent.sum(1, dtype=torch.float64) / sqrt(before.shape[1]) * reach / sigma**2
            with self.lock:
                evidence.moved(float(2 * norms(before).max()) / reach)
        else:
            extra = ledger.privacy.sensitivity(round)  # of a clip that adapts, told in the same release
            sigma = z * extra * self._sensitivity() * self.bound[at].double()
            seen = noise + self.own[at]
            scores = self._odds(seen, self.up[at], sigma) - self._odds(seen, self.down[at], sigma)
        with self.lock:
            evidence.release(round, call, ids, (noise / sigma[:, None]).float(), scores)

    def _odds(self, seen: Tensor, move: Tensor, sigma: Tensor) -> Tensor:
        """ln P(seen | the world that moves so) - ln P(seen | nothing moved), (k,).

        Where sampling amplifies nobody knows whether the canary was drawn, and a release may have seen it or not.
        """
        odds = ((seen * move).sum(1, dtype=torch.float64) - move.double().square().sum(1) / 2) / sigma**2
        if self.chance == 1:
            return odds
        return torch.logaddexp(odds.new_tensor(1 - self.chance).log(), odds + np.log(self.chance))


def _alone(recipe: Experiment, runs: int, ledger: Ledger | None) -> Experiment:
    """The recipe with as many clients as runs, nobody else, and noise as the recipe's ledger has it."""
    assert ledger is not None
    exact = {"calibration": "exact"} if isinstance(recipe.privacy, MessageDP) else {}
    noise: dict[str, Any] = {"epsilon": None, "noise": ledger.multiplier, "stop_at_epsilon": None, **exact}
    everyone: dict[str, Any] = {"clients": runs, "byzantine": 0, "f": None, "cohort": None, "dealt": "all"}
    return replace(recipe, privacy=replace(ledger.privacy, **noise), attack=None, rule=Mean(), **everyone)
