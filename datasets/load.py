"""Data sets as whole tensors: inputs (N, channels, height, width) float32, labels (N,) int64."""

from __future__ import annotations

import gzip
import os
import zlib
from abc import abstractmethod
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Count, Invalid, Natural, NonNegative
from fedsim.datasets.arrays import Arrays, Npz
from fedsim.datasets.files import data_root, downloaded, require_room
from fedsim.datasets.holdout import Holdout
from fedsim.datasets.hub import HuggingFace
from fedsim.datasets.leaf import FEMNIST
from fedsim.datasets.pickled import arrays
from fedsim.datasets.pictures import Torchvision
from fedsim.datasets.table import Table
from fedsim.datasets.text import Shakespeare, Text
from fedsim.datasets.vision import vision_datasets
from fedsim.types import Data, Dataset, Examples, single

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "FEMNIST",
    "MNIST",
    "Arrays",
    "Blobs",
    "Digits",
    "FashionMNIST",
    "Holdout",
    "HuggingFace",
    "Npz",
    "Shakespeare",
    "Table",
    "Text",
    "Torchvision",
]

Labelled = tuple[Tensor, Tensor]  # pixels (N, C, H, W) of any number type, labels (N,)


@dataclass(frozen=True)
class Images(Data):
    """Pictures. `scaling` "unit": pixels in [0, 1]; "standard": then (x - mean) / std, channel by channel.

    Mean and std are constants of the set, as published, so that no client's data decide what another's look like.
    """

    mean: ClassVar[tuple[float, ...]]  # of each channel
    std: ClassVar[tuple[float, ...]]

    scaling: Literal["unit", "standard"] = "unit"

    @abstractmethod
    def read(self) -> tuple[Labelled, Labelled, int]:
        """Training part, test part, and the pixel value of white."""

    def groups(self, count: int) -> Tensor | None:
        """A natural owner of each training example, of which there are `count`."""
        return None

    def load(self) -> Dataset:
        train, test, white = self.read()
        fit, held = (Examples(pixels.float().div_(white), y.long()) for pixels, y in (train, test))
        if self.scaling == "standard":
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
            for part in (fit, held):
                single(part.x, type(self).__name__).sub_(mean).div_(std)
        return Dataset(fit, held, int(fit.y.max()) + 1, self.groups(len(fit)))


