"""What devices hold: files of every kind and functions, numbers to be met, several inputs, windows of text."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.config.untrusted import experiment_of
from fedsim.datasets.load import Arrays, Npz
from fedsim.datasets.split import Natural
from fedsim.deploy.app import serve
from fedsim.deploy.data import examples
from fedsim.deploy.local import Yard, prepare
from fedsim.deploy.server import serving
from fedsim.deploy.terms import Terms
from fedsim.deploy.trial import Trial
from fedsim.federation import Federation
from fedsim.link.answering import Host, Installed
from fedsim.link.device import Device, device_credentials
from fedsim.losses import Binary, CrossEntropy, Huber, Squared
from fedsim.models import LSTM, Logistic, own
from fedsim.privacy import ExampleDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import FedAvg, Mean
from fedsim.task import Task

TEST = Trial(test_mode=True, timeout=60.0)
RNG = np.random.default_rng(0)
M, CLASSES = 24, 5
X = RNG.normal(size=(M, 4)).astype(np.float32)
NUMBERS = (X @ np.array([1.0, -2.0, 0.5, 3.0]) + RNG.normal(size=M)).astype(np.float32)
TOKENS = RNG.integers(0, CLASSES, (M, 7))
OWNERS = np.repeat([0, 1], [M // 2 - 2, M // 2 + 2])
MODULE = """
import numpy as np

def load(name):
    held = np.load(name)
    return {"kind": held["kind"], "value": held["value"]}, held["y"]

def load0():
    return load("device0.npz")

def load1():
    x, y = load("device1.npz")
    return x, y
"""
PAIRS = """
import numpy as np

def held(i):
    found = np.load(f"device{i}.npz")
    return (found["kind"], found["value"]), found["y"]

def load0():
    return held(0)

def load1():
    return held(1)
