"""A run's metrics in Weights & Biases."""

from __future__ import annotations

from typing import Any

from fedsim.callbacks import Callback
from fedsim.experiments.logs.numbers import asked_for, numbers, settings
from fedsim.record import Metrics
from fedsim.spec import Experiment


class WandB(Callback):
    """A run in a project: its config is the definition, its history the numbers of each line at their round.

    WandB("robustness", group="krum"); further words are those of wandb.init. The experiment's fingerprint names the
    run, so that a resumed one goes on in it.
    """

    def __init__(self, project: str, **words: Any) -> None:
        self.module, self.words = asked_for("wandb", "wandb"), {"project": project, **words}
        self.run: Any = None

    def begin(self, experiment: Experiment) -> None:
        own = {"id": experiment.fingerprint, "resume": "allow", "config": settings(experiment)}
        self.run = self.module.init(**{**own, **self.words})

    def __call__(self, line: Metrics) -> None:
        self.run.log(numbers(line), step=line["round"])

    def end(self) -> None:
        self.run.finish()
