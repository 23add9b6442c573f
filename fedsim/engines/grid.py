"""Flower's ClientApp and messages in this process: every payload goes through Flower's own serialisation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.federation import Federation
from fedsim.flower.client import Simulated, client_app, recollect, remember
from fedsim.flower.grid import FIRST_NODE, InProcessGrid
from fedsim.flower.memory import Memory
from fedsim.flower.remote import Remote
from fedsim.round import Messages
from fedsim.types import Round, State

RUN = "grid"


def rows(
    fed: Federation, states: State, told: State, round: Round, ids: NDArray[np.int64]
) -> tuple[State, Messages]:
    """The nodes' memories are filled from `states` and read back, so that a run here resumes like any other."""
    grid = InProcessGrid(client_app(Simulated(lambda order: fed)), fed.experiment.clients)
    nodes = {client: FIRST_NODE + client for client in ids.tolist()}
    for j, node in enumerate(nodes.values()):
        memory = Memory({name: value[j] for name, value in states.items()})
        remember(grid.contexts[node], RUN, memory)
    remote = Remote(grid, nodes, run=RUN)
    _, messages, answered = remote(fed, {"accepted": torch.full((len(ids),), -1)}, told, round, ids)
    if len(answered) < len(ids):
        raise RuntimeError(remote.set_aside[0].reason)
    after = {name: torch.empty_like(value) for name, value in states.items()}
    for j, node in enumerate(nodes.values()):
        pending = recollect(grid.contexts[node], RUN).pending
        assert pending is not None
        for name, value in pending.state.items():
            after[name][j] = value
    return after, messages
