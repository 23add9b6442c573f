"""How an experiment is run on a deployment, and which ones are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.check import Component, Finite, Invalid
from fedsim.flower.payload import Payload
from fedsim.spec import Experiment


@dataclass(frozen=True)
class Trial(Component):
    """What a trial runs, and how; the fields are those of the app's configuration."""

    test_mode: bool = False
    red_team: bool = False
    payload: Payload = "float32"
    timeout: Finite = 60.0
    fast: bool = False

    @property
    def terms(self) -> dict[str, bool]:
        """What the devices of this machine agree to for its sake."""
        return {"test_mode": self.test_mode, "red_team": self.red_team}

    def check(self, experiment: Experiment) -> None:
        """Raise `Invalid` for an experiment that does not run like this."""
        attack, privacy = experiment.attack, experiment.privacy
        if attack is not None and not self.red_team:
            raise Invalid(
                f"attack = {type(attack).__name__}: a deployment runs attacks only as a red team's exercise, "
                "with --red-team (red-team = true)"
            )
        if privacy is not None and privacy.level == "central" and not self.test_mode:
            raise Invalid(
                f"privacy = {type(privacy).__name__}: the server's noise comes from the experiment's seed, which every "
                "device gets, and hides nothing from it; allowed is --test-mode (test-mode = true), or clients' noise"
            )

    def config(
        self, experiment: Experiment, nodes: Mapping[int, int], out: Path, resume: bool
    ) -> dict[str, Any]:
        return {
            "experiment": experiment.to_json(),
            "clients": json.dumps(nodes),
            "out": str(out),
            "resume": resume,
            "test-mode": self.test_mode,
            "red-team": self.red_team,
            "payload": self.payload,
            "timeout": self.timeout,
            "poll": 0.1 if self.fast else 0.0,
        }
