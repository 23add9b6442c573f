"""How a deployment, or a device, is: from its folder, and from the counters of its process where one runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from math import isinf
from pathlib import Path
from urllib.request import urlopen

from fedsim.check import Invalid
from fedsim.deploy.site import Place, Site
from fedsim.deploy.spent import Spent
from fedsim.link.identity import identity_of

LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
Counters = dict[tuple[str, str], float]


def status(folder: Path) -> list[str]:
    """Lines for people; raises `Invalid` where the folder is neither a server's nor a device's."""
    if (folder / "uplink.toml").exists():
        return list(_device(Place(folder)))
    if (folder / "deploy.toml").exists():
        return list(_server(Site(folder)))
    raise Invalid(f"{folder}: neither a device's folder (uplink.toml) nor a deployment's (deploy.toml)")


def counters(port: int) -> Counters | None:
    """The counters at a port of the loopback address, by name and labels; None where nobody answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as page:
            text = page.read(1 << 22).decode()
    except OSError:
        return None
    return {(name, labels or ""): float(value) for name, labels, value in LINE.findall(text)}


def _server(site: Site) -> Iterator[str]:
    now = counters(site.link.metrics) if site.link.metrics else None
    if not site.link.metrics:
        yield "server       unknown: deploy.toml has metrics = 0"
    elif now is None:
        yield f"server       no run now (nobody answers at the metrics port, {site.link.metrics})"
    else:
        done, rounds = (int(now.get((name, ""), 0)) for name in ("fedsim_round", "fedsim_rounds"))
        took = now.get(("fedsim_link_bytes_total", 'side="server",way="in"'), 0.0)
        yield f"server       running: {done} of {rounds} rounds, {took / 1e6:.1f} MB of answers"
    yield f"certificate  {_left(site.server / 'server.pem')}"
    yield f"{'client':>6}  {'key':16}  {'now':12}  {'set aside':>9}  certificate ends"
    for entry in site.registry.entries():
        label = f'node="{entry.node}"'
        there = "?" if now is None else "online" if now.get(("fedsim_link_node_online", label)) else "away"
        aside = 0 if now is None else int(now.get(("fedsim_set_aside_total", label), 0))
        there = there if entry.revoked is None else "revoked"
        yield f"{entry.client:>6}  {entry.key[:16]}  {there:12}  {aside:>9}  {entry.ends}"


def _device(place: Place) -> Iterator[str]:
    terms, uplink = place.terms, place.uplink
    now = counters(uplink.metrics) if uplink.metrics else None
    running = "unknown: uplink.toml has metrics = 0" if not uplink.metrics else "not running"
    if now is not None:
        online = now.get(("fedsim_link_online", 'side="device"'))
        answered = int(now.get(("fedsim_link_messages_total", 'side="device",way="out"'), 0))
        running = f"{'connected' if online else 'trying to connect'}, {answered} answers since it was started"
    yield f"device       client {terms.client} of {uplink.server}: {running}"
    yield f"certificate  {_left(place.certificate)}"
    spent = Spent.of(place.folder)
    yield f"rounds       {spent.rounds} of {terms.max_rounds} answered, over all runs"
    if terms.epsilon is None or terms.delta is None:
        yield "budget       none"
    else:
        epsilon = spent.epsilon(terms.delta) if spent.rounds else 0.0
        left = "used up: something went out without privacy" if isinf(epsilon) else f"{epsilon:.4g} spent"
        yield f"budget       {left} of epsilon = {terms.epsilon:g} at delta = {terms.delta:g}"


def _left(path: Path) -> str:
    try:
        ends = identity_of(path.read_bytes()).ends
    except (OSError, ValueError):
        return f"none that can be read ({path.name})"
    days = (ends - datetime.now(UTC)).days
    return f"ends {ends:%Y-%m-%d}, in {days} days" + (": fedsim deploy renew" if days < 30 else "")
