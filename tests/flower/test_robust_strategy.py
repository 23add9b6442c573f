"""RobustStrategy beside Flower's own strategies: an unchanged app, and clients that send anything at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy
from flwr.serverapp.strategy import Krum as StockKrum
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.check import Invalid
from fedsim.flower.grid import InProcessGrid
from fedsim.strategies import NNM, CenteredClipping, Chain, Krum, Median, flower
from fedsim.strategies.flower import RobustStrategy, medians

Content = Callable[[np.ndarray], RecordDict]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("flwr").setLevel(logging.INFO)


def good(w: np.ndarray) -> RecordDict:
    arrays = ArrayRecord({"w": Array(w), "steps": Array(np.array(3))})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 10, "loss": 0.5})})


def app(bad: Content | None, faulty: tuple[int, ...] = (0,)) -> ClientApp:
    """Clients move w by 1 plus a hundredth of their number; the faulty ones answer with `bad`, or raise."""
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        w = message.content["arrays"]["w"].numpy()
        if i in faulty:
            if bad is None:
                raise RuntimeError("broken")
            return Message(bad(w), reply_to=message)
        return Message(good(w + np.float32(1 + 0.01 * i)), reply_to=message)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return train(message, context)

    return client


def initial(d: int = 3) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(d, np.float32)), "steps": Array(np.array(0))})


def play(strategy: Strategy, client: ClientApp, rounds: int = 2, **grid: Any) -> np.ndarray:
    result = strategy.start(InProcessGrid(client, 7, **grid), initial(), num_rounds=rounds)
    return np.asarray(result.arrays["w"].numpy() if result.arrays else np.zeros(3))


def test_it_is_the_rule_on_the_updates() -> None:
    w = play(RobustStrategy(Median(), 1), app(None, faulty=()))
    np.testing.assert_allclose(w, np.full(3, 2 * 1.03), rtol=1e-6)
    updates = torch.stack([torch.full((3,), 1 + 0.01 * i) for i in range(7)])
    w = play(RobustStrategy(Krum(), 2, server_lr=0.5), app(None, faulty=()), rounds=1)
    np.testing.assert_allclose(w, 0.5 * Krum()(updates, 2).numpy(), rtol=1e-6)


FAULTS: dict[str, Content | None] = {
    "raises": None,
    "NaN": lambda w: good(np.full_like(w, np.nan)),
    "Inf": lambda w: good(np.full_like(w, np.inf)),
    "shape": lambda w: good(np.ones(9, np.float32)),
    "type": lambda w: good(np.array(["a"] * w.size)),
    "integers": lambda w: good(w.astype(np.int32)),
    "too large for float32": lambda w: good(w.astype(np.float64) + 1e300),
    "huge": lambda w: good(w + np.float32(1e30)),
    "no array": lambda w: RecordDict({"arrays": ArrayRecord({}), "m": MetricRecord({"num-examples": 1})}),
    "no record": lambda w: RecordDict({}),
    "two records": lambda w: RecordDict({**good(w), "more": ArrayRecord({"w": Array(w)})}),
    "another name": lambda w: RecordDict({"arrays": ArrayRecord({"x": Array(w)})}),
    "an array more": lambda w: RecordDict({"arrays": ArrayRecord({"w": Array(w), "steps": Array(w), "y": Array(w)})}),
    "lying header": lambda w: RecordDict({"arrays": ArrayRecord({
        "w": Array("float32", (3,), "numpy.ndarray", Array(np.zeros(1))
            .data[:-8].replace(b"(1,)", b"(9999999999999,)")),
        "steps": Array(np.array(3))})}),
    "pickle": lambda w: RecordDict({"arrays": ArrayRecord({
        "w": Array("object", (3,), "pickle", b"garbage"), "steps": Array(np.array(3))})}),
}  # fmt: skip
HARMLESS: dict[str, Content] = {
    "no metrics": lambda w: RecordDict({"arrays": good(w + 1)["arrays"]}),
    "a metric more": lambda w: RecordDict({**good(w + 1), "metrics": MetricRecord({"extra": [1.0, 2.0]})}),
    "absurd weight": lambda w: RecordDict(
        {**good(w + 1), "metrics": MetricRecord({"num-examples": -(10**9)})}
    ),
    "NaN metric": lambda w: RecordDict(
        {**good(w + 1), "metrics": MetricRecord({"num-examples": float("nan")})}
    ),
    "float64": lambda w: good(w.astype(np.float64) + 1),
}


@pytest.mark.parametrize("rule", [Median(), Chain(NNM(), Median()), Krum()])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_answer_is_set_aside(fault: str, rule: Any) -> None:
    strategy = RobustStrategy(rule, 1)
    w = play(strategy, app(FAULTS[fault]))
    assert np.all((w >= 2 * 1.0) & (w <= 2 * 1.07)), w
    if fault != "huge":  # a number like any other: the rule's affair
        assert {(each.round, each.node) for each in strategy.set_aside} >= {(1, 1000), (2, 1000)}


def test_malformed_answers_do_not_stop_a_rule_that_needs_many(caplog: pytest.LogCaptureFixture) -> None:
    """Two of seven with Krum, f = 2: they are the two that may be Byzantine, and known; five are left with f = 0."""
    strategy = RobustStrategy(Krum(), 2)
    w = play(strategy, app(FAULTS["shape"], faulty=(0, 1)))
    assert np.all((w >= 2 * 1.02) & (w <= 2 * 1.06)), w
    honest = torch.stack([torch.full((3,), 1 + 0.01 * i) for i in range(2, 7)])
    w = play(RobustStrategy(Krum(), 2), app(FAULTS["shape"], faulty=(0, 1)), rounds=1)
    np.testing.assert_allclose(w, Krum()(honest, 0).numpy(), rtol=1e-6)


@pytest.mark.parametrize("fault", ["raises", "NaN"])
def test_what_may_happen_to_an_honest_client_does_not_lower_f(fault: str) -> None:
    """A crash, or training that diverged: all f may still be among the others. The model stays, and is not lost."""
    result = RobustStrategy(Krum(), 2).start(
        InProcessGrid(app(FAULTS[fault], (0, 1)), 7), initial(), num_rounds=2
    )
    assert np.array_equal(result.arrays["w"].numpy(), np.zeros(3))


def test_nobody_answers_in_the_place_of_another() -> None:
    """A node that knows another one's message, and answers first: the other one's answer counts."""
    strategy = RobustStrategy(Median(), 1)
    grid = InProcessGrid(app(None, faulty=()), 7)
    real = grid.send_and_receive

    def send_and_receive(messages: Any, *, timeout: float | None = None) -> Any:
        messages = list(messages)
        replies = list(real(messages))
        forged = Message(good(np.full(3, 1e6, np.float32)), reply_to=messages[1])
        forged.metadata.__dict__["_src_node_id"] = messages[0].metadata.dst_node_id
        return [forged, *replies]

    grid.send_and_receive = send_and_receive  # type: ignore[method-assign]
    result = strategy.start(grid, initial(), num_rounds=1)
    np.testing.assert_allclose(result.arrays["w"].numpy(), np.full(3, 1.03), rtol=1e-6)
    first = next(each for each in strategy.set_aside if "in the place of" in each.reason)
    assert (first.node, first.reason) == (1000, "an answer in the place of node 1001")


@pytest.mark.parametrize(
    "metrics", [{f"m{i}": 1.0 for i in range(100_000)}, {"m": [1.0] * 100_000}, {"m" * 100_000: 1.0}]
)
def test_many_metrics_cost_nothing(metrics: dict[str, Any]) -> None:
    """Of one client: left out, within a moment; its update counts."""
    content = RecordDict({"arrays": good(np.ones(3, np.float32))["arrays"], "metrics": MetricRecord(metrics)})
    strategy = RobustStrategy(Median(), 1)
    contents = [content, good(np.ones(3, np.float32))]
    began = time.perf_counter()
    said = strategy._metrics(medians, contents)
    assert time.perf_counter() - began < 0.1
    assert set(said) == {"num-examples", "loss", "asked", "accepted"}


@pytest.mark.parametrize("fault", HARMLESS)
def test_what_a_client_says_of_itself_does_not_matter(fault: str) -> None:
    strategy = RobustStrategy(Median(), 1)
    w = play(strategy, app(HARMLESS[fault]), rounds=1)
    assert np.all((w >= 1.0) & (w <= 1.06))
    assert not strategy.set_aside


arrays = st.one_of(
    st.builds(
        lambda shape, dtype, value: Array(np.full(shape, value).astype(dtype)),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.sampled_from(["f2", "f4", "f8", ">f4", "i4", "u1", "?", "c8", "S3"]),
        st.sampled_from([0.0, 1.0, 1e-30, 60000.0]),
    ),
    st.builds(
        lambda value: Array(np.full(3, value, np.float32)),
        st.floats(width=32),  # NaN and infinities among them
    ),
    st.builds(
        Array,
        st.text(max_size=8),
        st.lists(st.integers(-2, 2**40), max_size=3).map(tuple),
        st.sampled_from(["numpy.ndarray", "", "pickle"]),
        st.binary(max_size=200)
        | st.binary(max_size=40).map(lambda tail: Array(np.zeros(3, np.float32)).data[:-12] + tail),
    ),
)
records = st.builds(
    ArrayRecord,
    st.dictionaries(st.sampled_from(["w", "steps", "x", ""]) | st.text(max_size=5), arrays, max_size=4),
)
metric_records = st.builds(
    MetricRecord,
    st.dictionaries(
        st.sampled_from(["num-examples", "loss"]) | st.text(max_size=4),
        st.integers(-(2**63), 2**63 - 1) | st.floats() | st.lists(st.floats(), max_size=3),
        max_size=3,
    ),
)
contents = st.builds(
    lambda parts, configs: RecordDict({**parts, **{f"c{name}": value for name, value in configs.items()}}),
    st.dictionaries(st.sampled_from(["arrays", "metrics", "z"]), records | metric_records, max_size=3),
    st.dictionaries(
        st.text(max_size=3), st.builds(lambda b: ConfigRecord({"b": b}), st.binary(max_size=9)), max_size=1
    ),
)


@settings(max_examples=200)
@given(st.lists(contents, min_size=1, max_size=3))
def test_nothing_that_clients_send_raises(sent: list[RecordDict]) -> None:
    """Up to 3 of 7 clients send anything; the model stays finite and between the honest clients' models."""
    turn = iter(sent * 4)
    w = play(RobustStrategy(Median(), 3), app(lambda w: next(turn), tuple(range(len(sent)))), rounds=1)
    assert np.all((w == 0) | ((w >= 1.0) & (w <= 1.07))), w  # 0: fewer answers than the rule is defined for


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian, lambda **k: StockKrum(num_malicious_nodes=1, **k)])
def test_flowers_own_are_stopped_by_one_client(strategy: Callable[..., Strategy]) -> None:
    with pytest.raises(Exception, match="ArrayRecords must have the same keys"):
        play(strategy(fraction_evaluate=0.0), app(FAULTS["another name"]))


