"""The gradients of n clients from one forward pass and one backward pass, layer by layer.

The batches of all clients run through the model as one, and the backward pass goes to the outputs of the
layers alone. Then each layer writes the clients' gradients straight into its columns of the rows.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import ClassVar
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedsim.gradients.clip import Clip
from fedsim.gradients.layers import Layer, Parameters, Rows
from fedsim.gradients.products import Conv2d, Linear
from fedsim.gradients.reference import one_client
from fedsim.gradients.scales import Embedding, GroupNorm, LayerNorm
from fedsim.layout import LARGE
from fedsim.types import Batch, Loss, forward, on_inputs

LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    nn.GroupNorm: GroupNorm,
    nn.LayerNorm: LayerNorm,
    nn.Embedding: Embedding,
}


LOST = 100.0  # how much less than its terms' lengths, squared, a sum of products may be: five digits are left


class Unfit(Exception):
    """A model that does not consist of known layers, each called once, or linear ones at several places."""


@dataclass(frozen=True)
class Call:
    """What a layer leaves of its call in the forward pass."""

    kept: Tensor
    output: GradientEdge


class _Pass(threading.local):
    """A forward pass of this thread: the parameters of each layer, and its calls until now."""

    def __init__(self) -> None:
        self.at: dict[str, Parameters] = {}
        self.calls: dict[str, list[Call]] = {}


class Layerwise:
    """The route for a model of known layers; raises `Unfit` for any other."""

    alone: ClassVar[bool] = False

    def __init__(self, model: nn.Module, loss: Loss, channels_last: bool) -> None:
        self.loss, self.channels_last = loss, channels_last
        self.stored = 0  # numbers that clipping keeps for each example
        self.source, self.model = model, copy.deepcopy(model)
        self.layers: dict[
            str, Layer
        ] = {}  # those with parameters that are trained; the others are part of the model
        self.now = _Pass()
        for name, module in self.model.named_modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                if type(module) not in LAYERS or not LAYERS[type(module)].fits(module):
                    raise Unfit(f"{name} is a {type(module).__name__}")
                self.layers[name] = LAYERS[type(module)](module)
                module.forward = partial(_call, ref(self), name)  # weak: no circle with the model
        every = list(self.model.named_parameters(remove_duplicate=False))
        named = [(path, p) for path, p in every if p.requires_grad]
        if len({id(parameter) for _, parameter in named}) < len(named):
            raise Unfit("layers share weights")
        self.linear = {name: layer for name, layer in self.layers.items() if isinstance(layer, Linear)}
        self.normed = len(self.linear) == len(self.layers)
        self.sizes = [parameter.numel() for _, parameter in named]
        self.places = [(*path.rpartition(".")[::2], parameter.shape) for path, parameter in named]
        self.frozen: dict[str, Parameters] = {name: {} for name in self.layers}
        for path, p in every:
            layer, _, name = path.rpartition(".")
            if layer in self.layers and not p.requires_grad:
                self.frozen[layer][name] = p.detach()
        for _, parameter in named:  # a weight that is read outside of its layer is not a number
            parameter.data = parameter.new_full((), torch.nan).expand(parameter.shape)

    def call(self, name: str, x: Tensor) -> Tensor:
        """What a layer gives, of which what its gradients need is noted."""
        calls = self.now.calls.setdefault(name, [])
        if calls and name not in self.linear:
            raise Unfit(f"{name} is called twice")
        kept, y = self.layers[name].forward(x, self.now.at[name])
        calls.append(Call(kept.detach(), get_gradient_edge(y)))
        return y

    def numbers(self, b: int, clipped: bool) -> int:
        return b * self.stored if clipped else 0

    def __call__(self, x: Tensor, batch: Batch, clip: Clip | None) -> Passed:
        kept, back = self._backward(x, batch, weighted=clip is None)
        n = len(batch.weight)
        if clip is None:
            return Passed(self, n, kept, back, dict.fromkeys(self.layers), None, {})
        with torch.no_grad():
            norms = {name: layer.square_norms(kept[name], back[name]) for name, layer in self.layers.items()}
            squares = torch.stack([each.squares for each in norms.values()])
            sure = torch.stack([each.sure for each in norms.values()]).all(0) & (squares.sum(0) <= LARGE**2)
            known = sure.view_as(batch.weight)
            factors = clip.weights(squares.unflatten(1, known.shape), batch.weight * known)
        each = {name: found.each for name, found in norms.items()}
        self.stored = sum(found[0].numel() for found in each.values() if found is not None)
        weights = dict(zip(self.layers, factors.expand(len(each), -1, -1), strict=True))
        if known.all():
            return Passed(self, n, kept, back, each, weights, {})
        for held in (kept, back, each):
            held.update({name: _only(sure, value) for name, value in held.items() if value is not None})
        return Passed(self, n, kept, back, each, weights, self._anew(x, batch, clip, ~known))

    def _anew(self, x: Tensor, batch: Batch, clip: Clip, which: Tensor) -> dict[int, Tensor]:
        """What examples `which` (n, b) add to the gradients (d,) of their clients, by the specification.

        That clips gradients which it has. Of these examples alone: what others add does not depend on them.
        """
        found = {}
        for i in (which & (batch.weight > 0)).any(1).nonzero()[:, 0].tolist():
            some, own = batch.part(i).part(which[i]), clip.part(slice(i, i + 1))
            inside = None if own.inside is None else torch.zeros_like(own.inside)
            at = x if x.dim() == 1 else x[i]
            found[i] = one_client(self.source, at, some, replace(own, inside=inside), self.loss)
            if own.inside is not None and inside is not None:
                own.inside.add_(inside)
        return found

    def _backward(
        self, x: Tensor, batch: Batch, weighted: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What each layer kept, and the gradient of the (weighted) losses with respect to its output."""
        out = self.outputs(x, batch)
        calls, self.now.calls, self.now.at = self.now.calls, {}, {}
        if calls.keys() != self.layers.keys():
            raise Unfit("a layer is not called")
        with torch.no_grad():
            start = self.loss.gradient(out, batch.y.flatten(0, 1))
            if weighted:  # not in place: the gradient of a sum is one number seen many times
                start = start * batch.weight.reshape(-1, *[1] * (start.dim() - 1))
        back = iter(torch.autograd.grad(out, [call.output for own in calls.values() for call in own], start))
        return (
            {name: _together([call.kept for call in own]) for name, own in calls.items()},
            {name: _together([next(back) for _ in own]) for name, own in calls.items()},
        )

    def outputs(self, x: Tensor, batch: Batch) -> Tensor:
        """What the model puts out for the examples of all clients, one behind the other; `now` has the calls."""
        with torch.enable_grad():
            self.now.at, self.now.calls = self._parameters(x.detach().requires_grad_()), {}
            return forward(self.model, {}, on_inputs(self._lined_up, batch.x))

    def _lined_up(self, inputs: Tensor) -> Tensor:
        """The examples of all clients one behind the other."""
        inputs = inputs.flatten(0, 1)
        if not self.channels_last:
            return inputs
        return torch.empty_like(inputs, memory_format=torch.channels_last).copy_(inputs)

    def _parameters(self, x: Tensor) -> dict[str, Parameters]:
        """All parameters of each layer: those of x (d,) or (n, d), and frozen ones."""
        own = x.shape[:-1]
        return {
            layer: views | {name: p.expand(*own, *p.shape) for name, p in self.frozen[layer].items()}
            for layer, views in self.views(x).items()
        }

    def views(self, x: Tensor) -> dict[str, Parameters]:
        """Views of x (..., d) as the parameters of each layer."""
        views: dict[str, Parameters] = {name: {} for name in self.layers}
        for piece, (layer, name, shape) in zip(x.split(self.sizes, -1), self.places, strict=True):
            views[layer][name] = piece.view(*x.shape[:-1], *shape)
        return views


