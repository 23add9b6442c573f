"""What a run came to: figures, model, notes; used for inference, written to a folder and read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.check import Invalid
from fedsim.config import codec
from fedsim.keys import Keys
from fedsim.layout import flatten
from fedsim.models import Module
from fedsim.record import Record, read_manifest
from fedsim.spec import Experiment
from fedsim.task import Signature, evaluate
from fedsim.types import Examples, Inputs, forward, on_inputs

if TYPE_CHECKING:
    import pandas as pd

PIECE = 2000  # examples at a time


@dataclass(frozen=True)
class Result:
    """What a run came to. `frame` has a row for each evaluated round, `model` is a state_dict.

    result = fedsim.load("runs/quickstart-0123456789abcdef")  # or what fedsim.run gave back
    labels = result.predict(x)
    """

    experiment: Experiment
    frame: pd.DataFrame
    model: dict[str, Tensor]
    summary: dict[str, Any]
    signature: Signature
    notes: list[str] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """At the end; raises `Invalid` where labels are no classes."""
        if self.summary["accuracy"] is None:
            raise Invalid("accuracy: there is none where labels are numbers; the summary has the loss")
        return float(self.summary["accuracy"])

    @cached_property
    def network(self) -> nn.Module:
        """The network with the numbers that it has at the end, ready for inference."""
        net = self.experiment.task.network(
            self.signature, Keys(self.experiment.seed, self.experiment.clients)
        )
        net.load_state_dict(self.model, strict=False)  # buffers are as it was built with
        return net.eval()

    def outputs(self, x: Any) -> Tensor:
        """What the network puts out (b, ...) for inputs x (b, ...), scaled as the data set's: arrays, one or several.

        Raises `Invalid` where they are not those of the data set.
        """
        given = _inputs(x, self.signature)
        counts: list[int] = []
        on_inputs(lambda t: counts.append(len(t)), given)
        with torch.no_grad():
            pieces = [
                forward(self.network, {}, on_inputs(lambda t, at=at: t[at : at + PIECE], given))
                for at in range(0, max(1, counts[0]), PIECE)
            ]
        return torch.cat(pieces)

    def predict(self, x: Any) -> Tensor:
        """The labels for inputs x: the likeliest classes, or where labels are numbers these."""
        out = self.outputs(x)
        told = self.experiment.task.loss.predicted(out)
        if told is not None:
            return told.long()
        return out.squeeze(-1) if out.dim() > 1 and out.shape[-1] == 1 else out

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """Loss, and where labels are classes accuracy, on other examples, such as the test part after a `Holdout`."""
        return evaluate(self.network, self.experiment.task.loss, flatten(self.network), examples)

    def save(self, folder: Path | str) -> Path:
        """Write it as a record, which `load` and `fedsim report` read; a run with `out` has left one already.

        Raises `Invalid` where the folder holds a record.
        """
        place = Path(folder)
        if read_manifest(place) is not None:
            raise Invalid(f"{place}: holds the record of a run; allowed is a new folder")
        record = Record.open(self.experiment, place, resume=False)
        for row in self.frame.to_dict("records"):
            record.append({str(name): _plain(value) for name, value in row.items() if _there(name, value)})
        record.save_notes(self.notes)
        record.save_result({**self.summary, "out": None}, asdict(self.signature))
        record.save_model(self.model)
        return place


def load(folder: Path | str, net: nn.Module | None = None) -> Result:
    """The result that a run with `out`, or `Result.save`, has left in a folder.

    net  the network, where the run was given an object that its record can only name
    Raises `Invalid` where the folder holds no run that has come to its end.
    """
    import pandas as pd  # slow to import

    place = Path(folder)
    manifest = read_manifest(place)
    if manifest is None:
        raise Invalid(f"{place}: holds no record of a run")
    record = Record(place, manifest["fingerprint"])
    if not record.finished:
        raise Invalid(f"{place}: that run has not come to its end yet; resume it first")
    experiment = codec.decode(Experiment, manifest["experiment"], own=True)
    if net is not None:
        experiment = replace(experiment, task=replace(experiment.task, model=Module(net)))
    summary, signature = record.result()
    told = Signature(_shape(signature["shape"]), _named(signature["dtype"]), signature["outputs"])
    model = record.load_model()
    frame = pd.DataFrame(record.metrics())
    return Result(experiment, frame, model, {**summary, "out": str(place)}, told, record.notes)


def _inputs(x: Any, signature: Signature) -> Inputs:
    """Arrays as tensors of the shapes and types that a network takes."""
    shape, dtype = signature.shape, signature.dtype
    wanted = sorted(shape) if isinstance(dtype, dict) else len(shape) if isinstance(dtype, tuple) else 1
    given = sorted(x) if isinstance(x, dict) else len(x) if isinstance(x, tuple) else 1
    if wanted != given:
        raise Invalid(f"x: inputs {given}; must be {wanted}, as the data set's")

    def one(value: Any, form: tuple[int, ...], kind: str) -> Tensor:
        t = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
        if tuple(t.shape[1:]) != form or not t.dim():
            raise Invalid(f"x: shape {tuple(t.shape)}; must be (b, {', '.join(map(str, form))}), b examples")
        return t.to(getattr(torch, kind))

    if isinstance(dtype, dict):
        return {name: one(x[name], shape[name], dtype[name]) for name in dtype}
    if isinstance(dtype, tuple):
        return tuple(one(*parts) for parts in zip(x, shape, dtype, strict=True))
    return one(x, shape, dtype)


def _shape(value: Any) -> Any:
    """A shape, or several, of the lists that JSON has."""
    if isinstance(value, dict):
        return {name: tuple(shape) for name, shape in value.items()}
    return tuple(tuple(each) if isinstance(each, list) else each for each in value)


def _named(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _there(name: object, value: Any) -> bool:
    """Whether a line of the record has the value: a frame has NaN where it has none."""
    return name == "loss" or isinstance(value, list) or not (value is None or value != value)  # noqa: PLR0124 - NaN


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN
