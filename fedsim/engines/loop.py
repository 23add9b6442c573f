"""One client after the other, in plain code: the specification that every other engine is held to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.federation import Federation
from fedsim.round import answer
from fedsim.types import State


def rows(
    fed: Federation, states: State, x: Tensor, round: int, ids: NDArray[np.int64]
) -> tuple[State, Tensor]:
    after = {name: torch.empty_like(value) for name, value in states.items()}
    messages = []
    for j, client in enumerate(ids.tolist()):
        at = x[client] if fed.experiment.method.peer else x
        state = {name: value[j] for name, value in states.items()}
        state, message = answer(fed, client, state, at, round)
        for name, value in state.items():
            after[name][j] = value
        messages.append(message)
    return after, torch.stack(messages)
