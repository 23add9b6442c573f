"""A run's metrics in MLflow."""

from __future__ import annotations

from typing import Any

from fedsim.callbacks import Callback
from fedsim.experiments.logs.numbers import asked_for, numbers, settings
from fedsim.record import Metrics
from fedsim.spec import Experiment

LONGEST = 500  # characters of a parameter


class MLflow(Callback):
    """A run in an experiment of MLflow's: its parameters are the definition, its metrics the numbers of each line.

    MLflow("robustness", uri="sqlite:///mlflow.db"); without `uri` it is where MLflow's own settings say. The
    fingerprint is the run's name.
    """

    def __init__(self, name: str, uri: str | None = None) -> None:
        module = asked_for("mlflow", "mlflow")
        self.client: Any = module.MlflowClient(tracking_uri=uri)
        self.name, self.run = name, ""

    def begin(self, experiment: Experiment) -> None:
        found = self.client.get_experiment_by_name(self.name)
        place = found.experiment_id if found else self.client.create_experiment(self.name)
        self.run = self.client.create_run(place, run_name=experiment.fingerprint).info.run_id
        for name, value in settings(experiment).items():
            self.client.log_param(self.run, name, str(value)[:LONGEST])

    def __call__(self, line: Metrics) -> None:
        for name, value in numbers(line).items():
            self.client.log_metric(self.run, name, value, step=line["round"])

    def end(self) -> None:
        self.client.set_terminated(self.run)