@dataclass(frozen=True)
class Passed:
    """Gradients of n clients after the two passes.

    kept, back  what each layer kept of its input (N, ...), and what came back to its output
    each        gradients of examples that came about, where they did
    weights     of examples (n, b), by layer; None where `back` has them already
    anew        what examples that are zero here, their norms being in doubt, add to their clients' gradients (d,)
    """

    route: Layerwise
    n: int
    kept: dict[str, Tensor]
    back: dict[str, Tensor]
    each: dict[str, Tensor | None]
    weights: dict[str, Tensor] | None
    anew: dict[int, Tensor]

    def write(self, clients: slice, out: Tensor, scale: Tensor | None = None, added: bool = False) -> None:
        start, stop, _ = clients.indices(self.n)
        with torch.no_grad():
            for name, view in self.route.views(out).items():
                kept, back, own = self.kept[name], self.back[name], self.each[name]
                b = len(back) // self.n
                examples = slice(start * b, stop * b)
                weight = None if self.weights is None else self.weights[name][clients]
                if scale is not None:
                    weight = scale.unsqueeze(1) * (back.new_ones(1, b) if weight is None else weight)
                self.route.layers[name].write(
                    kept[examples],
                    back[examples],
                    None if weight is None else weight.reshape(len(out), -1),
                    None if own is None else own[examples],
                    Rows(view, added),
                    len(out),
                )
            for i, gradient in self.anew.items():
                if start <= i < stop:
                    place = out[i - start if len(out) == stop - start else 0]
                    place.add_(gradient if scale is None else gradient * scale[i - start])

    def norms(self) -> Tensor:
        if not self.route.normed or self.weights is not None:
            return next(iter(self.back.values())).new_full((self.n,), nan)
        layers = self.route.linear.items()
        found = [layer.sum_norms(self.kept[name], self.back[name], self.n) for name, layer in layers]
        squares = torch.stack([square for square, _ in found]).sum(0)
        lengths = torch.stack([length.square() for _, length in found]).sum(0)
        known = squares.sqrt().masked_fill(~(lengths <= LOST * squares), nan)
        return known.to(next(iter(self.back.values())).dtype)


def _call(route: ref[Layerwise], name: str, x: Tensor) -> Tensor:
    whole = route()
    assert whole is not None  # the model is its own
    return whole.call(name, x)


def _together(calls: list[Tensor]) -> Tensor:
    """What several calls of a linear layer have, as that of one call at the places of all: (N, t, k)."""
    return calls[0] if len(calls) == 1 else torch.cat([t.reshape(len(t), -1, t.shape[-1]) for t in calls], 1)


def _only(which: Tensor, value: Tensor) -> Tensor:
    """A copy of a tensor (N, ...) that is 0 except for examples `which` (N,)."""
    return value.where(which.view(-1, *[1] * (value.dim() - 1)), 0)
