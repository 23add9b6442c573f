"""Data of one's own: arrays, files, tables, text; what they become, whose examples are whose, and what is refused."""

from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fedsim.check import Invalid
from fedsim.config import codec
from fedsim.datasets import files, load, text
from fedsim.datasets.files import apart, require_room
from fedsim.datasets.holdout import Holdout
from fedsim.datasets.load import (
    CIFAR100,
    FEMNIST,
    Arrays,
    Blobs,
    HuggingFace,
    Npz,
    Shakespeare,
    Table,
    Text,
    Torchvision,
)
from fedsim.datasets.split import IID, Dirichlet, FeatureShift, Indices, Natural
from fedsim.datasets.text import Characters
from fedsim.experiments.resolve import change
from fedsim.federation import Federation
from fedsim.losses import Squared
from fedsim.models import MLP, Logistic
from fedsim.privacy import ExampleDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import FedSGD, Mean
from fedsim.task import Task
from fedsim.types import Data, Dataset

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)), np.arange(30) % 3
OWNER = np.array([f"clinic {i % 5}" for i in range(30)])


def experiment(data: Data, **changes: Any) -> Experiment:
    fields: dict[str, Any] = {"clients": 3, "rounds": 1, "split": IID(), **changes}
    return Experiment(task=Task(data, Logistic()), method=FedSGD(0.1), rule=Mean(), **fields)


def by_parity(dataset: Dataset, n: int, rng: np.random.Generator) -> list[Any]:
    places = np.arange(len(dataset.train))
    return [places[places % n == i] for i in range(n)]


# ---------------------------------------------------------------- held out
def test_a_share_of_each_owner_s_examples_is_held_out() -> None:
    owners = torch.tensor([0] * 10 + [1] * 5 + [2])
    train, test = apart(16, 0.2, 0, owners)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(16))
    assert torch.bincount(owners[test], minlength=3).tolist() == [2, 1, 0]
    assert [len(part) for part in apart(2, 0.99, 0)] == [1, 1]
    again, other = apart(16, 0.2, 0, owners), apart(16, 0.2, 1, owners)
    assert torch.equal(again[1], test)
    assert not torch.equal(other[1], test)


# ---------------------------------------------------------------- arrays
def test_arrays_are_known_by_what_is_in_them() -> None:
    one, same, other = experiment(Arrays(X, Y)), experiment(Arrays(X.copy(), Y)), experiment(Arrays(X + 1, Y))
    assert one == same
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert pickle.loads(pickle.dumps(one)).task.data.load().train.x.shape == (24, 4)
    read = Experiment.from_json(one.to_json())
    assert read == one
    assert read.fingerprint == one.fingerprint
    with pytest.raises(Invalid, match=r"Arrays.x = 'float32 30x4 .*was in the memory of another process"):
        read.task.data.load()


def test_arrays_keep_kinds_owners_and_their_test_part() -> None:
    data = Arrays(
        {"a": X, "b": np.arange(30)}, X[:, 0], owner=OWNER, test=({"a": X[:2], "b": [0, 1]}, X[:2, 1])
    ).load()
    assert isinstance(data.train.x, dict)
    assert (data.train.x["a"].dtype, data.train.x["b"].dtype) == (torch.float32, torch.int64)
    assert (data.train.y.dtype, data.classes, len(data.test)) == (torch.float32, 0, 2)
    assert data.groups is not None
    assert data.groups.tolist() == [i % 5 for i in range(30)]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Arrays(X, Y[:-1]).load(), "Arrays: 30 inputs and 29 labels"),
        (lambda: Arrays({"a": X, "b": X[1:]}, Y).load(), "Arrays: 30 and 29 inputs and 30 labels"),
        (lambda: Arrays(X, Y, owner=[*OWNER[1:], None]), "Arrays.owner: has nothing for example 29"),
        (lambda: Arrays(X, Y, owner=np.where(Y == 1, np.nan, Y)), "Arrays.owner: has nothing for example 1"),
        (
            lambda: Arrays(X, Y - 1).load(),
            "Arrays: the label -1; classes must be numbered from 0 on, below 1,000,000",
        ),
        (lambda: Arrays(X, Y + 10**12).load(), "Arrays: the label 100000000000"),
        (
            lambda: Federation(experiment(Arrays((9 * X).astype(int), Y))),
            "model = Logistic: raises RuntimeError for inputs int64 (4,)",
        ),
        (
            lambda: Federation(experiment(Arrays(X, Y * 1.0))),
            "labels are float32 from 0 to 2; must be whole numbers",
        ),
        (lambda: Arrays(X, ["yes"] * 30), "Arrays.y: holds words or other objects; must be numbers"),
        (lambda: Arrays(X + 1j, Y), "Arrays.x: complex numbers"),
        (lambda: Arrays(X, Y, owner=OWNER[:3]).load(), "Arrays: 3 owners of 30 examples"),
        (lambda: Arrays(X, Y, test=1.0), "Arrays.test: must be a share above 0 and below 1"),
        (lambda: Arrays(X[:1], Y[:1]).load(), "Arrays: 1 examples; must be two or more"),
    ],
)
def test_arrays_that_do_not_fit(make: Any, sentence: str) -> None:
    with pytest.raises(Invalid) as error:
        make()
    assert sentence in str(error.value)


