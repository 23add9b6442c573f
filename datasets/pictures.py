"""Any set of pictures that torchvision reads, by its name there."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Chance, Count, File, Finite, Invalid, Natural, nearest
from fedsim.datasets.files import assembled, data_root, downloaded, matched, require_room
from fedsim.datasets.vision import vision_datasets
from fedsim.types import Data, Dataset, Examples


@dataclass(frozen=True)
class Torchvision(Data):
    """A set of torchvision's by name, pictures (channels, height, width) in [0, 1] and one class each.

    Torchvision("SVHN"); Torchvision("ImageFolder", folder="leaves", size=32, test=0.2)

    folder   where it lies, by default the folder FEDSIM_DATA, laid out as torchvision does; without that variable it
             is downloaded into `data` here
    size     pictures are scaled to size x size; needed where they differ
    scale    (mean, std), constants: then (pixel - mean) / std
    test     which of its splits is for testing where it has several by name, or the share that is drawn for it
    options  further words of its constructor, as in (("split", "balanced"),) of EMNIST
    """

    name: str
    folder: File | None = None
    size: Count | None = None
    scale: tuple[float, Finite] | None = None
    test: Chance | str = "test"
    options: tuple[tuple[str, str], ...] = ()
    seed: Natural = 0

    def load(self) -> Dataset:
        root = data_root() / (self.folder or "")
        source = partial(self._source(), **dict(self.options))
        train, held = self._parts(source)
        where = f"Torchvision {self.name}"
        whole = self._read(source, root, train)
        if held is None and not isinstance(self.test, float):
            raise Invalid(
                f"Torchvision.test = {self.test!r}: {self.name} comes in one part; allowed is a share, such as 0.2"
            )
        if held is None or isinstance(self.test, float):
            return assembled(whole, float(self.test), self.seed, where)
        return assembled(whole, self._read(source, root, held), self.seed, where)

    def _source(self) -> Callable[..., Any]:
        sets = vision_datasets()
        names = [n for n in sets.__all__ if inspect.isclass(getattr(sets, n))]
        if self.name not in names:
            raise Invalid(
                f"Torchvision.name = {self.name!r}: torchvision has no such set; {nearest(self.name, names)}"
            )
        found: Callable[..., Any] = getattr(sets, self.name)
        return found

    def _parts(self, source: partial[Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The words that name the training part, and those of the test part where there is another."""
        if _takes(source, "train"):
            return {"train": True}, {"train": False}
        if _takes(source, "split") and "split" not in source.keywords:
            return {"split": "train"}, {"split": self.test}
        return {}, None

    def _read(self, source: partial[Any], root: Path, words: dict[str, Any]) -> Examples:
        """The pictures of a part; raises `Invalid` where they are not there, or of another kind."""
        try:
            if "FEDSIM_DATA" not in os.environ and self.folder is None and _takes(source, "download"):
                downloaded(partial(source, **words), root)
            part = source(root, **words)
            count = len(part)
        except Exception as error:  # of as many kinds as there are sets
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise Invalid(
                f"Torchvision {self.name}: not found in {root.absolute()} ({reason}): FEDSIM_DATA, or `folder`, must "
                "name a folder that holds it"
            ) from None
        if not count:
            raise Invalid(f"Torchvision {self.name}: no picture in {root.absolute()}")
        pixels, labels, mode = torch.empty(0), [], ""
        for at in range(count):
            picture, label = self._item(part, at)
            mode = mode or ("L" if picture.mode in ("1", "L") else "RGB")
            one = self._pixels(picture, mode)
            if not at:
                require_room(4 * count * one.numel(), f"Torchvision {self.name}")
                pixels = torch.empty(count, *one.shape)
            if one.shape != pixels.shape[1:]:
                shapes = " and ".join(f"{t[1]} x {t[2]}" for t in (pixels.shape[1:], one.shape))
                raise Invalid(f"Torchvision {self.name}: pictures of {shapes}; `size` makes them alike")
            pixels[at] = one
            labels.append(int(label))
        if self.scale is not None:
            pixels.sub_(self.scale[0]).div_(self.scale[1])
        return matched(pixels, torch.tensor(labels), f"Torchvision {self.name}")

    def _item(self, part: Any, at: int) -> tuple[Any, int]:
        try:
            picture, label = part[at]
            if not hasattr(picture, "convert"):
                raise TypeError(f"an item of {type(picture).__name__}")
            return picture, int(label)
        except (OSError, TypeError, ValueError, AttributeError) as error:
            raise Invalid(
                f"Torchvision {self.name}: its item {at} is no picture of one class ({str(error)[:100]})"
            ) from None

    def _pixels(self, picture: Any, mode: str) -> Tensor:
        """A picture (channels, height, width) in [0, 1]."""
        picture = picture.convert(mode)
        if self.size is not None:
            picture = picture.resize((self.size, self.size))
        values = torch.from_numpy(np.array(picture)).float().div_(255)
        return values.unsqueeze(0) if values.dim() == 2 else values.permute(2, 0, 1)


def _takes(source: partial[Any], word: str) -> bool:
    """Whether a class, or one that it hands its words on to, takes this one."""
    kind: Any = source.func
    return any(word in inspect.signature(base.__init__).parameters for base in kind.__mro__[:-1])
