"""Sets of torchvision's by name: those in one part, in two, with a split by name; and what cannot be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.datasets import files
from fedsim.datasets.load import Torchvision

PIL = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)


def idx(path: Path, values: Any) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(head + values.astype(np.uint8).tobytes())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KMNIST's files, and a folder of pictures by class, some grey and some of another size."""
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        idx(raw / f"{part}-images-idx3-ubyte", RNG.integers(0, 256, (count, 28, 28)))
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 3)
    for kind, side in (("ash", 8), ("oak", 9)):
        (tmp_path / "leaves" / kind).mkdir(parents=True)
        for i in range(5):
            pixels = RNG.integers(0, 256, (side, side, 3)).astype(np.uint8)
            PIL.fromarray(pixels).save(tmp_path / "leaves" / kind / f"{i}.png")
    return tmp_path


def test_two_parts(folder: Path) -> None:
    data = Torchvision("KMNIST").load()
    assert (len(data.train), len(data.test), data.classes) == (6, 4, 3)
    raw = np.frombuffer((folder / "KMNIST/raw/train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    assert isinstance(data.train.x, Tensor)
    assert torch.equal(data.train.x, torch.tensor(raw.reshape(6, 1, 28, 28) / np.float32(255)))
    assert data.train.y.tolist() == [0, 1, 2, 0, 1, 2]
    half = Torchvision("KMNIST", scale=(0.5, 2.0)).load()
    assert isinstance(half.train.x, Tensor)
    torch.testing.assert_close(half.train.x, (data.train.x - 0.5) / 2)


def test_one_part_and_a_share(folder: Path) -> None:
    data = Torchvision("ImageFolder", folder="leaves", size=8, test=0.2).load()
    assert (len(data.train), len(data.test), data.classes) == (8, 2, 2)
    assert isinstance(data.train.x, Tensor)
    assert data.train.x.shape == (8, 3, 8, 8)
    first = np.asarray(PIL.open(folder / "leaves/ash/0.png")) / np.float32(255)
    everything = torch.cat([data.train.x, data.test.x])  # type: ignore[list-item]
    assert (everything == torch.tensor(first).permute(2, 0, 1)).all(3).all(2).all(1).any()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (Torchvision("KMIST"), "torchvision has no such set; did you mean KMNIST?"),
        (Torchvision("SVHN"), "Torchvision SVHN: not found in "),
        (Torchvision("ImageFolder", folder="nowhere"), "must name a folder that holds it"),
        (
            Torchvision("ImageFolder", folder="leaves", test=0.2),
            "pictures of 8 x 8 and 9 x 9; `size` makes them",
        ),
        (
            Torchvision("ImageFolder", folder="leaves", size=8),
            "Torchvision.test = 'test': ImageFolder comes in one part; allowed is a share, such as 0.2",
        ),
        (Torchvision("FakeData", test=0.5), "not found in"),
    ],
)
def test_what_cannot_be_read(folder: Path, data: Torchvision, sentence: str) -> None:
    with pytest.raises(Invalid, match=re.escape(sentence)) as error:
        data.load()
    assert "\n" not in str(error.value)


def test_more_than_the_memory_holds_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "available", lambda: 1000)
    with pytest.raises(Invalid, match=r"Torchvision KMNIST: .* of numbers"):
        Torchvision("KMNIST").load()
