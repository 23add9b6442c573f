"""What the models are worth that clients keep for themselves, each on the classes that its client has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.federation import Federation
from fedsim.layout import unflatten
from fedsim.method import Method
from fedsim.states import States
from fedsim.types import forward

LOOKED_AT = 50  # clients, evenly chosen where there are more
PIECE = 2000  # examples at a time


@torch.no_grad()
def personal_metrics(fed: Federation, states: States, x: Tensor) -> dict[str, float]:
    """Mean accuracy and loss of honest clients' own models, and the worst client's; {} where they use the server's x.

    The test examples count for a client as often as their classes are among its own training examples; where labels are
    no classes, all alike. {} too where states are kept by the clients themselves.
    """
    method = fed.experiment.method
    holders = np.flatnonzero(fed.sizes[: fed.experiment.honest] > 0)
    ids = holders[np.unique(np.linspace(0, len(holders) - 1, LOOKED_AT).round().astype(np.int64))]
    kept = states.of(ids)
    if type(method).personal is Method.personal or not set(method.client_init(fed.x0)) <= set(kept):
        return {}
    models = method.personal(kept, x, fed.layout.trained)
    each = torch.stack([_worth(fed, int(i), model) for i, model in zip(ids, models, strict=True)]).double()
    accuracy, loss = each.unbind(1)
    found = {"personal_loss": float(loss.mean()), "personal_loss_worst": float(loss.max())}
    if accuracy.isnan().any():
        return found
    return {
        "personal_accuracy": float(accuracy.mean()),
        "personal_accuracy_worst": float(accuracy.min()),
        **found,
    }


def _worth(fed: Federation, client: int, x: Tensor) -> Tensor:
    """Accuracy (NaN where labels are no classes) and loss of a client's model x (d,)."""
    parameters, y = unflatten(x, fed.model), fed.test.y
    losses, right = [], []
    for start in range(0, len(fed.test), PIECE):
        some = fed.test.part(slice(start, start + PIECE))
        out = forward(fed.model, parameters, some.x)
        losses.append(fed.loss(out, some.y))
        if (predicted := fed.loss.predicted(out)) is not None:
            right.append((predicted == some.y).float().reshape(len(some), -1).mean(1))
    weight = torch.ones(len(y), dtype=torch.float64, device=y.device)
    if y.dim() == 1 and not y.is_floating_point():
        first = int(fed.starts[client])
        own = fed.train.y[first : first + int(fed.sizes[client])]
        count = max(fed.classes, int(y.max()) + 1, int(own.max()) + 1)
        share = own.bincount(minlength=count) / y.bincount(minlength=count).clamp_min(1)
        weight = share.double()[y] if share[y].any() else weight
    weight /= weight.sum()
    accuracy = weight @ torch.cat(right).double() if right else weight.new_tensor(torch.nan)
    return torch.stack([accuracy, weight @ torch.cat(losses).double()])
