"""How far a model is from a stationary point of what the honest clients train on together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.federation import Federation
from fedsim.gradients import one_client
from fedsim.types import Batch

PIECE = 2000  # examples at a time


def gradient_norm(fed: Federation, x: Tensor) -> float:
    """||grad f(x)||^2 in float64, f = (1/h) sum_i f_i, of the h honest clients that hold examples.

    f_i is the mean loss of client i's training examples, and the task's (l2 / 2) ||x||^2. Pieces are added up in
    float64, in order.
    """
    sizes = fed.sizes[: fed.experiment.honest]
    count, holders = int(sizes.sum()), int((sizes > 0).sum())
    each = np.repeat(1 / (holders * np.maximum(sizes, 1)), sizes)
    weight = torch.from_numpy(each).to(fed.x0)
    total = torch.zeros_like(x, dtype=torch.float64)
    for start in range(0, count, PIECE):
        some = slice(start, min(start + PIECE, count))
        examples = fed.train.part(some)
        total += one_client(fed.model, x, Batch(examples.x, examples.y, weight[some]), loss=fed.loss)
    return float(fed.regularise(total, x.double()).square().sum())