def test_flowers_average_and_median_are_poisoned_by_one_client() -> None:
    for strategy in (FedAvg(fraction_evaluate=0.0), FedMedian(fraction_evaluate=0.0)):
        assert not np.isfinite(play(strategy, app(FAULTS["NaN"]))).all()


def test_lost_messages_and_too_few_answers() -> None:
    """Without enough answers the model stays, and the run goes on to its end."""
    strategy = RobustStrategy(Median(), 2)
    lost = {1000, 1001, 1002}
    w = play(strategy, app(None, faulty=()), rounds=2, lost=lambda m: m.metadata.dst_node_id in lost)
    np.testing.assert_array_equal(w, 0)  # 4 answers, f = 2: not defined
    assert {each.reason for each in strategy.set_aside} == {"no answer in time"}
    strategy = RobustStrategy(Median(), 1)
    w = play(strategy, app(None, faulty=()), rounds=1, lost=lambda m: m.metadata.dst_node_id in lost)
    np.testing.assert_allclose(w, 1.045, rtol=1e-6)


def test_second_and_late_answers_do_not_count() -> None:
    strategy, grid = RobustStrategy(Median(), 0), InProcessGrid(app(None, faulty=()), 3)
    first = list(grid.send_and_receive(strategy.configure_train(1, initial(), ConfigRecord(), grid)))
    asked = strategy.configure_train(2, initial(), ConfigRecord(), grid)
    second = list(grid.send_and_receive(asked))
    moved, metrics = strategy.aggregate_train(2, [*first, *second, second[0]])
    assert moved is not None
    np.testing.assert_allclose(moved["w"].numpy(), 1.01, rtol=1e-6)
    assert dict(metrics or {}) == {"asked": 3, "accepted": 3, "num-examples": 10.0, "loss": 0.5}
    assert [each.reason for each in strategy.set_aside] == ["an answer to another round"] * 3 + [
        "a second answer"
    ]