"""


class Both(nn.Module):
    """Two inputs: a word of three, and numbers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(3, 2), nn.Linear(4, classes)

    def forward(self, kind: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.out(value) + self.words(kind).sum(-1, keepdim=True)
        return out


def experiment(x: Any, y: Any, model: Any, loss: Any, test: Any = 0.2, **changes: Any) -> Experiment:
    """In simulation the owners' examples, each in its order; on devices each has its own."""
    data = Arrays(x, y, owner=OWNERS, test=(x, y))
    return Experiment(
        task=Task(data=data, model=model, loss=loss), method=FedAvg(lr=0.05, local_steps=2, tau=1.0), rule=Mean(),
        split=Natural(), batches=Fixed(4), clients=2, rounds=2, evaluate_every=1, **changes,
    )  # fmt: skip


def npz(folder: Path, i: int, **arrays: Any) -> str:
    np.savez(folder / f"device{i}.npz", **{name: a[i == OWNERS] for name, a in arrays.items()})
    return str(folder / f"device{i}.npz")


def table(folder: Path, i: int, y: Any, ending: str) -> str:
    frame = pd.DataFrame(X[i == OWNERS], columns=list("abcd")).assign(y=y[i == OWNERS])[
        ["a", "b", "y", "c", "d"]
    ]
    path = folder / f"device{i}{ending}"
    frame.to_csv(path, index=False) if ending == ".csv" else frame.to_parquet(path)
    return str(path)


def function(folder: Path, i: int) -> str:
    npz(folder, i, kind=TOKENS[:, 0] % 3, value=X, y=NUMBERS)
    (folder / "my_examples.py").write_text(MODULE)
    return f"my_examples:load{i}"


def pairs(folder: Path, i: int) -> str:
    npz(folder, i, kind=TOKENS[:, 0] % 3, value=X, y=NUMBERS)
    (folder / "my_pairs.py").write_text(PAIRS)
    return f"my_pairs:load{i}"


YES = (NUMBERS > 0).astype(np.int64)
PRIVATE = ExampleDP(noise=1.0, delta=1e-3, clip=1.0)
# the experiment, where a device's examples lie, and what its terms say of them
CASES: dict[str, tuple[Experiment, Callable[[Path, int], str], dict[str, Any]]] = {
    "npz, numbers to be met": (
        experiment(X, NUMBERS, Logistic(), Squared(), privacy=PRIVATE),
        lambda folder, i: npz(folder, i, x=X, y=NUMBERS),
        {"classes": 0},
    ),
    "csv, classes": (
        experiment(X, YES, Logistic(), CrossEntropy()),
        lambda folder, i: table(folder, i, YES, ".csv"),
        {"classes": 2},
    ),
    "parquet, numbers to be met": (
        experiment(X, NUMBERS, Logistic(), Huber(delta=0.5)),
        lambda folder, i: table(folder, i, NUMBERS, ".parquet"),
        {"classes": 0},
    ),
    "function, several inputs and a model of one's own": (
        experiment({"kind": TOKENS[:, 0] % 3, "value": X}, NUMBERS, own(Both)(), Squared(), privacy=PRIVATE),
        function,
        {"classes": 0, "components": [f"{Both.__module__}:Both"]},
    ),
    "function, several inputs in order": (
        experiment((TOKENS[:, 0] % 3, X), NUMBERS, own(Both)(), Squared(), privacy=PRIVATE),
        pairs,
        {"classes": 0, "components": [f"{Both.__module__}:Both"]},
    ),
    "npz, windows of text": (
        experiment(TOKENS[:, :-1], TOKENS[:, 1:], LSTM(width=4, layers=1, embedding=3), CrossEntropy()),
        lambda folder, i: npz(folder, i, x=TOKENS[:, :-1], y=TOKENS[:, 1:]),
        {"classes": CLASSES},
    ),
    "npz, several inputs by name": (
        experiment({"kind": TOKENS[:, 0] % 3, "value": X}, 1.0 * YES, own(Both)(), Binary()),
        lambda folder, i: npz(folder, i, kind=TOKENS[:, 0] % 3, value=X, y=YES),
        {"classes": 0, "components": [f"{Both.__module__}:Both"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_devices_with_any_data_are_the_simulation(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over gRPC, each device with its own examples: the loop engine's model, to the bit."""
    e, held, more = CASES[case]
    monkeypatch.chdir(tmp_path)
    terms = [
        Terms(client=i, epsilon=None, delta=None, test_mode=True, data=held(tmp_path, i), **more)
        for i in range(2)
    ]
    yard = prepare(tmp_path / "site", 2, terms)
    result = answered(yard, e, tmp_path / "run")
    truth = run(e, engine="loop", device="cpu")
    assert not any("set aside" in note for note in result.notes)
    for name, value in truth.model.items():
        assert torch.equal(result.model[name], value), name
    assert float(result.frame["loss"].iloc[-1]) == float(truth.frame["loss"].iloc[-1])


def answered(yard: Yard, e: Experiment, out: Path) -> Any:
    """The result of a run whose devices answer in threads of this process, one at a time."""
    one, nodes = threading.Lock(), yard.site.registry.nodes()
    with ExitStack() as stack:
        for i in range(yard.devices):
            place = yard.place(i)
            host = Host(
                Installed("fedsim.deploy.app:client", {"partition-id": i, "device": str(place.folder)})
            )

            def answer(frame: bytearray, _: float, host: Host = host) -> bytes:
                with one:
                    return host.answer(bytes(frame))

            secret = device_credentials(place.key, place.certificate, place.authority)
            device = Device(place.uplink.server, secret, answer, place.folder / "last")
            thread = threading.Thread(target=device.forever, daemon=True)
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(device.stop)
        with serving(yard.site) as grid:
            result, remote = serve(grid, Federation(e), TEST, nodes, out, False)
    assert not remote.set_aside, remote.set_aside
    return result


def test_what_terms_do_not_name_is_not_imported() -> None:
    """A component of one's own, where the device's owner named another, or none."""
    text = CASES["npz, several inputs by name"][0].to_json()
    name = f"{Both.__module__}:Both"
    assert experiment_of(text, frozenset({name}), own_data=True).to_json() == text
    for allowed in (frozenset[str](), frozenset({"os:system"}), frozenset({f"{Both.__module__}:B"})):
        with pytest.raises(Invalid, match="allowed here are the components of fedsim itself"):
            experiment_of(text, allowed, own_data=True)


def test_the_data_of_an_experiment_are_not_read_where_a_device_has_its_own(tmp_path: Path) -> None:
    """The server tests on files of its own: a device keeps their names as they are, and opens none."""
    data = Npz(str(tmp_path / "of the server.npz"))
    e = replace(CASES["csv, classes"][0], task=Task(data=data, model=Logistic()))
    found = experiment_of(e.to_json(), own_data=True)
    assert (found.to_json(), found.fingerprint) == (e.to_json(), e.fingerprint)
    with pytest.raises(Invalid, match="lie elsewhere"):
        found.task.data.load()
    with pytest.raises(Invalid):
        experiment_of(e.to_json())


FAULTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no labels": ({"x": X}, 2, "no examples x and y"),
    "classes beyond": ({"x": X, "y": YES + 1}, 2, "labels from 0 to 1"),
    "a class with a point": ({"x": X, "y": NUMBERS}, 2, "or classes = 0 for numbers"),
    "fewer labels": ({"x": X, "y": YES[:-1]}, 2, "must be x"),
    "one of several that is shorter": ({"a": X, "b": X[:-1], "y": YES}, 2, "must be x"),
    "nothing": ({"x": X[:0], "y": YES[:0]}, 2, "m at least one"),
    "an input that is not finite": ({"x": np.where(X > 1, np.inf, X), "y": YES}, 2, "all must be finite"),
    "a number that is not finite": ({"x": X, "y": np.where(NUMBERS > 1, np.nan, NUMBERS)}, 0, "all must be finite"),
    "words": ({"x": X.astype(str), "y": YES}, 2, "holds words"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_data_that_are_none_are_refused(case: str, tmp_path: Path) -> None:
    arrays, classes, reason = FAULTS[case]
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(Invalid, match=reason):
        examples(Terms(client=0, epsilon=None, delta=None, data=str(tmp_path / "own.npz"), classes=classes))
