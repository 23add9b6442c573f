"""Example-level privacy at work in a round: the clip, the noise, and what becomes of a clip that adapts."""

from __future__ import annotations

from copy import copy

from torch import Tensor

from fedsim.check import LEAST_CLIP, MOST_CLIP
from fedsim.federation import Federation, Ids
from fedsim.gradients import Clip
from fedsim.privacy import CLIP, ExampleDP, Quantile
from fedsim.types import Round, State, at


class Mechanism:
    """Of clients `ids` in a round, with what their states keep of the rounds before."""

    def __init__(self, fed: Federation, privacy: ExampleDP, ids: Ids, round: Round, state: State) -> None:
        self.fed, self.privacy, self.ids, self.round = fed, privacy, ids, round
        self.bound: Tensor | float = privacy.bound(fed.scheduled(round))
        if isinstance(privacy.clip, Quantile):
            kept = state.get(CLIP)
            self.bound = fed.x0.new_full((len(ids),), self.bound) if kept is None else kept.reshape(-1)

    @classmethod
    def of(cls, fed: Federation, ids: Ids, round: Round, state: State) -> Mechanism | None:
        """None where privacy is not example-level."""
        privacy = fed.example_privacy
        return None if privacy is None else cls(fed, privacy, ids, round, state)

    def part(self, clients: slice) -> Mechanism:
        """Of some of the clients, as it is now."""
        some = copy(self)
        some.ids = self.ids[clients]
        some.round = at(self.round, clients)
        some.bound = self.bound[clients] if isinstance(self.bound, Tensor) else self.bound
        return some

    def noisy(self, rows: Tensor, call: int) -> Tensor:
        """The gradients (k, d) of a call with noise added in place."""
        return self.fed.noisy(rows, "gradient", self.round, self.ids, call, self.bound, out=rows)

    def clip(self) -> Clip:
        """The clip of the next gradients; they fill in how many examples were within it."""
        inside = self.bound.clone() if isinstance(self.bound, Tensor) else None
        return Clip(self.bound, self.privacy.by_layer, inside)

    def learn(self, clip: Clip, weight: Tensor, call: int) -> None:
        """Move a clip that adapts by what its examples, of weight (k, b), told."""
        quantile, ledger = self.privacy.clip, self.fed.ledger
        if isinstance(quantile, Quantile) and clip.inside is not None and ledger is not None:
            reach = self.privacy.client_sensitivity(ledger.plan.batches, self.fed.sizes[self.ids], None)
            deviation = clip.inside.new_tensor(
                reach * self.privacy.count_scale(ledger.plan, self.fed.scheduled(self.round))
            )
            told = (0.5 + clip.inside - weight.sum(-1) / 2)[:, None]
            within = self.fed.add_gaussian_noise(told, deviation, "count", self.round, self.ids, call)[:, 0]
            moved = self.bound * ((quantile.target - within) * quantile.speed).exp()
            self.bound = moved.clamp(LEAST_CLIP, MOST_CLIP)

    @property
    def kept(self) -> State:
        """What the clients' states keep for the next round."""
        return {CLIP: self.bound} if isinstance(self.bound, Tensor) else {}
