"""A server that does what it likes: no code runs on a device, nothing leaves beyond its ledger, and nothing hangs."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from test_hostile_device import ANSWERS, rss
from yard import Yard, echo, running, until

from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.clock import Clock, Ladder
from fedsim.config import untrusted
from fedsim.config.untrusted import plain_table
from fedsim.datasets.load import Digits
from fedsim.datasets.split import IID
from fedsim.deploy.spent import Spent
from fedsim.deploy.terms import Terms
from fedsim.experiments import recipes
from fedsim.experiments.study import Study
from fedsim.flower.order import Order
from fedsim.link.answering import Host, Installed
from fedsim.link.frame import CALL, OPTIONS, SERVICE, Limits, header_of, seal
from fedsim.link.identity import server_credentials
from fedsim.link.records import describe
from fedsim.link.worker import Worker
from fedsim.losses import Binary, Squared
from fedsim.models import MLP, Logistic, ResNet
from fedsim.privacy import ExampleDP, MessageDP
from fedsim.spec import Experiment
from fedsim.strategies import AsyncSGD, FedAvg, Mean
from fedsim.task import Task
from fedsim.types import Loss

long = pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="takes minutes: set FEDSIM_LONG to run it")
GOOD = Experiment(
    task=Task(data=Digits(), model=Logistic()),
    method=FedAvg(lr=0.1, local_steps=1, tau=0.3),
    rule=Mean(),
    split=IID(),
    privacy=MessageDP(noise=2.0, delta=1e-4),
    batches=Fixed(4),
    clients=3,
    rounds=4,
)
D = 650  # parameters of a logistic regression on the digits


class Target:
    """A device with a budget, and how a server's words reach it."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        Terms(**{"client": 0, "epsilon": 5.0, "delta": 1e-4, **changes}).save(folder / "device.toml")
        self.installed = Installed("fedsim.deploy.app:client", {"partition-id": 0, "device": str(folder)})
        self.host = Host(self.installed)

    def ask(self, order: dict[str, Any], x: Any = None, **header: Any) -> dict[str, Any]:
        """The header of the answer to an order."""
        return header_of(self.host.answer(question(order, x, **header)))[0]

    @property
    def rounds(self) -> int:
        return Spent.load(self.folder / "ledger.json").rounds


def question(order: dict[str, Any], x: Any = None, **header: Any) -> bytes:
    held = Array(np.zeros(D, np.float32)) if x is None else x
    content = RecordDict({"arrays": ArrayRecord({"x": held}), "order": ConfigRecord(order)})
    described, blobs = describe(content)
    said = {"id": "a", "node": 1, "type": "train", "group": "1", "run": 1, "ttl": 60.0, "records": described}
    return b"".join(seal(said | header, blobs))


def order(e: Experiment = GOOD, **changes: Any) -> dict[str, Any]:
    said = Order(
        experiment=e.to_json(),
        fingerprint=e.fingerprint,
        run="a",
        client=0,
        round=0,
        accepted=-1,
        derived=False,
    )
    return asdict(said) | changes


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    made = Target(tmp_path_factory.mktemp("device"))
    assert "error" not in made.ask(order())  # what is imported late is imported now
    assert made.rounds == 1
    return made


def text(**changes: Any) -> str:
    return json.dumps(json.loads(GOOD.to_json()) | changes)


