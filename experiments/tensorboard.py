"""A run's metrics as TensorBoard event files, written as the run goes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedsim.check import Invalid
from fedsim.record import Metrics
from fedsim.runner import Progress


class Events:
    """A `progress` that also writes each new line of metrics to FOLDER; raises `Invalid` without TensorBoard."""

    def __init__(self, folder: Path, also: Progress) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise Invalid("tensorboard: not installed; pip install 'fedsim[tensorboard]'") from None
        self.also, self.written = also, 0
        self.writer: Any = SummaryWriter(str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    def __call__(self, round: int, metrics: Metrics) -> None:
        self.also(round, metrics)
        if metrics and metrics["round"] > self.written:
            self.written = metrics["round"]
            for name, value in metrics.items():
                if name != "round" and isinstance(value, int | float):
                    self.writer.add_scalar(name, value, self.written)