# ---------------------------------------------------------------- npz
def test_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=(X * 255).astype(np.uint8), y=Y, who=OWNER, x_test=X[:3].astype(np.uint8), y_test=Y[:3])
    data = Npz(str(path), owner="who", scale=(0.0, 255.0)).load()
    assert (len(data.train), len(data.test), data.classes) == (25, 5, 3)  # one of each owner's six
    assert float(data.train.x.max()) <= 1  # type: ignore[union-attr]
    assert data.test_groups is not None
    assert sorted(data.test_groups.tolist()) == [0, 1, 2, 3, 4]
    assert len(Npz(str(path), test=("x_test", "y_test")).load().test) == 3
    assert len(Npz(str(path), test=str(path)).load().test) == 30
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    assert len(Npz("a.npz").load().train) == 24
    for fields, sentence in (
        ({"x": "z"}, r"has no array 'z'; it has who, x, x_test, y, y_test"),
        ({"path": "b.npz"}, r"Npz.path = 'b.npz': not found"),
        ({"owner": "whose"}, "has no array 'whose'"),
        ({"x": "who"}, "Npz.x = 'who': holds words"),
    ):
        with pytest.raises(Invalid, match=sentence):
            Npz(**{"path": "a.npz", **fields}).load()
    np.savez(tmp_path / "bad.npz", x=np.array([{}, {}]), y=Y[:2])
    (tmp_path / "no.npz").write_bytes(b"no zip")
    for name in ("bad.npz", "no.npz"):
        with pytest.raises(Invalid, match=r"not an \.npz file of plain arrays"):
            Npz(name).load()


def test_a_file_beyond_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    pd.DataFrame({"a": X[:, 0], "b": Y}).to_csv(tmp_path / "a.csv", index=False)
    sources = [Npz(str(tmp_path / "a.npz")), Table(str(tmp_path / "a.csv"), label="b")]
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 100)
    sources += [Text(str(tmp_path / "a.txt")), Blobs()]
    (tmp_path / "leaf" / "train").mkdir(parents=True)
    (tmp_path / "leaf" / "train" / "a.json").write_text(json.dumps({"users": [], "user_data": {}}))
    sources.append(FEMNIST(str(tmp_path / "leaf")))
    (tmp_path / "leaves" / "oak").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "leaves" / "oak" / "a.png")
    sources.append(Torchvision("ImageFolder", folder=str(tmp_path / "leaves"), test=0.5))
    monkeypatch.setattr(files, "available", lambda: 50)
    for data in sources:
        with pytest.raises(Invalid, match=r"GiB of memory left; allowed is what fits"):
            data.load()


