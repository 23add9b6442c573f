"""One client after the other, in plain code: the specification that every other engine is held to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.federation import Federation
from fedsim.machine.threads import one_thread
from fedsim.round import Messages, answer, told_to
from fedsim.types import Round, State, at


@one_thread()
def rows(
    fed: Federation, states: State, told: State, round: Round, ids: NDArray[np.int64]
) -> tuple[State, Messages]:
    after = {name: torch.empty_like(value) for name, value in states.items()}
    messages = []
    for j, client in enumerate(ids.tolist()):
        here = told_to(fed, told, ids, j)
        state = {name: value[j] for name, value in states.items()}
        answered = answer(fed, client, state, here, int(at(round, j)))
        for name, value in answered.state.items():
            after[name][j] = value
        messages.append(answered.message)
    return after, Messages(torch.stack(messages))
