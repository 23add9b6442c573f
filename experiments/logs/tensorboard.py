"""A run's metrics as TensorBoard event files, written as the run goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim.callbacks import Callback
from fedsim.experiments.logs.numbers import asked_for, numbers
from fedsim.record import Metrics
from fedsim.spec import Experiment


class TensorBoard(Callback):
    """Each number of a line as a scalar at its round, in event files of FOLDER."""

    def __init__(self, folder: Path | str) -> None:
        self.module, self.folder = asked_for("torch.utils.tensorboard", "tensorboard"), folder
        self.writer: Any = None

    def begin(self, experiment: Experiment) -> None:
        self.writer = self.module.SummaryWriter(str(self.folder))

    def __call__(self, line: Metrics) -> None:
        for name, value in numbers(line).items():
            self.writer.add_scalar(name, value, line["round"])

    def end(self) -> None:
        self.writer.close()
