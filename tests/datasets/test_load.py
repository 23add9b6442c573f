"""Data sets: shapes, scaling, the fixed partition, real files, and what is said where files are missing."""

from __future__ import annotations

import gzip
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from fedsim.check import Invalid
from fedsim.datasets.load import CIFAR10, MNIST, Blobs, Digits, FashionMNIST
from fedsim.datasets.vision import vision_datasets


def test_digits_are_whole_stratified_and_always_the_same() -> None:
    from sklearn.datasets import load_digits

    a, b, raw = Digits().load(), Digits().load(), load_digits()
    assert torch.equal(a.train.x, b.train.x)
    assert a.classes == 10
    assert a.train.x.shape == (1442, 1, 8, 8)
    assert a.test.x.shape == (355, 1, 8, 8)
    everything = torch.cat([a.train.x, a.test.x]).flatten(1) * 16
    assert sorted(everything.tolist()) == sorted(raw.data.tolist())
    for label in range(10):
        count = int((raw.target == label).sum())
        assert int((a.test.y == label).sum()) == count // 5


def test_scaling() -> None:
    unit, standard = Digits().load(), Digits("standard").load()
    assert unit.train.x.min() == 0
    assert unit.train.x.max() == 1
    mean, std = unit.train.x.double().mean(), unit.train.x.double().std(correction=0)
    for a, b in [(unit.train, standard.train), (unit.test, standard.test)]:
        torch.testing.assert_close(b.x.double(), (a.x.double() - mean) / std, rtol=1e-5, atol=1e-5)


