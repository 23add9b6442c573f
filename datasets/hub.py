"""Data sets of Hugging Face, from a local folder or the hub; the library is asked for when data are loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Chance, Count, File, Invalid, Natural
from fedsim.datasets.files import assembled, data_root, matched, require_room
from fedsim.datasets.text import Tokenizer, tokens_of
from fedsim.held import tensor
from fedsim.types import Data, Dataset, Examples, Inputs


@dataclass(frozen=True)
class HuggingFace(Data):
    """A data set of Hugging Face: a folder of `save_to_disk` or of .parquet files, or a name on the hub.

    HuggingFace("ylecun/mnist", x="image"); HuggingFace("clinic", x=("age", "dose"), y="ill", owner="hospital")

    x          the column of inputs, pictures (to [0, 1]), numbers or text; several columns: inputs by name
    tokenizer  of text, to `length` tokens: cut, or filled with 0
    part       which of the set's splits is for training; test: another one, or the share that is drawn for it
    Needs `pip install 'fedsim-robust[datasets]'`. No code of the set is run. A revision keeps what the hub gives.
    """

    path: File
    x: str | tuple[str, ...] = "image"
    y: str = "label"
    owner: str | None = None
    part: str = "train"
    test: Chance | str = "test"
    tokenizer: Tokenizer | None = None
    length: Count = 128
    revision: str | None = None
    seed: Natural = 0

    def load(self) -> Dataset:
        parts = _parts(self.path, self.revision)
        whole, owners = self._examples(self._part(parts, self.part, "part"))
        where = f"HuggingFace {self.path}"
        if isinstance(self.test, float):
            return assembled(whole, self.test, self.seed, where, owners)
        held, theirs = self._examples(self._part(parts, self.test, "test"))
        return assembled(whole, held, self.seed, where, owners, theirs)

    def _part(self, parts: Any, name: str, field: str) -> Any:
        if name not in parts:
            raise Invalid(f"HuggingFace.{field} = {name!r}: {self.path} has {', '.join(map(str, parts))}")
        names = (self.x,) if isinstance(self.x, str) else self.x
        for column in (*names, self.y, *([self.owner] if self.owner else [])):
            if column not in parts[name].column_names:
                raise Invalid(
                    f"HuggingFace: {self.path} has no column {column!r}; it has {', '.join(parts[name].column_names)}"
                )
        return parts[name]

    def _examples(self, part: Any) -> tuple[Examples, Any]:
        names = (self.x,) if isinstance(self.x, str) else self.x
        inputs = {name: self._column(part, name) for name in names}
        x: Inputs = inputs if len(inputs) > 1 else inputs[names[0]]
        y = tensor(np.asarray(part[self.y][:]), f"HuggingFace.y = {self.y!r}")
        return matched(x, y, f"HuggingFace {self.path}"), self.owner and np.asarray(
            part[self.owner][:]
        ).astype(str)

    def _column(self, part: Any, name: str) -> Tensor:
        where, first = f"HuggingFace.x = {name!r}", part[0][name]
        if isinstance(first, str):
            if self.tokenizer is None:
                raise Invalid(f"{where}: is text; must have a tokenizer, such as Characters()")
            require_room(8 * len(part) * self.length, where)
            return torch.stack([self._tokens(text, self.tokenizer) for text in part[name]])
        picture = hasattr(first, "convert")
        shape = np.asarray(first).shape
        require_room(4 * len(part) * float(np.prod(shape or 1)), where)
        rows = [np.asarray(value) for value in part[name]]
        if other := next((row.shape for row in rows if row.shape != shape), None):
            raise Invalid(f"{where}: rows of shapes {shape} and {other}; must be of one")
        whole = tensor(np.stack(rows), where)
        if not picture:
            return whole
        pixels = whole.unsqueeze(1) if whole.dim() == 3 else whole.movedim(-1, 1)
        return pixels.float().div_(255).contiguous()

    def _tokens(self, text: str, tokenizer: Tokenizer) -> Tensor:
        tokens = tokens_of(tokenizer, text, "HuggingFace.tokenizer")[: self.length]
        return torch.nn.functional.pad(tokens, (0, self.length - len(tokens)))


def _parts(path: str, revision: str | None) -> Any:
    """The splits of a set by name; raises `Invalid` where it cannot be had."""
    try:
        datasets: Any = import_module("datasets")  # a type checker would take the folder of this name
        if not hasattr(datasets, "load_dataset"):  # a folder of this name where Python was started
            raise ImportError
    except ImportError:
        raise Invalid("HuggingFace: not installed; pip install 'fedsim-robust[datasets]'") from None
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # it tells of each try; the last one is told below
    folder = next((p for p in (Path(path).expanduser(), data_root() / path) if p.is_dir()), None)
    try:
        if folder is None:
            found = datasets.load_dataset(path, revision=revision)
        elif any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder))
    except Exception as error:  # of the network, of the hub, of the files
        reason = " ".join(str(error).split())[:160]
        raise Invalid(
            f"HuggingFace.path = {path!r}: cannot be loaded ({type(error).__name__}: {reason})"
        ) from None
    return found if isinstance(found, dict) else {"train": found}
