"""An experiment, or a Flower ServerApp, on the devices of a deployment."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from fedsim.check import Invalid
from fedsim.config.catalog import imported
from fedsim.deploy.app import record_outcome, serve
from fedsim.deploy.site import Link, Site
from fedsim.deploy.trial import Trial
from fedsim.federation import Federation
from fedsim.flower.private import SUPERLINK_NODE_ID
from fedsim.link import journal
from fedsim.link.frame import Limits
from fedsim.link.grid import LinkGrid
from fedsim.link.identity import server_credentials
from fedsim.spec import Experiment


@contextmanager
def serving(site: Site, size: int | None = None) -> Iterator[LinkGrid]:
    """The grid of a deployment's devices, at its port. `size`: bytes of an answer, where less than the settings say."""
    link = site.link
    try:
        key, certificate, authority = (
            (site.server / name).read_bytes() for name in ("server.key", "server.pem", "ca.crt")
        )
    except OSError as error:
        raise Invalid(
            f"{error.filename}: cannot be read ({error.strerror}): fedsim deploy check {site.folder}"
        ) from None
    limits = Limits(size=min(size or link.bytes, link.bytes))
    credentials = server_credentials(key, certificate, authority)
    with journal.exposed(link.metrics), _opened(link, credentials, site, limits) as grid:
        yield grid


def _opened(link: Link, credentials: Any, site: Site, limits: Limits) -> LinkGrid:
    try:
        return LinkGrid(
            link.bound, credentials, site.registry.known, limits=limits, grace=link.grace, budget=link.budget
        )
    except RuntimeError as error:  # what gRPC raises for a port that is taken
        raise Invalid(f"port {link.port}: cannot be opened, is another server running? ({error})") from None


def run_what(
    site: Site, what: str, changes: Sequence[str], trial: Trial, out: Path, resume: bool, enough: int
) -> dict[str, Any]:
    """Run what a command line names: a recipe, a TOML file, a function of one's own, or a Flower ServerApp."""
    from fedsim.experiments.resolve import resolve

    journal.to_stderr()
    app = imported(what, "what") if ":" in what else None
    if isinstance(app, ServerApp):
        run_app(site, app, _config(changes), enough, trial.timeout)
        return {"app": what, "over": True}
    return run_there(site, resolve(what, changes).main, trial, out, resume)


def _config(changes: Sequence[str]) -> dict[str, Any]:
    """The run configuration of a ServerApp: numbers and true or false where a text reads so."""
    found: dict[str, Any] = {}
    for text in changes:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Invalid(f"{text!r}: allowed is NAME=VALUE, as in num-server-rounds=3")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def run_there(
    site: Site, experiment: Experiment, trial: Trial, out: Path, resume: bool = False
) -> dict[str, Any]:
    """Run the experiment on the deployment's devices, to its end; what it came to."""
    trial.check(experiment)
    fed = Federation(experiment)
    nodes = site.registry.nodes()
    missing = sorted(set(range(fed.computing)) - set(nodes))
    if missing:
        raise Invalid(
            f"client {missing[0]} has no device: the experiment has {fed.computing} clients that compute"
        )
    with serving(site, _largest(fed)) as grid:
        wait_for(grid, {nodes[i] for i in range(fed.computing)}, trial.timeout)
        result, remote = serve(grid, fed, trial, nodes, out, resume)
    return {"transport": "grpc", "tls": "mutual", **record_outcome(out, result, remote)}


def run_app(site: Site, app: ServerApp, config: Mapping[str, Any], clients: int, patience: float) -> None:
    """Run a Flower ServerApp on the deployment's devices, once so many of them are there."""
    with serving(site) as grid:
        nodes = set(site.registry.nodes().values())
        wait_for(grid, nodes, patience, clients)
        app(grid, Context(grid.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(config)))


def wait_for(grid: LinkGrid, nodes: set[int], patience: float, enough: int | None = None) -> None:
    """Wait for these nodes, or for `enough` of them, for so many seconds; then go on with those that are there."""
    until, enough = monotonic() + patience, len(nodes) if enough is None else enough
    while len(there := nodes & set(grid.get_node_ids())) < enough and monotonic() < until:
        sleep(0.05)
    if len(there) < enough:
        journal.say("going on", logging.WARNING, online=len(there), of=enough, after_seconds=patience)


def _largest(fed: Federation) -> int:
    """Bytes of an answer, the most: four numbers of float32 for each parameter, and a header."""
    return 16 * max(fed.width, fed.x0.numel()) + (1 << 20)
