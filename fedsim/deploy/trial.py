"""How an experiment is run on a deployment, and which ones are."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.asynchronous import Asynchronous
from fedsim.check import Component, Finite, Invalid
from fedsim.flower.payload import Payload
from fedsim.pilot import require_none
from fedsim.spec import Experiment


@dataclass(frozen=True)
class Trial(Component):
    """How an experiment is run. `timeout`: seconds that a round waits for answers."""

    test_mode: bool = False
    red_team: bool = False
    payload: Payload = "float32"
    timeout: Finite = 60.0

    def check(self, experiment: Experiment) -> None:
        """Raise `Invalid` for an experiment that does not run like this."""
        attack, privacy = experiment.attack, experiment.privacy
        if experiment.clock is not None:
            raise Invalid("clock: simulates seconds, and devices take seconds of their own; allowed is none")
        if attack is not None and attack.forges and isinstance(experiment.method, Asynchronous):
            raise Invalid(
                f"attack = {type(attack).__name__} with method = {type(experiment.method).__name__}: when a forged "
                "message comes no device says; allowed are attacks on data, or a simulation with clock.byzantine"
            )
        if attack is not None and not self.red_team:
            raise Invalid(
                f"attack = {type(attack).__name__}: a deployment runs attacks only as a red team's exercise, "
                "with --red-team (red-team = true)"
            )
        require_none(experiment)
        if privacy is not None and privacy.level == "central" and not self.test_mode:
            raise Invalid(
                f"privacy = {type(privacy).__name__}: the server's noise comes from the experiment's seed, which every "
                "device gets, and hides nothing from it; allowed is --test-mode (test-mode = true), or clients' noise"
            )