ORDERS: dict[str, dict[str, Any]] = {
    "rounds": {"experiment": text(rounds=10**9)},
    "clients": {"experiment": text(clients=10**9, byzantine=0)},
    "a long name": {"experiment": text(rule={"name": "x" * 300_000})},
    "a long name within the size": {"experiment": text(rule={"name": "x" * 60_000})},
    "an expression": {"experiment": text(rule="Chain(" * 4000 + "NNM()" + ")" * 4000)},
    "a quadratic expression": {"experiment": text(rule="a:" * 30_000)},
    "many components": {"experiment": text(rule={"name": "Chain", "parts": [{"name": "NNM"}] * 3000})},
    "deep components": {"experiment": '{"rule":' * 5000 + "1" + "}" * 5000},
    "deep lists": {"experiment": "[" * 60_000},
    "a component of one's own": {"experiment": text(rule={"name": "os:system"})},
    "a path": {"experiment": text(rule={"name": "../../etc/passwd"})},
    "a huge number": {"experiment": text(seed=10**400)},
    "a huge float": {"experiment": text(method={"name": "FedAvg", "lr": 1e999})},
    "no object": {"experiment": "3"},
    "no JSON": {"experiment": "\x00"},
    "nothing": {"experiment": ""},
    "another experiment": {"experiment": replace(GOOD, seed=7).to_json()},
    "another fingerprint": {"fingerprint": "0" * 16},
    "a long fingerprint": {"fingerprint": "0" * 300_000},
    "a run that is a path": {"run": "../../etc/passwd"},
    "a run of other digits": {"run": "\u0661\u0662"},
    "a long run": {"run": "a" * 300_000},
    "another client": {"client": 1},
    "no client": {"client": -1},
    "a huge client": {"client": 1 << 62},
    "a round that is none": {"round": -5},
    "a round beyond the last": {"round": 4},
    "a huge round": {"round": 1 << 62},
    "what was never taken in": {"round": 2, "accepted": 1},
    "derived noise": {"derived": True},
    "another payload": {"payload": "pickle"},
    "a field more": {"more": "x" * 100_000},
    "a byte string": {"experiment": b"x" * 100},
    "a list": {"experiment": ["x"] * 1000},
    "no privacy": {"fresh": replace(GOOD, privacy=None)},
    "little noise": {"fresh": replace(GOOD, privacy=MessageDP(noise=0.01, delta=1e-4))},
    "another delta": {"fresh": replace(GOOD, privacy=MessageDP(noise=2.0, delta=1e-5))},
    "a model beyond the terms": {"fresh": replace(GOOD, task=Task(data=Digits(), model=MLP(hidden=10**12)))},
    "a model of layers without end": {
        "fresh": replace(GOOD, task=Task(data=Digits(), model=ResNet(blocks=10**9, width=8)))
    },
    "a clock": {"fresh": replace(GOOD, clock=Clock(gradient=Ladder()))},
    "an asynchronous method that keeps a table": {
        "fresh": replace(GOOD, method=AsyncSGD(lr=0.1, buffer=10**12, tau=1.0)),
        "round": 10**6,
    },
}
ARRAYS: dict[str, Any] = {
    "another shape": Array(np.zeros(D + 1, np.float32)),
    "another type": Array(np.array(["a"] * D)),
    "a pickle": Array("object", (D,), "pickle", b"\x80\x04."),
    "objects": Array("object", (D,), "numpy.ndarray", Array(np.zeros(1)).data.replace(b"<f8", b"|O ")),
    "a lying header": Array(
        "float32", (D,), "numpy.ndarray", Array(np.zeros(1)).data.replace(b"(1,)", b"(1<<50,)")
    ),
    "nothing": Array("float32", (D,), "numpy.ndarray", b""),
}


@pytest.mark.parametrize("case", ORDERS)
def test_an_extreme_order_is_refused_at_once(target: Target, case: str) -> None:
    """In words, which hold neither what was sent nor what is on the device; nothing is booked, and nothing grows."""
    changes = dict(ORDERS[case])
    asked = order(changes.pop("fresh", GOOD), **changes) | ({"run": "b"} if "fresh" in ORDERS[case] else {})
    before, memory, began = target.rounds, rss(), time.process_time()
    said = target.ask(asked)
    assert time.process_time() - began < 1
    assert rss() - memory < 50
    assert set(said) == {"error"}
    assert len(said["error"]) <= 500
    assert "/" not in said["error"].replace("1/", "") or case in ("a path", "a run that is a path")
    assert str(target.folder) not in said["error"]
    assert target.rounds == before


