"""Messages between server and clients: what is in them, what a client remembers, and what neither believes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsim.batches import Fixed, Full
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.flower.client import Simulated, client_app, federation_of, recollect
from fedsim.flower.grid import FIRST_NODE, InProcessGrid
from fedsim.flower.memory import Memory
from fedsim.flower.order import Order
from fedsim.flower.payload import pack, size, unpack
from fedsim.flower.remote import Remote, Wire, discover
from fedsim.models import Logistic
from fedsim.privacy import MessageDP
from fedsim.round import Server
from fedsim.runner import drive, run
from fedsim.spec import Experiment
from fedsim.strategies import ByzClip21SGD2M, HeavyBall, MajorityVote, Median, SignSGD
from fedsim.task import Task


def small(**changes: Any) -> Experiment:
    e = Experiment(
        task=Task(data=Blobs(), model=Logistic()),
        method=ByzClip21SGD2M(lr=0.5, tau=0.3, beta_hat=0.5),
        rule=Median(),
        split=IID(),
        privacy=MessageDP(noise=0.3, delta=1e-4),
        batches=Fixed(4),
        clients=5,
        f=1,
        rounds=4,
        evaluate_every=1,
    )
    return replace(e, **changes)


NEW = {"accepted": torch.full((5,), -1)}  # clients of whom the server has taken nothing in


def remote(fed: Federation, lost: Callable[[Message], bool] = lambda m: False, **options: Any) -> Remote:
    grid = InProcessGrid(client_app(Simulated(lambda order: fed)), fed.experiment.clients, lost=lost)
    return Remote(grid, discover(grid, fed.computing), run="a", **options)


# ---------------------------------------------------------------- payload
rows = st.integers(1, 70).flatmap(
    lambda d: st.one_of(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=d, max_size=d),
        st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=d, max_size=d),
    )
)


@given(rows)
def test_a_message_arrives_as_it_was(row: list[float]) -> None:
    sent = torch.tensor(row)
    assert torch.equal(unpack(pack(sent), len(sent)), sent)


def test_sizes_on_the_wire() -> None:
    """float32 is 32 bits a coordinate, the halves 16, and the header of an array 128 bytes."""
    d = 79_510
    gradient = torch.randn(d, generator=torch.Generator().manual_seed(0))
    assert size(pack(gradient)) == 4 * d + 128
    assert size(pack(gradient, "float16")) == size(pack(gradient, "bfloat16")) == 2 * d + 128


@pytest.mark.parametrize(("payload", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_the_halves_round(payload: Any, error: float) -> None:
    sent = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    got = unpack(pack(sent, payload), 1000)
    assert 0 < float(((got - sent) / sent).abs().max()) <= error


BAD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "another name": {"x": np.zeros(9, np.float32)},
    "another length": {"float32": np.zeros(8, np.float32)},
    "integers": {"float32": np.zeros(9, np.int32)},
    "NaN": {"float32": np.full(9, np.nan, np.float32)},
    "Inf in half": {"float16": np.full(9, np.inf, np.float16)},
    "too large for float32": {"float32": np.full(9, 1e300)},
    "a payload": {"compressed": np.zeros(2, np.uint8)},
}


@pytest.mark.parametrize("arrays", BAD.values(), ids=BAD)
def test_what_is_no_message_is_refused(arrays: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        unpack(ArrayRecord({name: Array(value) for name, value in arrays.items()}), 9)


# ---------------------------------------------------------------- memory
def test_a_memory_survives_being_written() -> None:
    fed = Federation(small())
    asking = remote(fed)
    asking(fed, NEW, {"x": fed.x0}, 0, np.arange(5))
    for context in asking.grid.contexts.values():
        memory = recollect(context, "a")
        again = Memory.load(memory.dump())
        assert again.pending is not None
        assert memory.pending is not None
        assert torch.equal(again.pending.row, memory.pending.row)
        assert (again.state, again.accepted, again.pending.question) == (None, -1, memory.pending.question)
    assert recollect(context, "another run").pending is None


def test_the_same_question_gets_the_same_answer_and_another_none() -> None:
    fed = Federation(small())
    asking = remote(fed)
    everyone = np.arange(5)
    _, first, _ = asking(fed, NEW, {"x": fed.x0}, 0, everyone)
    fed.normal = lambda *_: pytest.fail("a second draw of noise")  # type: ignore[assignment]
    _, second, _ = asking(fed, NEW, {"x": fed.x0}, 0, everyone)
    assert torch.equal(first.rows, second.rows)
    _, _, answered = asking(fed, NEW, {"x": fed.x0 + 1}, 0, everyone)
    assert len(answered) == 0
    assert all("answers a round once" in each.reason for each in asking.set_aside)


def test_a_server_that_forgot_is_told_so() -> None:
    fed = Federation(small())
    asking = remote(fed)
    states, _, _ = asking(fed, NEW, {"x": fed.x0}, 0, np.arange(5))
    states, _, _ = asking(fed, states, {"x": fed.x0}, 1, np.arange(5))
    _, _, answered = asking(fed, NEW, {"x": fed.x0}, 2, np.arange(5))
    assert len(answered) == 0
    assert "one of the two lost its memory" in asking.set_aside[-1].reason


class LosesReplies(InProcessGrid):
    """A grid on which replies get lost after the client has computed."""

    gone: frozenset[tuple[int, int]] = frozenset()  # (client, round)

    def pull_messages(self, message_ids: Any) -> Any:
        return [m for m in super().pull_messages(message_ids) if not self._gone(m)]

    def _gone(self, message: Message) -> bool:
        sent = message.content.metric_records.get("metrics")
        return sent is not None and "round" in sent and (sent["client"], sent["round"]) in self.gone


def test_a_lost_reply_leaves_both_sides_where_they_were() -> None:
    """The run with replies lost on their way back is the run in which those clients were not asked in those rounds."""
    fed = Federation(small(rounds=5))
    gone = frozenset({(1, 0), (1, 1), (4, 1), (2, 3)})
    grid = LosesReplies(client_app(Simulated(lambda order: fed)), 5)
    grid.gone = gone
    disturbed = drive(fed, Remote(grid, discover(grid, 5), run="a"))
    never = remote(
        fed, lambda m: (m.metadata.dst_node_id - FIRST_NODE, int(m.metadata.group_id or 0) - 1) in gone
    )
    clean = drive(fed, never)
    for name, value in clean.model.items():
        assert torch.equal(disturbed.model[name], value)
    assert disturbed.frame["answered"].tolist() == [4, 3, 5, 4, 5]


def test_a_round_without_enough_answers_changes_nothing() -> None:
    """With 2 of 5 answers the rule is not defined for f = 1: the round is over, and all go on as if it had not been."""
    e = small(method=HeavyBall(lr=0.5), privacy=None, batches=Full(), rounds=3)
    fed = Federation(e)
    few = remote(fed, lambda m: m.metadata.group_id == "2" and m.metadata.dst_node_id > FIRST_NODE + 1)
    disturbed = drive(fed, few)
    truth = run(replace(e, rounds=2), engine="loop", device="cpu")
    for name, value in truth.model.items():
        assert torch.equal(disturbed.model[name], value)
    assert disturbed.frame["deviation"].isna().tolist() == [False, True, False]


def test_signs_and_halves_in_a_whole_run() -> None:
    e = small(method=SignSGD(lr=0.01), rule=MajorityVote(), privacy=None)
    fed = Federation(e)
    bits = drive(fed, remote(fed)).frame
    assert set(bits["bytes"]) == {5 * (-(-fed.uplink_bits(0) // 8) + 128)}
    exact, rounded = (drive(fed, remote(fed, wire=Wire(payload=p))) for p in ("float32", "bfloat16"))
    assert all(torch.equal(exact.model[k], v) for k, v in rounded.model.items())  # signs lose nothing
    fed = Federation(small())
    exact, rounded = (drive(fed, remote(fed, wire=Wire(payload=p))) for p in ("float32", "bfloat16"))
    assert any(not torch.equal(exact.model[k], v) for k, v in rounded.model.items())
    assert all(torch.allclose(exact.model[k], v, atol=0.02) for k, v in rounded.model.items())


# ---------------------------------------------------------------- orders
def refused(content: RecordDict, fed: Federation) -> str:
    grid = InProcessGrid(client_app(Simulated(lambda order: fed)), 1)
    (reply,) = grid.send_and_receive([Message(content, FIRST_NODE, MessageType.TRAIN)])
    return str(reply.error.reason)


def test_orders_that_are_none() -> None:
    fed = Federation(small())
    x = ArrayRecord({"x": Array(fed.x0.numpy())})
    order = Order(experiment="{}", fingerprint="f", run="r", client=0, round=0, accepted=-1, derived=True)
    assert "without an order" in refused(RecordDict({"arrays": x}), fed)
    content = order.content(x)
    content["order"] = ConfigRecord({**content["order"], "round": -1})
    assert "Order.round = -1" in refused(content, fed)
    assert "must hold what the server tells, ['x']" in refused(order.content(ArrayRecord({"y": x["x"]})), fed)
    assert "shape" in refused(order.content(ArrayRecord({"x": Array(np.zeros(3, np.float32))})), fed)


def test_the_experiment_is_the_one_that_was_named() -> None:
    e = small()
    assert torch.equal(federation_of(e.to_json(), e.fingerprint).x0, Federation(e).x0)
    with pytest.raises(Invalid, match="announced was"):
        federation_of(replace(e, seed=1).to_json(), e.fingerprint)


def test_peers_and_server_states_travel() -> None:
    """Orders carry the model that a client starts from: the same for all, or each its own among peers."""
    fed = Federation(small())
    x: Tensor = Server.start(fed).x
    asked = remote(fed).ask(fed, NEW, {"x": x}, 0, np.arange(5))
    assert len({id(message.content["arrays"]) for message in asked}) == 1