def need(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        pytest.skip(f"no real data: {folder} has no {name}")
    return folder


def test_mnist_from_its_files(data_folder: Path) -> None:
    need(data_folder, "MNIST")
    data = MNIST().load()
    assert data.train.x.shape == (60000, 1, 28, 28)
    assert data.test.x.shape == (10000, 1, 28, 28)
    assert data.train.x.is_contiguous()
    assert (data.train.x.dtype, data.train.y.dtype) == (torch.float32, torch.int64)
    assert (data.train.y[:5].tolist(), data.test.y[:5].tolist()) == ([5, 0, 4, 1, 9], [7, 2, 1, 0, 4])
    # the constants that the literature normalises with
    assert data.train.x.double().mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert data.train.x.double().std().item() == pytest.approx(0.3081, abs=5e-5)


def test_the_writers_of_mnist(data_folder: Path) -> None:
    need(data_folder, "QMNIST")
    writers = MNIST().groups(60000)
    assert writers is not None
    assert writers.shape == (60000,)
    sizes = writers.unique(return_counts=True)[1]
    assert (len(sizes), int(sizes.min()), int(sizes.max())) == (539, 19, 131)


def test_cifar_from_its_files(data_folder: Path) -> None:
    need(data_folder, "cifar-10-batches-py")
    data = CIFAR10("standard").load()
    assert data.train.x.shape == (50000, 3, 32, 32)
    assert data.test.x.shape == (10000, 3, 32, 32)
    assert data.train.x.is_contiguous()
    assert torch.bincount(data.train.y).tolist() == [5000] * 10
    # the constants that the literature normalises with, and torchvision's own reading of one picture
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    picture, label = vision_datasets().CIFAR10(data_folder, train=False)[3]
    pixels = torch.from_numpy(np.array(picture)) / 255
    torch.testing.assert_close(data.test.x[3].permute(1, 2, 0) * std + mean, pixels, atol=5e-4, rtol=0)
    assert data.test.y[3] == label


@pytest.mark.parametrize("part", ["train", "test"])
def test_mnist_is_what_torchvision_reads(data_folder: Path, part: str) -> None:
    need(data_folder, "MNIST")
    theirs, ours = vision_datasets().MNIST(data_folder, train=part == "train"), getattr(MNIST().load(), part)
    assert torch.equal((ours.x * 255).round().to(torch.uint8)[:, 0], theirs.data)
    assert torch.equal(ours.y, theirs.targets)


def write_small_set(root: Path, name: str) -> None:
    """A data set of 5 + 5 pictures in the layout of MNIST."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 28, 0, 0, 0, 28])
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(5 * 28 * 28))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 5, 0, 1, 2, 0, 1]))


@pytest.mark.parametrize("source", [MNIST(), FashionMNIST()])
def test_a_folder_without_the_set_is_named(source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(Invalid, match=r"FashionMNIST|MNIST: not found in .*nowhere.*FEDSIM_DATA must name"):
        source.load()
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_an_error_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_set(tmp_path, "MNIST")
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    for length in (100, 10, 4, 3, 0):
        images.write_bytes(images.read_bytes()[:length])
        with pytest.raises(Invalid, match="FEDSIM_DATA"):
            MNIST().load()


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_each_picture_has_a_label(
    part: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of three examples among those of five, as that of another part would be."""
    write_small_set(tmp_path, "MNIST")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    file = tmp_path / "MNIST" / "raw" / f"{part}-{kind}-ubyte"
    whole, head = file.read_bytes(), 16 if kind == "images-idx3" else 8
    file.write_bytes(whole[:7] + bytes([3]) + whole[8 : head + (len(whole) - head) // 5 * 3])
    with pytest.raises(
        Invalid, match=rf"{part}-labels-idx1-ubyte: \d labels; there must be \d, as .*{part}-images"
    ):
        MNIST().load()


def test_a_file_in_the_place_of_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_set(tmp_path, "MNIST")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    folder = tmp_path / "MNIST" / "raw"
    (folder / "train-images-idx3-ubyte").write_bytes((folder / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(Invalid, match="FEDSIM_DATA"):
        MNIST().load()


def test_the_writers_are_those_of_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_set(tmp_path, "MNIST")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    file = tmp_path / "QMNIST" / "raw" / "qmnist-train-labels-idx2-int.gz"
    file.parent.mkdir(parents=True)
    table = np.arange(5 * 8, dtype=">i4").tobytes()
    whole = gzip.compress(bytes(12) + table)
    file.write_bytes(whole)
    groups = MNIST().load().groups
    assert groups is not None
    assert groups.tolist() == [2, 10, 18, 26, 34]
    broken = whole[:12] + bytes([whole[12] ^ 255]) + whole[13:]
    for damaged in (whole[:-10], whole[: len(whole) // 2], broken, b"garbage", gzip.compress(b"")):
        file.write_bytes(damaged)
        with pytest.raises(Invalid, match=r"qmnist-train-labels-idx2-int.gz: a damaged file"):
            MNIST().load()
    for rows, said in (
        (table[:32], "1 rows"),
        (table + table[:32], "6 rows"),
        (table[:-3], "a damaged file"),
    ):
        file.write_bytes(gzip.compress(bytes(12) + rows))
        with pytest.raises(Invalid, match=rf"qmnist-train-labels-idx2-int.gz: {said}"):
            MNIST().load()


def test_without_the_variable_the_set_is_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    downloads = []

    def download(self) -> None:
        downloads.append(self.root)
        write_small_set(Path(self.root), "MNIST")

    monkeypatch.setattr(vision_datasets().MNIST, "download", download)
    for _ in range(2):
        data = MNIST().load()
    assert data.train.y.tolist() == [0, 1, 2, 0, 1]
    assert data.classes == 3
    assert data.groups is None
    assert len(downloads) == 1
    assert [found.name for found in tmp_path.iterdir()] == ["data"]


def test_a_download_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def download(self) -> None:
        (Path(self.root) / "half").write_text("")
        raise URLError("no network")

    monkeypatch.setattr(vision_datasets().MNIST, "download", download)
    with pytest.raises(Invalid, match=r"no network.*FEDSIM_DATA"):
        MNIST().load()
    assert not list(tmp_path.iterdir())


def test_blobs_follow_their_seed_alone() -> None:
    a, b, c = (
        Blobs(train=30, test=7).load(),
        Blobs(train=30, test=7).load(),
        Blobs(train=30, test=7, seed=1).load(),
    )
    assert torch.equal(a.train.x, b.train.x)
    assert not torch.equal(a.train.x, c.train.x)
    assert (a.train.x.shape, len(a.test), a.classes) == ((30, 20), 7, 10)
    still = Blobs(train=20, test=10, noise=0.0).load()
    assert torch.equal(still.train.x[:10], still.test.x)  # centres only


def test_scaling_depends_on_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client's pixels changed, all others' stay as they were."""
    read = Digits.read

    def changed(self: Digits) -> object:
        (x, y), test, white = read(self)
        x[0] = 16.0
        return (x, y), test, white

    before = Digits("standard").load().train.x
    monkeypatch.setattr(Digits, "read", changed)
    after = Digits("standard").load().train.x
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])
