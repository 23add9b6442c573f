"""One client after the other, in plain code: the specification that every other engine is held to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.federation import Federation
from fedsim.machine.threads import one_thread
from fedsim.round import Messages, answer
from fedsim.types import State


@one_thread()
def rows(
    fed: Federation, states: State, told: State, round: int, ids: NDArray[np.int64]
) -> tuple[State, Messages]:
    after = {name: torch.empty_like(value) for name, value in states.items()}
    messages = []
    for j, client in enumerate(ids.tolist()):
        at = {name: value[client] for name, value in told.items()} if fed.experiment.method.peer else told
        state = {name: value[j] for name, value in states.items()}
        answered = answer(fed, client, state, at, round)
        for name, value in answered.state.items():
            after[name][j] = value
        messages.append(answered.message)
    return after, Messages(torch.stack(messages))
