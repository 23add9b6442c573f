"""Seconds a round on devices of this machine, with and without what `fedsim deploy device` does for speed.

python -m fedsim.deploy.bench [devices] [rounds]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from unittest.mock import patch

from fedsim.deploy import local, roles
from fedsim.deploy.trial import Trial
from fedsim.experiments.resolve import resolve

POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"


@contextmanager
def plain(command: roles.Command, log: IO[bytes] | None = None) -> Iterator[roles.Command]:
    """In place of `roles.forking`: Flower's own command for every message."""
    yield command


def measure(devices: int, rounds: int, *, fork: bool, poll: str, fast: bool) -> float:
    """The mean of a round after the first, which loads what is loaded once."""
    trial = Trial(test_mode=True, red_team=True, timeout=300.0, fast=fast)
    experiment = local.fitted(resolve("quickstart").main, devices, rounds)
    with (
        TemporaryDirectory(prefix="fedsim-") as place,
        patch.object(roles, "forking", roles.forking if fork else plain),
        patch.dict(roles.QUIET, {POLL: poll}),
    ):
        summary = local.try_out(local.site(Path(place) / "site", devices, trial), experiment, trial)
        return float(summary["seconds_per_round"])


def main(devices: int = 2, rounds: int = 6) -> None:
    print(f"| {devices} devices, {rounds} rounds | seconds a round |\n| --- | --- |")
    for name, fork, poll, fast in (
        ("Flower's own command, as shipped", False, "1.0", False),
        ("Flower's own command, task poll 0.05 s", False, "0.05", False),
        ("fork server (as `fedsim deploy device` runs it)", True, "0.05", False),
        ("fork server, `--fast`", True, "0.05", True),
    ):
        print(f"| {name} | {measure(devices, rounds, fork=fork, poll=poll, fast=fast):.1f} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
