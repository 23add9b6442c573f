"""Flower's simulation runtime: clients are tasks on Ray, on this machine or in the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedsim.check import Invalid
from fedsim.engines import Ask
from fedsim.federation import Federation
from fedsim.flower.client import SIMULATED
from fedsim.flower.remote import Remote, discover

T = TypeVar("T")


def host(fed: Federation, body: Callable[[Ask], T]) -> T:
    """`body` as the ServerApp of a simulation, with its nodes to ask.

    Clients read the experiment from its JSON and load its data where they run. Their states live in the nodes and end
    with them, so a run does not resume: a checkpoint of this engine serves no other. Raises `Invalid` without Ray.
    """
    if find_spec("ray") is None:
        raise Invalid(
            "engine = 'ray': Ray is not installed; pip install 'fedsim-robust[ray]', or use another engine"
        )
    results: list[T] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = discover(grid, fed.computing)
        results.append(body(Remote(grid, nodes, run=str(context.run_id))))

    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    backend: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    with warnings.catch_warnings():  # run_simulation announces its end, and Ray's start leaves sockets behind
        warnings.simplefilter("ignore")
        run_simulation(server, SIMULATED, fed.experiment.clients, backend_config=backend)
    return results[0]