def test_what_is_small_on_disk_and_beyond_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wb") as packed:
        packed.write(b"x" * 10**7)
    pd.DataFrame({"a": [f"w{i % 900}" for i in range(1800)], "b": [0, 1] * 900}).to_csv(tmp_path / "a.csv")
    monkeypatch.setattr(files, "available", lambda: 1_000_000)
    with pytest.raises(Invalid, match=r"a column for each of its words: .* GiB of memory left"):
        Table(str(tmp_path / "a.csv"), label="b", features=("a",)).load()
    held: list[int] = []
    monkeypatch.setattr(
        text, "require_room", lambda size, field: held.append(size) or require_room(size, field)
    )
    with pytest.raises(Invalid, match="GiB of memory left"):
        Text(str(tmp_path / "a.txt.gz")).load()
    assert max(held) <= 4 * text.PIECE  # one piece was unpacked, not all


def test_a_damaged_gz_is_no_text(tmp_path: Path) -> None:
    raw = bytearray(gzip.compress(bytes(range(32, 127)) * 50))
    raw[20:24] = b"\xff\xff\xff\xff"
    (tmp_path / "a.txt.gz").write_bytes(raw)
    with pytest.raises(Invalid, match="not a readable text"):
        Text(str(tmp_path / "a.txt.gz")).load()


