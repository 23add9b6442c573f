"""What a client may ask beside its gradient: the loss of a batch, and products with its Hessian."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from fedsim.gradients.batched import ClientGradients
from fedsim.gradients.layerwise import Layerwise
from fedsim.layout import unflatten
from fedsim.types import Batch, Inputs, Loss, forward


def one_loss(model: nn.Module, x: Tensor, batch: Batch, loss: Loss) -> Tensor:
    """sum_j weight_j loss_j () of one client's batch (b, ...) at x (d,)."""
    return loss(forward(model, unflatten(x, model), batch.x), batch.y) @ batch.weight


def one_hvp(model: nn.Module, x: Tensor, v: Tensor, batch: Batch, loss: Loss) -> Tensor:
    """The Hessian of that at x times v, (d,): the gradient of the gradient's inner product with v."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(one_loss(model, x, batch, loss), x, create_graph=True)
        if not g.requires_grad:  # a loss that is linear in x
            return torch.zeros_like(x)
        return torch.autograd.grad(g @ v, x, materialize_grads=True)[0]


@torch.no_grad()
def losses(gradients: ClientGradients, x: Tensor, batch: Batch) -> Tensor:
    """`one_loss` (n,) of n clients at x, (d,) for all or (n, d)."""
    model, loss, route = gradients.model, gradients.loss, gradients.choose(batch)
    if x.dim() == 1 or isinstance(route, Layerwise):
        lined_up = batch.map(lambda t: t.flatten(0, 1))
        if isinstance(route, Layerwise):
            out = route.outputs(x, batch)
        else:
            with gradients.turn:
                out = forward(model, unflatten(x, model), lined_up.x)
        return (loss(out, lined_up.y).view_as(batch.weight) * batch.weight).sum(1)
    with gradients.turn:  # a functional call changes the model for a while
        return torch.stack([one_loss(model, at, one, loss) for at, one in zip(x, batch.each(), strict=True)])


def hvps(gradients: ClientGradients, x: Tensor, v: Tensor, batch: Batch) -> Tensor:
    """`one_hvp` (n, d) of n clients: the derivative of the gradient along v, where vmap can follow."""
    model, loss, n = gradients.model, gradients.loss, len(batch.weight)
    x, v = x.expand(n, -1), v.expand(n, -1)

    def one(x: Tensor, v: Tensor, inputs: Inputs, y: Tensor, weight: Tensor) -> Tensor:
        def at(x: Tensor) -> Tensor:
            return one_loss(model, x, Batch(inputs, y, weight), loss)

        along: Tensor = jvp(grad(at), (x,), (v,))[1]
        return along

    with gradients.turn:
        if gradients.twice:
            try:
                products: Tensor = vmap(one)(x, v, batch.x, batch.y, batch.weight)
                return products
            except Exception:  # an operation without a forward derivative, or that vmap does not know
                gradients.twice = False
        each = zip(x, v, batch.each(), strict=True)
        return torch.stack([one_hvp(model, at, along, part, loss) for at, along, part in each])