@pytest.mark.parametrize("case", ARRAYS)
def test_an_extreme_model_is_refused(target: Target, case: str) -> None:
    before = target.rounds
    assert set(target.ask(order(run="c"), ARRAYS[case])) == {"error"}
    assert target.rounds == before


@pytest.mark.parametrize(
    "header",
    [
        {"type": "x" * 10_000},
        {"type": "no such"},
        {"ttl": "x"},
        {"run": -1},
        {"node": "x"},
        {"records": [[]]},
    ],
)
def test_an_extreme_header_is_refused(target: Target, header: dict[str, Any]) -> None:
    assert set(target.ask(order(), **header)) == {"error"}


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=200)
    | st.sampled_from(["NNM", "inf"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=30,
)


@given(st.sampled_from(sorted(json.loads(GOOD.to_json()))), plain)
def test_any_field_of_an_experiment_may_be_anything(field: str, value: object) -> None:
    """An experiment, or a refusal in words, within 50 ms (of a processor that is nobody else's)."""
    said = json.dumps(json.loads(GOOD.to_json()) | {field: value})
    began = time.process_time()
    with suppress(Invalid):
        Experiment.from_dict(plain_table(said))
    assert time.process_time() - began < 0.05


def test_what_is_within_the_bounds_is_decoded_in_time() -> None:
    """The largest experiments that the bounds let through: as many components as may be, and the longest list."""
    parts = [{"name": "NNM"}] * (untrusted.COMPONENTS - 20)
    many = text(rule={"name": "Chain", "parts": [*parts, {"name": "Median"}]})
    for said in (many, text(knowledge=["own"] * (untrusted.VALUES - 100))):
        best = min(timed(lambda: Experiment.from_dict(plain_table(said))) for _ in range(3))  # noqa: B023
        assert best < 0.05


def timed(call: Callable[[], object]) -> float:
    began = time.process_time()
    with suppress(Invalid):
        call()
    return time.process_time() - began


def test_every_recipe_passes_the_bounds() -> None:
    for name in recipes.__all__:
        found = getattr(recipes, name)()
        all_of = (
            [cell.experiment for cell in found.cells()[0]]
            if isinstance(found, Study)
            else [getattr(found, "main", found)]
        )
        for e in all_of[:: max(1, len(all_of) // 3)]:
            assert Experiment.from_dict(plain_table(e.to_json())) == e


def test_the_budget_holds_whatever_is_asked(tmp_path: Path) -> None:
    """Every round of run after run, in every order, again and again: never more than the ledger allows."""
    target, answered = Target(tmp_path, epsilon=3.0), 0
    rng = np.random.default_rng(0)
    for _ in range(150):
        round = int(rng.integers(0, 5))
        asked = order(
            run=str(rng.choice(["a", "b", "c"])), round=round, accepted=int(rng.integers(-1, round + 1))
        )
        answered += "error" not in target.ask(asked)
    spent = Spent.load(tmp_path / "ledger.json")
    assert answered >= spent.rounds > 1
    assert spent.epsilon(1e-4) <= 3.0 * (1 + 1e-9)


ASYNC = replace(GOOD, method=AsyncSGD(lr=0.1), privacy=ExampleDP(clip=1.0, noise=2.0, delta=1e-4))
EXTREME = [-5, 10_000, 1 << 31, 1 << 62, 1.5, True, "0", [0], [], b"0", float("nan"), float("inf"), -0.0]


@pytest.mark.parametrize("field", ["round", "accepted", "client", "derived", "payload", "run", "fingerprint"])
def test_an_attempt_of_anything_is_refused_in_words(tmp_path_factory: Any, field: str) -> None:
    """The fields of an order of an asynchronous run, whose rounds are attempts, which no experiment bounds."""
    target = Target(tmp_path_factory.mktemp("device"))
    for value in EXTREME:
        said = target.ask(order(ASYNC, **{field: value}))
        assert "in this device's app" not in said.get("error", ""), (field, value)
        assert ("error" in said) or (field, value) == ("run", "0"), (field, value)
    assert target.rounds == (field == "run")


def test_attempts_in_any_order_stay_within_the_budget(tmp_path: Path) -> None:
    """Attempts far ahead, back again, and with whatever the server says it took in: each is booked once."""
    target, rng = Target(tmp_path, epsilon=0.4), np.random.default_rng(0)
    answered = 0
    for i in range(120):
        round = int(rng.choice([i, 0, 3, 9_999, int(rng.integers(0, 10_000))], p=[0.6, 0.1, 0.1, 0.01, 0.19]))
        accepted = int(rng.choice([-1, round - 1, i - 1, 9_999]))
        answered += "error" not in target.ask(order(ASYNC, round=round, accepted=accepted, run=f"r{i // 30}"))
    spent = Spent.load(tmp_path / "ledger.json")
    assert answered >= spent.rounds > 3
    assert spent.epsilon(1e-4) <= 0.4 * (1 + 1e-9)


def test_a_server_that_begins_run_after_run_does_not_fill_the_disk(tmp_path: Path) -> None:
    target = Target(tmp_path, epsilon=1e5)
    for i in range(40):
        assert "error" not in target.ask(order(run=f"run{i}"))
    assert len(list(tmp_path.glob("memory-*"))) == 16
    assert "booked in run run0 already" in target.ask(order(run="run0"))["error"]
    assert target.rounds == 40


@pytest.mark.parametrize(
    "e", [replace(GOOD, privacy=None, method=FedAvg(lr=0.1, local_steps=10**8, tau=0.3))]
)
def test_what_takes_for_ever_ends(tmp_path: Path, e: Experiment) -> None:
    """Within the terms' seconds and memory; the next order is answered by a new process."""
    target = Target(tmp_path, epsilon=None, delta=None)
    worker = Worker(replace(target.installed, memory=8 << 30), 120.0)
    try:
        worker(question(order(run="warm")), 120.0)
        began = time.monotonic()
        said, _ = header_of(worker(question(order(e)), 5.0))
        assert time.monotonic() - began < 60  # 5 s, and a new process on a busy machine
        assert said["error"] in (
            "no answer in 5 s",
            "round 0: this device could not answer; its own log says why",
        )
        assert "error" not in header_of(worker(question(order(run="after")), 120.0))[0]
    finally:
        worker.close()


def test_that_there_is_no_answer_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether computing fails may depend on the data: it is booked, asked again it is the same, and says no more."""
    from fedsim.flower import client

    target, calls, computed = Target(tmp_path), list[int](), client.answer

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        raise Invalid("a message of norm 0.731")

    monkeypatch.setattr(client, "answer", failing)
    first = target.ask(order())["error"]
    assert first == "round 0: this device could not answer; its own log says why"
    assert target.rounds == 1
    assert target.ask(order())["error"] == first
    assert Target(tmp_path).ask(order())["error"] == first  # also after a restart
    monkeypatch.setattr(client, "answer", computed)
    assert target.ask(order())["error"] == first
    another = Array(np.ones(D, np.float32))
    assert "answers a round once" in target.ask(order(), another)["error"]
    assert (len(calls), target.rounds) == (1, 1)
    assert "error" not in target.ask(order(round=1, accepted=-1))  # the run goes on
    assert target.rounds == 2


@pytest.mark.parametrize("loss", [Squared(), Binary()])
def test_a_refusal_tells_nothing_of_the_data(tmp_path: Path, loss: Loss) -> None:
    """Not the range of its labels: its own log does."""
    np.savez(tmp_path / "own.npz", x=np.zeros((7, 1, 8, 8), np.float32), y=[3, 4, 5, 6, 7, 8, 7])
    target = Target(tmp_path, data="own.npz")
    said = target.ask(order(replace(GOOD, task=Task(data=Digits(), model=Logistic(), loss=loss))))["error"]
    assert said == "this device cannot use its data, or not for this experiment; its own log says why"


# ---------------------------------------------------------------- over the link
@dataclass
class Hostile:
    """A gRPC server with the deployment's certificate that sends each device these pieces."""

    yard: Yard
    said: Callable[[Any], Iterator[bytes]]

    def __enter__(self) -> Hostile:
        read = [(self.yard.folder / name).read_bytes() for name in ("server.key", "server.pem", "ca.crt")]
        options = [(k, v if "length" not in k else -1) for k, v in OPTIONS]
        self.server = grpc.server(ThreadPoolExecutor(4), options=options)
        handler = grpc.stream_stream_rpc_method_handler(lambda came, context: self.said(came))
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {CALL: handler}),)
        )
        self.server.add_secure_port(f"127.0.0.1:{self.yard.port}", server_credentials(*read))
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(0).wait(10)