@dataclass(frozen=True)
class Digits(Images):
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries: no file, no download.

    Fixed partition: of each class, in the order of the file, every fifth example is for testing (355), the
    rest for training (1,442).
    """

    mean, std = (0.3051358,), (0.3761576,)

    def read(self) -> tuple[Labelled, Labelled, int]:
        # the file itself: importing scikit-learn takes a second
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        table = torch.from_numpy(np.loadtxt(Path(str(file)), delimiter=","))
        pixels, y = table[:, :-1].unflatten(1, (1, 8, 8)), table[:, -1].long()
        place = (
            torch.nn.functional.one_hot(y).cumsum(0).gather(1, y[:, None]).squeeze(1)
        )  # 1, 2, ... within a class
        test = place % 5 == 0
        return (pixels[~test], y[~test]), (pixels[test], y[test]), 16


class ReadByTorchvision(Images):
    """A set that torchvision reads: from the folder FEDSIM_DATA, or from `data` here, into which it is
    downloaded.

    The folder is laid out as torchvision lays it out. Raises `Invalid` where the files are missing or
    damaged.
    """

    def read(self) -> tuple[Labelled, Labelled, int]:
        name, root = type(self).__name__, data_root()
        source = getattr(vision_datasets(), name)
        try:
            if "FEDSIM_DATA" not in os.environ:
                downloaded(source, root)
            train, test = (self.tensors(source(root, train=part)) for part in (True, False))
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split()) or "a damaged file"
            where = f"{name}: not found in {root.absolute()} ({reason})"
            raise Invalid(f"{where}: FEDSIM_DATA must name a folder that holds it") from None
        return train, test, 255

    def tensors(self, part: Any) -> Labelled:
        """Pixels and labels of a torchvision data set."""
        return part.data.unsqueeze(1), part.targets


class Idx(ReadByTorchvision):
    """MNIST and its kin, whose files need no torchvision to be read: importing it takes longer than all else."""

    def read(self) -> tuple[Labelled, Labelled, int]:
        folder = data_root() / type(self).__name__ / "raw"
        pictures = [folder / f"{part}-images-idx3-ubyte" for part in ("train", "t10k")]
        labels = [folder / f"{part}-labels-idx1-ubyte" for part in ("train", "t10k")]
        try:
            train, test = (
                (_idx(x, 3).unsqueeze(1), _idx(y, 1)) for x, y in zip(pictures, labels, strict=True)
            )
        except (OSError, ValueError):
            train, test, _ = super().read()  # downloads what is missing, or says what is wrong
        for (x, y), beside, file in zip((train, test), pictures, labels, strict=True):
            if len(x) != len(y):
                raise Invalid(
                    f"{file}: {len(y)} labels; there must be {len(x)}, as pictures in {beside.name}"
                )
        return train, test, 255


@dataclass(frozen=True)
class MNIST(Idx):
    """Handwritten digits, 60,000 + 10,000, grey 28 x 28 (LeCun, Cortes, Burges).

    `groups` is the writer of each training digit (539 of them) where the labels of QMNIST (Yadav, Bottou,
    arXiv:1905.10498) lie beside it, QMNIST/raw/qmnist-train-labels-idx2-int.gz; otherwise None.
    """

    mean, std = (0.1307,), (0.3081,)

    def groups(self, count: int) -> Tensor | None:
        path = data_root() / "QMNIST" / "raw" / "qmnist-train-labels-idx2-int.gz"
        if not path.is_file():
            return None
        try:
            table = np.frombuffer(gzip.decompress(path.read_bytes()), ">i4", offset=12).reshape(-1, 8)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise Invalid(f"{path}: a damaged file ({error}); allowed is a whole one, or none") from None
        if len(table) != count:
            raise Invalid(f"{path}: {len(table)} rows; there must be {count}, one for each training example")
        return torch.from_numpy(table[:, 2].astype(np.int64))


@dataclass(frozen=True)
class FashionMNIST(Idx):
    """Pictures of clothes, 60,000 + 10,000, grey 28 x 28, ten classes (Xiao et al., arXiv:1708.07747)."""

    mean, std = (0.2860,), (0.3530,)


@dataclass(frozen=True)
class CIFAR10(ReadByTorchvision):
    """Small photographs, 50,000 + 10,000, colour 32 x 32, ten classes (Krizhevsky 2009).

    A std of (0.202, 0.199, 0.201), often seen, is a mean over pictures.
    """

    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def tensors(self, part: Any) -> Labelled:
        return torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)


@dataclass(frozen=True)
class CIFAR100(Images):
    """Small photographs, 50,000 + 10,000, colour 32 x 32, 100 "fine" classes in 20 "coarse" ones (Krizhevsky 2009).

    From the folder cifar-100-python in FEDSIM_DATA, its pickle files, of which arrays alone are read.
    """

    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

    labels: Literal["fine", "coarse"] = "fine"

    def read(self) -> tuple[Labelled, Labelled, int]:
        train, test = (self._part(part) for part in ("train", "test"))
        return train, test, 255

    def _part(self, part: str) -> Labelled:
        path = data_root() / "cifar-100-python" / part
        if not path.is_file():
            raise Invalid(
                f"CIFAR100: no file {path.absolute()}: FEDSIM_DATA must name the folder that holds it"
            )
        found = arrays(path)
        pixels, y = np.asarray(found.get("data")), np.asarray(found.get(f"{self.labels}_labels"))
        if (
            pixels.dtype != np.uint8
            or pixels.shape != (len(y) if y.ndim else 0, 3072)
            or y.dtype.kind not in "iu"
        ):
            raise Invalid(f"{path}: must hold data (N, 3072) of bytes and {self.labels}_labels (N,)")
        return torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), torch.from_numpy(y)


@dataclass(frozen=True)
class Blobs(Data):
    """Synthetic: balanced classes, x = centre_y + noise * N(0, I), centres from N(0, I); x (N, features)."""

    train: Count = 2000
    test: Count = 500
    features: Count = 20
    classes: Count = 10
    noise: NonNegative = 1.0
    seed: Natural = 0

    def load(self) -> Dataset:
        require_room(4 * (self.train + self.test + self.classes) * self.features, "Blobs")
        generator = torch.Generator().manual_seed(self.seed)
        centres = torch.randn(self.classes, self.features, generator=generator)

        def draw(count: int) -> Examples:
            y = torch.arange(count) % self.classes
            return Examples(
                centres[y] + self.noise * torch.randn(count, self.features, generator=generator), y
            )

        return Dataset(draw(self.train), draw(self.test), self.classes)


def _idx(path: Path, axes: int) -> Tensor:
    """The bytes of an IDX file in their shape; raises `ValueError` where it is another one, or damaged."""
    raw = path.read_bytes()
    if raw[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(f"{path.name}: not an IDX file of bytes along {axes} axes")
    shape = np.frombuffer(raw, ">i4", axes, offset=4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