# ---------------------------------------------------------------- tables
FRAME = pd.DataFrame(
    {
        "age": [20.0, 70, 45, 33, 51, 60],
        "sex": ["f", "m", "f", "f", "m", "m"],
        "smokes": [True, False] * 3,
        "where": ["a", "a", "b", "b", "c", "c"],
        "ill": ["no", "yes"] * 3,
        "cost": [1, 2.5, 3, 4, 5, 6],
    }
)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    FRAME.to_csv("t.csv", index=False) if ending == "csv" else FRAME.to_parquet("t.parquet")
    monkeypatch.setattr("fedsim.datasets.table.ROWS", 4)  # in two pieces
    data = Table(f"t.{ending}", label="ill", owner="where", scale=(("age", 50.0, 20.0),), test=0.5).load()
    whole = torch.cat([data.train.x, data.test.x])  # type: ignore[list-item]
    order = torch.cat([data.train.x, data.test.x])[:, 0].argsort()  # type: ignore[list-item]
    expected = np.stack(
        [(FRAME.age - 50) / 20, FRAME.sex == "f", FRAME.sex == "m", FRAME.smokes, FRAME.cost], 1
    )
    torch.testing.assert_close(
        whole[order], torch.from_numpy(expected[FRAME.age.argsort()].astype(np.float32))
    )
    labels = torch.cat([data.train.y, data.test.y])[order]
    assert labels.tolist() == (FRAME.ill == "yes").astype(int)[FRAME.age.argsort()].tolist()
    assert data.classes == 2
    assert data.test_groups is not None
    assert sorted(data.test_groups.tolist()) == [0, 1, 2]
    numbers = Table(
        f"t.{ending}", label="cost", features=("age",), kind="numbers", scale=(("cost", 1.0, 2.0),)
    ).load()
    assert (numbers.classes, numbers.train.y.dtype) == (0, torch.float32)
    assert float(torch.cat([numbers.train.y, numbers.test.y]).sum()) == pytest.approx(
        sum((FRAME.cost - 1) / 2)
    )
    assert len(Table(f"t.{ending}", label="ill", test=f"t.{ending}").load().test) == 6


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"owner": "whose"}, "Table.owner = 'whose': t.csv has no such column; it has age, sex"),
        ({"label": "il"}, "Table.label = 'il': t.csv has no such column"),
        ({"features": ("ages",)}, "Table.features[0] = 'ages'"),
        ({"scale": (("ages", 0.0, 1.0),)}, "Table.scale[0] = 'ages'"),
        ({"label": "cost"}, "Table.label = 'cost': holds 2.5; classes must be words or whole numbers"),
        ({"kind": "numbers"}, "Table.label = 'ill': holds words; for these kind must be 'classes'"),
        ({"path": "gap.csv"}, "Table: row 2 of gap.csv has nothing in column 'age'"),
        (
            {"path": "gap.csv", "label": "age", "features": ("cost",), "fill": 0.0},
            "row 2 of gap.csv has nothing",
        ),
        ({"path": "junk.csv"}, "not a readable table"),
        ({"path": "junk.parquet"}, "not a readable table"),
        ({"test": "none.csv"}, "Table.test = 'none.csv': not found"),
    ],
)
def test_tables_that_are_refused(
    fields: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    FRAME.to_csv("t.csv", index=False)
    FRAME.assign(age=FRAME.age.where(FRAME.index != 2)).to_csv("gap.csv", index=False)
    Path("junk.csv").write_bytes(bytes(range(128, 256)))
    Path("junk.parquet").write_bytes(b"PAR1")
    with pytest.raises(Invalid) as error:
        Table(**{"path": "t.csv", "label": "ill", **fields}).load()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gap_may_be_filled(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    FRAME.assign(age=FRAME.age.where(FRAME.index != 2)).to_csv(path, index=False)
    data = Table(str(path), label="ill", features=("age",), fill=-1.0).load()
    assert float(min(data.train.x.min(), data.test.x.min())) == -1  # type: ignore[union-attr]


# ---------------------------------------------------------------- text
def test_windows_and_what_follows_them(tmp_path: Path) -> None:
    path = tmp_path / "t.txt.gz"
    text = "ANN:\n" + "abcdefghij" * 4 + "\n\nBOB:\n" + "0123456789" * 4 + "\n\nNOBODY said\n\nANN:\nxyz"
    path.write_bytes(gzip.compress(text.encode()))
    data = Text(str(path), by="speaker", window=5, tokenizer=Characters("abcdefghij"), test=0.25).load()
    x, y = data.train.x, data.train.y
    assert isinstance(x, torch.Tensor)
    assert (data.classes, x.shape[1], y.shape) == (11, 5, x.shape)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert x[0].tolist() == [0, 1, 2, 3, 4]
    assert y[0].tolist() == [1, 2, 3, 4, 5]
    assert (x[data.groups == 1] == 10).all()  # not of the alphabet
    # Ann's 44 characters are cut at 33, Bob's 40 at 30: windows of 6 on either side, none across
    assert [int((data.groups == i).sum()) for i in (0, 1)] == [6, 5]
    last = Text(str(path), by="speaker", window=5, target="last", step=1, test=0.25).load()
    assert last.train.y.shape == (28 + 25,)
    with pytest.raises(Invalid, match="no owner has so much text"):
        Text(str(path), window=500).load()
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        (tmp_path / "folder" / f"{name}.txt").write_text(name * 100)
    folder = Text(str(tmp_path / "folder"), by="file", window=5).load()
    assert folder.groups is not None
    assert folder.groups.unique().tolist() == [0, 1]


def test_the_speakers_of_shakespeare(data_folder: Path) -> None:
    if not (data_folder / "tinyshakespeare").is_dir():
        pytest.skip(f"no real data: {data_folder} has no tinyshakespeare")
    data = Shakespeare().load()
    assert data.classes == 66  # 65 characters, and none of any other
    assert int(data.train.y.max()) == 64
    assert data.groups is not None
    assert (
        len(data.groups.unique()) == 141
    )  # as the folder's notes say, of those with 1,000 characters or more


def tokens(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def raising(text: str) -> list[int]:
    return [{"a": 1}[word] for word in text.split()]


def halves(text: str) -> list[float]:
    return [0.5 for _ in text]


def test_a_tokenizer_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a bb ccc " * 50)
    base = experiment(Text(str(tmp_path / "t.txt"), window=6))
    own = change(base, [f"task.data.tokenizer={__name__}:tokens(size=4)"])
    data = own.task.data.load()
    assert (data.classes, data.train.x[0].tolist()) == (4, [1, 2, 3, 1, 2, 3])  # type: ignore[index,union-attr]
    assert codec.decode(Experiment, own.to_dict(), own=True) == own
    for function, sentence in (
        ("tokens(size=3)", "Text.tokenizer = tokens: gives tokens outside of 0 to 2"),
        ("raising(size=3)", "Text.tokenizer = raising: raises KeyError: 'bb'"),
        ("halves(size=3)", "Text.tokenizer = halves: gives float64 of shape .*; must be a list of whole"),
    ):
        with pytest.raises(Invalid, match=sentence):
            change(base, [f"task.data.tokenizer={__name__}:{function}"]).task.data.load()


# ---------------------------------------------------------------- LEAF, CIFAR-100
def test_femnist_as_leaf_writes_it(tmp_path: Path) -> None:
    for part, users in (("train", ["w1", "w2", "w3"]), ("test", ["w2", "w4"])):
        (tmp_path / part).mkdir()
        held = {u: {"x": [[0.5] * 784] * 2, "y": [3, 61]} for u in users}
        (tmp_path / part / "all.json").write_text(
            json.dumps({"users": users, "num_samples": [2] * len(users), "user_data": held})
        )
    data = FEMNIST(str(tmp_path)).load()
    assert (data.train.x.shape, data.classes) == ((6, 1, 28, 28), 62)  # type: ignore[union-attr]
    assert data.groups is not None
    assert data.test_groups is not None
    assert (data.groups.tolist(), data.test_groups.tolist()) == ([0, 0, 1, 1, 2, 2], [1, 1, 3, 3])
    assert len(FEMNIST(str(tmp_path), users=2).load().test) == 2
    (tmp_path / "test" / "all.json").write_text(
        '{"users": ["a"], "user_data": {"a": {"x": [[1]], "y": [0]}}}'
    )
    with pytest.raises(Invalid, match="not a file of LEAF"):
        FEMNIST(str(tmp_path)).load()


def test_cifar_100_reads_arrays_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = RNG.integers(0, 256, (4, 3072)).astype(np.uint8)
    held = {b"data": pixels, b"fine_labels": [0, 99, 5, 5], b"coarse_labels": [0, 19, 1, 1]}
    for part in ("train", "test"):
        (folder / part).write_bytes(pickle.dumps(held, protocol=2))
    data = CIFAR100().load()
    torch.testing.assert_close(data.train.x, torch.from_numpy(pixels).view(4, 3, 32, 32) / 255)
    assert (data.classes, CIFAR100(labels="coarse").load().classes) == (100, 20)

    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    for bad in (
        Harm(),
        {b"data": np.array([Harm()], object)},
        {b"data": pixels[:, :5], b"fine_labels": [0] * 4},
    ):
        (folder / "train").write_bytes(pickle.dumps(bad, protocol=2))
        with pytest.raises(Invalid, match=r"not a pickle of arrays|must hold data"):
            CIFAR100().load()
    assert not (tmp_path / "harm").exists()


# ---------------------------------------------------------------- Hugging Face
def test_hugging_face_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets.config")  # the package itself may be found as this folder
    hub = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    hub.disable_progress_bars()
    columns = {
        "v": X.tolist(),
        "text": ["abc", "hello there"] * 15,
        "said": ["abc", None] * 15,
        "label": Y.tolist(),
        "site": OWNER.tolist(),
    }
    whole = hub.Dataset.from_dict(columns)
    hub.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "packed").mkdir()
    hub.Dataset.from_dict(columns).to_parquet(str(tmp_path / "packed" / "train.parquet"))
    for folder in ("saved", "packed"):
        data = HuggingFace(str(tmp_path / folder), x="v", owner="site", test=0.2).load()
        assert (len(data.train), len(data.test), data.classes) == (25, 5, 3)
        assert isinstance(data.train.x, torch.Tensor)
        assert data.train.x.shape[1:] == (4,)
        assert data.groups is not None
    saved = HuggingFace(str(tmp_path / "saved"), x="text", tokenizer=Characters(), length=8, test=0.2)
    assert saved.load().train.x.shape == (24, 8)  # type: ignore[union-attr]
    for fields, sentence in (
        ({"x": "w"}, "has no column 'w'; it has v, text, said, label, site"),
        ({"test": "test"}, "HuggingFace.test = 'test': .* has train"),
        ({"x": "text", "tokenizer": None}, "is text; must have a tokenizer"),
        ({"x": "said"}, "HuggingFace.tokenizer = Characters: 'None' is no text"),
        ({"y": "text"}, "HuggingFace.y = 'text'"),
    ):
        with pytest.raises(Invalid, match=sentence):
            replace(saved, **fields).load()


# ---------------------------------------------------------------- splits
def test_a_split_as_lists_or_a_function(tmp_path: Path) -> None:
    data = Blobs(train=6, test=3)
    lists = experiment(data, split=Indices([[0, 3], np.array([1, 4]), (2, 5)]))  # type: ignore[arg-type]
    assert [shard.tolist() for shard in Federation(lists).shards] == [[0, 3], [1, 4], [2, 5]]
    assert Experiment.from_json(lists.to_json()) == lists
    own = change(lists, [f"split={__name__}:by_parity"])
    assert [shard.tolist() for shard in Federation(own).shards] == [[0, 3], [1, 4], [2, 5]]
    assert codec.decode(Experiment, own.to_dict(), own=True) == own
    assert experiment(data, split=by_parity) == own  # type: ignore[arg-type]
    shifted = FeatureShift(split=by_parity, noise=0.1)  # type: ignore[arg-type]
    assert [shard.tolist() for shard in Federation(experiment(data, split=shifted)).shards] == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]
    (tmp_path / "s.json").write_text("[[0, 3], [1, 4], [2, 5]]")
    assert len(Federation(experiment(data, split=Indices(str(tmp_path / "s.json")))).shards) == 3
    (tmp_path / "s.json").write_text("[[0.5]]")
    with pytest.raises(Invalid, match="not a list of lists in JSON"):
        Federation(experiment(data, split=Indices(str(tmp_path / "s.json"))))
    with pytest.raises(Invalid, match="3 hold data, and Indices has 1 lists"):
        Federation(experiment(data, split=Indices([[0]])))  # type: ignore[arg-type]


def test_owners_stay_together_and_classes_are_not_made_of_numbers() -> None:
    data = Arrays(X, X[:, 0], owner=OWNER)
    fed = Federation(
        replace(experiment(data, split=Natural(), clients=5), task=Task(data, MLP(4), loss=Squared()))
    )
    groups = data.load().groups
    assert groups is not None
    assert all(len(groups[shard].unique()) == 1 for shard in fed.shards)
    with pytest.raises(Invalid, match="deals by class"):
        Federation(replace(fed.experiment, split=Dirichlet()))


# ---------------------------------------------------------------- over a network
@pytest.mark.parametrize(
    "data", [Npz("a.npz"), Table("a.csv", label="y"), Text("a.txt"), FEMNIST(), HuggingFace("a/b")]
)
def test_what_comes_over_a_network_names_no_file(data: Data) -> None:
    sent = experiment(data)
    with pytest.raises(Invalid, match=r"task\.data\.path = .*names a file of this machine"):
        Experiment.from_json(sent.to_json())
    assert codec.decode(Experiment, json.loads(sent.to_json()), own=True) == sent
    other = experiment(Npz("a.npz")).to_dict()
    other["split"] = {"name": "Indices", "parts": "s.json"}
    other["task"]["data"] = load.Blobs().__dict__ | {"name": "Blobs"}
    with pytest.raises(Invalid, match=r"split\.parts = 's.json': names a file"):
        Experiment.from_dict(other)


def test_what_a_table_reveals_is_noted_in_a_private_run(tmp_path: Path) -> None:
    frame = pd.DataFrame({"ward": ["a", "b"] * 20, "age": range(40), "ill": ["no", "yes"] * 20})
    frame.to_csv(tmp_path / "a.csv", index=False)
    data = Table(str(tmp_path / "a.csv"), label="ill", scale=(("age", 20.0, 20.0),))
    task = Task(data=data, model=Logistic())
    e = Experiment(task=task, split=IID(), clients=2, method=FedSGD(0.1), rule=Mean(), rounds=1)
    note = (
        "outside of the guarantee, read off all rows of the data: which words column 'ward' holds, which classes label "
        "'ill' has"
    )
    assert note in run(replace(e, privacy=ExampleDP(clip=1.0, noise=1.0, delta=1e-3))).notes
    assert run(e).notes == []
    held = replace(
        e, task=replace(task, data=Holdout(data)), privacy=ExampleDP(clip=1.0, noise=1.0, delta=1e-3)
    )
    assert note in run(held).notes