def test_no_frame_stops_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame after frame that is none: each ends the stream, in the log's words, and the device dials again."""
    from fedsim.link import device as module

    monkeypatch.setattr(module, "REFUSED", 0.05)
    yard, waiting = Yard(tmp_path, 1), list(ANSWERS.values())

    def said(came: Any) -> Iterator[bytes]:
        next(came)
        yield from waiting.pop(0) if waiting else ()
        for _ in came:
            pass

    asked: list[int] = []

    def answer(frame: bytearray, seconds: float) -> bytes:
        asked.append(1)
        return echo(frame, seconds)

    before = rss()
    with Hostile(yard, said), running(yard.device(0, answer, limits=Limits(size=4 << 20))):
        until(lambda: not waiting, 60)
    assert not asked
    assert rss() - before < 60
    with yard.grid() as grid, running(yard.device(0)):  # and with an honest server it is at work again
        until(lambda: grid.get_node_ids() == yard.nodes)


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=long)])
def test_orders_by_the_thousand(tmp_path: Path, count: int) -> None:
    """As fast as the network takes them: one at a time is looked at, nothing is booked twice, memory stays."""
    yard, target = Yard(tmp_path, 1), Target(tmp_path / "0")
    replies: list[bytes] = []
    over = threading.Event()

    def said(came: Any) -> Iterator[bytes]:
        next(came)

        def read() -> None:
            with suppress(Exception):  # what gRPC raises at the end of the stream
                for piece in came:
                    replies.append(piece[:200])
                    if len(replies) >= count:
                        over.set()

        threading.Thread(target=read, daemon=True).start()
        for i in range(count):
            yield question(order(run="a", round=i % 6, accepted=-1), id=str(i))
        over.wait(300)

    def answer(frame: bytearray, seconds: float) -> bytes:
        return target.host.answer(bytes(frame))

    began, before = time.monotonic(), rss()
    with Hostile(yard, said), running(yard.device(0, answer)):
        assert over.wait(300)
    seconds = time.monotonic() - began
    assert (
        target.rounds == 4
    )  # each round once; whatever else was sent is the last message again, or a refusal
    assert rss() - before < 100
    print(f"{count} orders in {seconds:.1f} s, {rss() - before:.0f} MB")


def test_an_old_order_gets_nothing_new(tmp_path: Path) -> None:
    """Replayed as it was, with its id: the same bytes. With another id: the same message, from the device's memory."""
    target = Target(tmp_path)
    first = target.host.answer(question(order()))
    assert target.host.answer(question(order(), id="b")) == first
    assert "error" not in target.ask(order(round=1, accepted=0))
    assert "answers a round once" in target.ask(order())["error"] or "took in" in target.ask(order())["error"]
    assert target.rounds == 2
