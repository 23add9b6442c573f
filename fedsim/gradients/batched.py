"""The gradients of n clients in one tensor program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from math import ceil, inf
from threading import Lock
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fedsim.gradients.clip import Clip
from fedsim.gradients.fallback import Known, Loop, Vmap
from fedsim.gradients.layers import Ready
from fedsim.gradients.layerwise import Layerwise
from fedsim.gradients.reference import one_client, require_independent
from fedsim.layout import flatten
from fedsim.losses import CROSS_ENTROPY
from fedsim.types import Batch, Inputs, Loss


class Route(Protocol):
    """A way to the gradients of n clients; `alone`: in one thread at a time; `normed`: norms of sums come cheap."""

    alone: ClassVar[bool]
    normed: bool

    def __call__(self, x: Tensor, batch: Batch, clip: Clip | None) -> Ready:
        """Get ready to give the gradients (n, d), examples clipped."""

    def numbers(self, b: int, clipped: bool) -> int:
        """Numbers in memory for a client of b examples, beside the activations."""
        ...


class ClientGradients:
    """The gradients of n clients: what an engine holds, and calls in every round.

    The first call tries the routes on two examples and keeps the first that gets their gradients right: layer
    by layer, by vmap, one client after the other. `memory` is about how many bytes the work may take beside
    the rows, down to what one client takes; by default 64 MB on a CPU and 2 GB on a GPU.
    Raises `Invalid` where an example's gradient depends on other examples or on chance (batch norm, dropout).
    """

    def __init__(self, model: nn.Module, memory: int | None = None, loss: Loss = CROSS_ENTROPY) -> None:
        require_independent(model)
        self.model, self.loss = model, loss
        self.x = flatten(model)
        self.memory = memory or (2**26 if self.x.device.type == "cpu" else 2**31)
        self.route: Route | None = None
        self.turn = Lock()
        self.twice = True  # whether vmap can follow the gradient's own derivative
        self.activations = 0  # bytes of an example

    def choose(self, batch: Batch) -> Route:
        """The route, chosen by two of these examples where it is not known yet."""
        with self.turn:
            self.route = self.route or self._choose(batch)
        return self.route

    def at_once(self, b: int, clipped: bool) -> int:
        """How many clients of b examples fit the memory, one at least; to be asked once a route is chosen."""
        assert self.route is not None
        client = b * self.activations + self.x.element_size() * self.route.numbers(b, clipped)
        return max(1, self.memory // max(1, client))

    def __call__(
        self,
        x: Tensor,
        batch: Batch,
        *,
        clip: Clip | float | None = None,
    ) -> Tensor:
        """`one_client` for n clients: gradients (n, d) of batches (n, b, ...) at x, (d,) for all or (n, d)."""
        out = x.new_empty(len(batch.weight), x.shape[-1])
        self.prepare(x, batch, Clip.of(clip)).write(slice(None), out)
        return out

    def prepare(self, x: Tensor, batch: Batch, clip: Clip | None = None) -> Ready:
        """The same in steps: what all gradients follow from; then those of some clients at a time, or a sum."""
        n, b = batch.weight.shape
        route = self.choose(batch)
        size = self.at_once(b, clip is not None)
        with self.turn if route.alone else nullcontext():
            if n <= size:
                return route(x, batch, clip)
            rows, size = x.new_empty(n, x.shape[-1]), ceil(n / ceil(n / size))
            for start in range(0, n, size):
                part = slice(start, start + size)
                here = x if x.dim() == 1 else x[part]
                route(here, batch.part(part), clip and clip.part(part)).write(slice(None), rows[part])
            return Known(rows)

    def _choose(self, batch: Batch) -> Route:
        """The first route that gives the gradients of two examples, each a client of its own."""
        ends = [0, batch.weight.numel() - 1]
        two = batch.map(lambda t: t.flatten(0, 1)[ends].unsqueeze(1))
        two = replace(two, weight=torch.ones_like(two.weight))
        self.activations = _activations(self.model, self.x, two.part(0), self.loss)
        right = torch.stack([one_client(self.model, self.x, one, loss=self.loss) for one in two.each()])
        for candidate in self._candidates(two.x):
            rows = torch.empty_like(right)
            try:
                route = candidate()
                route(self.x, two, Clip(inf)).write(slice(None), rows)
            except Exception:
                continue
            if ((rows - right).norm(dim=1) <= 1e-3 * right.norm(dim=1)).all():
                return route
        return Loop(self.model, self.loss)

    def _candidates(self, x: Inputs) -> Iterator[Callable[[], Route]]:
        images = (
            isinstance(x, Tensor)
            and x.dim() == 5
            and any(isinstance(module, nn.Conv2d) for module in self.model.modules())
        )
        if (
            images and self.x.device.type == "cpu"
        ):  # where the channels of a pixel together are the faster order
            yield lambda: Layerwise(self.model, self.loss, channels_last=True)
        yield lambda: Layerwise(self.model, self.loss, channels_last=False)
        if not any(
            isinstance(module, nn.RNNBase) for module in self.model.modules()
        ):  # vmap has no rule for these
            yield lambda: Vmap(self.model, self.loss)


def _activations(model: nn.Module, x: Tensor, example: Batch, loss: Loss) -> int:
    """Bytes of an example in a forward and a backward pass: what is saved, and the gradients of that."""
    saved: dict[int, int] = {}

    def count(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(count, lambda t: t):
        one_client(model, x, example, loss=loss)
    for kept in (x, *model.parameters()):
        saved.pop(kept.untyped_storage().data_ptr(), None)
    return 2 * sum(saved.values())
