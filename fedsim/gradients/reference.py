"""The gradient of one client, written to be read: the specification that every faster path is held to."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.check import Invalid
from fedsim.gradients.clip import Clip, layer_sizes
from fedsim.layout import LARGE, norms, trained, unflatten
from fedsim.losses import CROSS_ENTROPY
from fedsim.types import Batch, Loss, forward

Parts = dict[str, Tensor]


def one_client(
    model: nn.Module,
    x: Tensor,
    batch: Batch,
    clip: Clip | float | None = None,
    loss: Loss = CROSS_ENTROPY,
) -> Tensor:
    """Gradient (d,) of one client's batch (b, ...) at x (d,), the trained parameters.

    sum_j w_j grad_j, with grad_j the gradient of the loss of example j and w_j its weight; with
    `clip` sum_j w_j min(1, clip / ||grad_j||) grad_j, from the per-sample gradients of Opacus (Yousefpour et
    al., 2021). Raises `Invalid` where an example's gradient depends on other examples or on chance, and with
    `clip` where Opacus misses a part of the gradient.
    """
    require_independent(model)
    if (bounded := Clip.of(clip)) is not None:
        return weighted_clip(_per_example(model, x, batch, loss), batch.weight, bounded, model)
    with torch.enable_grad():
        parameters = {name: p.detach().requires_grad_() for name, p in unflatten(x, model).items()}
        total = loss(forward(model, parameters, batch.x), batch.y) @ batch.weight
    gradients = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def weighted_clip(each: Tensor, weight: Tensor, clip: Clip, model: nn.Module) -> Tensor:
    """sum_j w_j min(1, clip / ||grad_j||) grad_j of gradients (b, d), or the same layer by layer.

    One whose norm is beyond LARGE or not finite, which no factor is sure to bound, counts as zero.
    """
    sizes = layer_sizes(model) if clip.by_layer else [each.shape[1]]
    squares = _squares(each, sizes)
    each = each.where((squares.sum(0) <= LARGE**2).unsqueeze(1), 0)
    weights = clip.weights(squares.unsqueeze(1), weight.unsqueeze(0)).squeeze(1)
    return torch.cat([w @ part for w, part in zip(weights, each.split(sizes, 1), strict=True)])


def _squares(each: Tensor, sizes: list[int]) -> Tensor:
    """Squared norms (L, b), float64, of parts of the gradients (b, d)."""
    return torch.stack([norms(part).double().square() for part in each.split(sizes, 1)])


def _per_example(model: nn.Module, x: Tensor, batch: Batch, loss: Loss) -> Tensor:
    """The gradient of every example, (b, d): of Opacus, or by a pass for each where a layer has no rule there."""
    if any(isinstance(module, nn.RNNBase | nn.MultiheadAttention) for module in model.modules()):
        ones = batch.map(lambda t: t.unsqueeze(1))
        alone = replace(ones, weight=torch.ones_like(ones.weight, dtype=x.dtype))
        return torch.stack([one_client(model, x, one, loss=loss) for one in alone.each()])
    each, totals = _sampled(model, x, batch, loss)
    if _unseen(each, totals, 0.0):  # or terms cancel, for which float64 has more digits
        wide = _sampled(copy.deepcopy(model).double(), x.double(), batch.map(_widened), loss)
        lost = sum(float((total - totals[name]).norm()) for name, total in wide[1].items())
        if unseen := _unseen(*wide, lost):
            raise Invalid(f"model: {unseen} is read outside of its layer, where Opacus does not see it")
    return torch.cat(list(each.values()), 1)


def _unseen(each: Parts, totals: Parts, lost: float) -> str | None:
    """A weight whose gradients of examples (b, size) do not add up to what autograd has of it in all, (size,).

    `lost` is what rounding to float32 makes of the sums: where that is not small, neither tells anything.
    """
    lengths = {name: float(rows.norm(dim=1).sum()) for name, rows in each.items()}
    rounding = 1e-6 * sum(lengths.values())  # what is left of a gradient that is zero
    for name, rows in each.items():
        if (rows.sum(0) - totals[name]).norm() > 1e-3 * lengths[name] + rounding + 10 * lost:
            return name
    return None


def _widened(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _sampled(model: nn.Module, x: Tensor, batch: Batch, loss: Loss) -> tuple[Parts, Parts]:
    """By weight, the gradients (b, size) of examples, which Opacus has, and their sums (size,), which autograd has."""
    from opacus import GradSampleModule

    if not isinstance(batch.x, Tensor) and any(p.requires_grad for p in model.parameters(recurse=False)):
        raise Invalid(
            "model: takes several inputs and has parameters of its own, which Opacus cannot clip: put these into a "
            "module of one input"
        )
    model = copy.deepcopy(model).train()  # the hooks of Opacus keep still in evaluation mode
    for module in model.modules():
        if hasattr(module, "inplace"):
            vars(module)["inplace"] = False  # the hooks of Opacus forbid it
    with torch.no_grad():
        for p, value in zip(trained(model).values(), unflatten(x, model).values(), strict=True):
            p.copy_(value)
    # by functorch, since the formulas of Opacus leave out an embedding's padding and a missing bias
    sampled = GradSampleModule(model, loss_reduction="sum", force_functorch=True)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", "Full backward hook is firing|In CPU autocast")  # of no consequence
        torch.autograd.backward(loss(forward(sampled, {}, batch.x), batch.y).sum())
    named = trained(model)
    each = {name: _of_weight(p, len(batch.y)) for name, p in named.items()}
    totals = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()}
    return each, {name: total.detach().flatten() for name, total in totals.items()}


def _of_weight(p: Any, b: int) -> Tensor:
    """The gradients (b, size) of one weight."""
    each: Tensor = p.new_zeros(b, p.numel()) if p.grad_sample is None else p.grad_sample.reshape(b, -1)
    return each


def require_certain(model: nn.Module, x: Tensor, batch: Batch, loss: Loss = CROSS_ENTROPY) -> None:
    """Raise `Invalid` where gradients at x depend on chance, which would have no address, or on other examples."""
    found = []
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        for seed in range(2):
            torch.manual_seed(seed)
            found.append(one_client(model, x, batch, loss=loss))
    first, again = found
    if not torch.allclose(first, again, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise Invalid(
            "model: its gradient depends on chance, whose draws have no address: leave out what is random"
        )
    if _mixed(model, x, batch, loss) and _mixed(
        copy.deepcopy(model).double(), x.double(), batch.map(_widened), loss
    ):
        raise Invalid("model: an example's gradient depends on the other examples of its batch")


def _mixed(model: nn.Module, x: Tensor, batch: Batch, loss: Loss) -> bool:
    """Whether the gradient of a batch is another than the sum of its examples' own, each by itself."""
    alone = torch.stack(
        [one_client(model, x, batch.part(slice(j, j + 1)), loss=loss) for j in range(len(batch.y))]
    )
    apart = (one_client(model, x, batch, loss=loss) - alone.sum(0)).norm()
    return bool(apart > 1e-3 * alone.norm(dim=1).sum() + 1e-6)


def require_independent(model: nn.Module) -> None:
    """Raise `Invalid` where an example's gradient depends on other examples of its batch or on chance."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise Invalid(
                f"model: {name} is batch norm, which mixes examples: use nn.GroupNorm instead, which "
                "GroupNormed(model) puts in its place, as in --set 'task.model=GroupNormed(module:name)'"
            )
        if getattr(module, "track_running_stats", False):
            raise Invalid(f"model: {name} keeps running statistics: set track_running_stats=False")
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise Invalid(f"model: {name} is dropout, whose draws have no address: leave it out or set p=0")
