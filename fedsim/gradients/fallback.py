"""The gradients of n clients of any model: by vmap, or where that does not work one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedsim.gradients.clip import Clip
from fedsim.gradients.reference import one_client, weighted_clip
from fedsim.layout import norms, trained, unflatten
from fedsim.types import Batch, Inputs, Loss, forward


@dataclass(frozen=True)
class Known:
    """Gradients (n, d) that are there."""

    rows: Tensor

    def write(self, clients: slice, out: Tensor, scale: Tensor | None = None, added: bool = False) -> None:
        rows = self.rows[clients] if scale is None else self.rows[clients] * scale.unsqueeze(1)
        rows = rows if len(out) > 1 else rows.sum(0, keepdim=True)
        torch.add(out, rows, out=out) if added else out.copy_(rows)

    def norms(self) -> Tensor:
        return norms(self.rows)


class Vmap:
    """The route for a model of pure tensor operations."""

    alone: ClassVar[bool] = True  # a functional call changes the model for a while
    normed = True

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss

    def numbers(self, b: int, clipped: bool) -> int:
        gradients = b if clipped else 1
        return (
            2 * gradients * sum(p.numel() for p in trained(self.model).values())
        )  # by parameter, and as rows

    def __call__(self, x: Tensor, batch: Batch, clip: Clip | None) -> Known:
        if clip is None:
            over = 0 if x.dim() == 2 else None
            rows = vmap(grad(self._loss), in_dims=(over, 0, 0, 0))(
                unflatten(x, self.model), batch.x, batch.y, batch.weight
            )
            gradients = torch.cat([g.reshape(len(g), -1) for g in rows.values()], 1)
        else:
            each = zip(x.expand(len(batch.weight), -1), batch.each(), strict=True)
            gradients = torch.stack(
                [self._clipped(at, one, clip.part(slice(i, i + 1))) for i, (at, one) in enumerate(each)]
            )
        return Known(gradients)

    def _loss(self, parameters: dict[str, Tensor], x: Inputs, y: Tensor, weight: Tensor) -> Tensor:
        return self.loss(forward(self.model, parameters, x), y) @ weight

    def _clipped(self, x: Tensor, batch: Batch, clip: Clip) -> Tensor:
        """The gradient (d,) of one client."""
        single = batch.map(lambda t: t.unsqueeze(1))
        one = torch.ones_like(single.weight, dtype=x.dtype)
        gradients = vmap(grad(self._loss), in_dims=(None, 0, 0, 0))(
            unflatten(x, self.model), single.x, single.y, one
        )
        each = torch.cat([g.reshape(len(g), -1) for g in gradients.values()], 1)
        return weighted_clip(each, batch.weight, clip, self.model)


class Loop:
    """The route for any other model: the specification, n times."""

    alone: ClassVar[bool] = True  # a functional call changes the model for a while
    normed = True

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss

    def numbers(self, b: int, clipped: bool) -> int:
        return 0

    def __call__(self, x: Tensor, batch: Batch, clip: Clip | None) -> Known:
        each = zip(x.expand(len(batch.weight), -1), batch.each(), strict=True)
        return Known(
            torch.stack(
                [
                    one_client(self.model, at, one, clip and clip.part(slice(i, i + 1)), self.loss)
                    for i, (at, one) in enumerate(each)
                ]
            )
        )