def test_array_by_array() -> None:
    """Krum picks one client for each array where it is applied array by array, one for all otherwise."""
    far = np.array([0.0, 0.1, 0.2, 0.4, 5.0])

    def client(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        a, b = np.full(2, far[i], np.float32), np.full(2, far[4 - i], np.float32)
        return Message(RecordDict({"arrays": ArrayRecord({"a": Array(a), "b": Array(b)})}), reply_to=message)

    each = ClientApp()
    each.train()(client)
    start = ArrayRecord({"a": Array(np.zeros(2, np.float32)), "b": Array(np.zeros(2, np.float32))})
    rows = torch.tensor([[far[i]] * 2 + [far[4 - i]] * 2 for i in range(5)]).float()
    for per_array, expected in {
        False: Krum()(rows, 1),
        True: torch.cat([Krum()(rows[:, :2], 1), Krum()(rows[:, 2:], 1)]),
    }.items():
        strategy = RobustStrategy(Krum(), 1, per_array=per_array, fraction_evaluate=0.0)
        arrays = strategy.start(InProcessGrid(each, 5), start, num_rounds=1).arrays
        assert arrays is not None
        np.testing.assert_allclose(
            np.concatenate([arrays["a"].numpy(), arrays["b"].numpy()]), expected, rtol=1e-6
        )


def test_sampling_waiting_and_counters() -> None:
    strategy = RobustStrategy(
        Median(), fraction_train=0.5, fraction_evaluate=0.0, min_train_nodes=1, patience=0.01
    )
    grid = InProcessGrid(app(None, faulty=()), 7)

    def asked(round: int) -> list[int]:
        messages = strategy.configure_train(round, initial(), ConfigRecord(), grid)
        return [message.metadata.dst_node_id for message in messages]

    assert len(asked(1)) == 3
    assert asked(1) == asked(1) != asked(2)
    assert list(strategy.configure_evaluate(1, initial(), ConfigRecord(), grid)) == []
    strategy.min_available_nodes = 9
    assert len(asked(1)) == 3  # goes on with those that are there
    moved, _ = strategy.aggregate_train(
        1, grid.send_and_receive(strategy.configure_train(1, initial(), ConfigRecord(), grid))
    )
    assert moved is not None
    assert int(moved["steps"].numpy()) == 0
    with pytest.raises(Invalid, match="f = -1"):
        RobustStrategy(Median(), -1)


def test_metrics_are_medians_of_what_was_sent() -> None:
    sent = [{"a": 1}, {"a": 2.0}, {"a": float("nan")}, {"a": [1.0, 2.0]}, {"a": 30, "b": [1, 2]}]
    record = medians([RecordDict({"m": MetricRecord(each)}) for each in sent])
    assert dict(record) == {"a": 2.0, "b": [1.0, 2.0]}


def test_the_counts_of_a_round_are_the_servers() -> None:
    def boasting(w: np.ndarray) -> RecordDict:
        content = good(w)
        content["metrics"] = MetricRecord({"asked": 1000, "accepted": 0, "num-examples": 10})
        return content

    strategy = RobustStrategy(Median(), 1, fraction_evaluate=0.0)
    result = strategy.start(InProcessGrid(app(boasting), 7), initial(), num_rounds=1)
    counts = result.train_metrics_clientapp[1]
    assert (counts["asked"], counts["accepted"]) == (7, 7)


def test_a_second_start_begins_anew() -> None:
    strategy = RobustStrategy(CenteredClipping(tau=0.5), fraction_evaluate=0.0)
    first = play(strategy, app(None, faulty=()))
    np.testing.assert_array_equal(first, play(strategy, app(None, faulty=())))
    strategy.start(InProcessGrid(app(None, faulty=()), 7), initial(5), num_rounds=1)


def test_a_function_of_ones_own_may_fail() -> None:
    def trusting(contents: list[RecordDict], key: str) -> MetricRecord:
        return MetricRecord({"n": sum(c["metrics"][key] for c in contents)})

    strategy = RobustStrategy(Median(), 1, train_metrics_aggr_fn=trusting, fraction_evaluate=0.0)
    result = strategy.start(InProcessGrid(app(HARMLESS["no metrics"]), 7), initial(), num_rounds=1)
    assert dict(result.train_metrics_clientapp[1]) == {"asked": 7, "accepted": 7}


def test_short_forms() -> None:
    for name in (
        "Bulyan",
        "GeometricMedian",
        "Krum",
        "MeanAroundMedian",
        "Median",
        "MultiKrum",
        "NNA",
        "TrimmedMean",
    ):
        strategy = getattr(flower, name)(f=1, fraction_evaluate=0.0)
        assert type(strategy.rule).__name__ == name
        w = play(strategy, app(HARMLESS["absurd weight"]), rounds=1)
        assert np.all((w >= 1) & (w <= 1.07)), name
    w = play(flower.SignMajority(server_lr=0.25, f=1), app(FAULTS["Inf"]), rounds=2)
    np.testing.assert_array_equal(w, 0.5)
