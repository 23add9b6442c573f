"""The clock: seconds against their laws in closed form, absences against a brute-force scan, all from addresses."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim.check import Invalid
from fedsim.clock import (
    Bandwidth,
    Clock,
    Constant,
    Dropouts,
    Exponential,
    Ladder,
    Load,
    LogNormal,
    Pareto,
    Trace,
    Turns,
    Wave,
)
from fedsim.clock.paces import Pace
from fedsim.clock.presence import Presence
from fedsim.keys import Keys

KEYS = Keys(seed=5, clients=20)
DEVICES: dict[str, dict[str, Any]] = {
    "a": {"computation": 10.0, "communication": 100, "active": [2, 6], "inactive": [4, 9], "finish_time": 10},
    "b": {"computation": 50.0, "communication": 1000},
    "c": {"computation": 5, "communication": 10, "active": [0, 5], "inactive": [3, 10], "finish_time": 10},
}


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    (tmp_path / "devices.json").write_text(json.dumps(DEVICES))
    return Trace(str(tmp_path / "devices.json"), batch=4)


def drawn(pace: Pace, client: int = 3, count: int = 4000) -> np.ndarray:
    return np.array([pace.gradient_seconds(KEYS, client, gradient, 0.0) for gradient in range(count)])


@pytest.mark.parametrize(
    ("pace", "law"),
    [
        (Exponential(2.0), stats.expon(scale=2.0)),
        (LogNormal(3.0, 0.7), stats.lognorm(0.7, scale=3.0)),
        (Pareto(0.5, 1.5), stats.pareto(1.5, scale=0.5)),
        (Constant(4.0), None),
    ],
)
def test_seconds_follow_their_law(pace: Pace, law: Any) -> None:
    found = drawn(pace)
    if law is None:
        assert set(found) == {4.0}
    else:
        assert stats.kstest(found, law.cdf).pvalue > 1e-3
        assert len(set(found)) == len(found)


def test_the_ladder_is_that_of_the_release() -> None:
    """Client of rank r: 1 + r + |N(0, r + 1)|, and every rank is somebody's."""
    least = [drawn(Ladder(noise=0.0), client, 1)[0] for client in range(20)]
    assert sorted(least) == list(range(1, 21))
    for client in (0, 7):
        excess = drawn(Ladder(), client) - least[client]
        assert stats.kstest(excess, stats.halfnorm(scale=least[client]).cdf).pvalue > 1e-3


def test_spreads_are_a_client_s_own() -> None:
    pace = Exponential(1.0, spread=1.0)
    means = np.array([drawn(pace, client, 2000).mean() for client in range(20)])
    assert np.log(means).std() > 0.5
    assert np.corrcoef(drawn(pace, 1), drawn(pace, 2))[0, 1] < 0.1


def test_a_wave_and_turns() -> None:
    wave = Wave(Constant(2.0), factor=3.0, period=10.0)
    over = np.array([wave.gradient_seconds(KEYS, 4, 0, t) for t in np.linspace(0, 10, 1000, endpoint=False)])
    assert 1.999 < over.min() < 2.001
    assert 5.999 < over.max() < 6.001
    assert over.mean() == pytest.approx(4.0)
    turns = Turns(Constant(0.1), Constant(9.0), every=3)
    assert drawn(turns, count=8).tolist() == [0.1] * 3 + [9.0] * 3 + [0.1] * 2


def test_a_number_has_an_address() -> None:
    """Whatever was asked before, in whatever order, by another instance of the same values."""
    ahead = [Exponential(1.0).gradient_seconds(KEYS, 2, g, 0.0) for g in range(200)]
    back = [Exponential(1.0).gradient_seconds(Keys(5, 20), 2, g, 7.0) for g in reversed(range(200))]
    assert ahead == back[::-1]
    assert ahead != [Exponential(1.0).gradient_seconds(Keys(6, 20), 2, g, 0.0) for g in range(200)]


def scanned(away: Any, since: float, until: float, step: float = 0.25) -> tuple[float, float]:
    """The first absence by looking at every instant of a grid: `away(t)` says whether the client is away then."""
    t = since
    while not away(t):
        t += step
        if t > until:
            return inf, inf
    left = back = t
    while left > 0 and away(left - step):
        left -= step
    while away(back):
        back += step
    return left, back


@pytest.mark.parametrize("client", range(6))
def test_dropouts_are_those_of_a_scan(client: int) -> None:
    presence, shares = Dropouts(every=1.0, chance=0.4), []

    def away(t: float) -> bool:
        left, back = presence.absence(KEYS, client, t, t)
        return left <= t < back

    for since in np.arange(0, 30, 0.75):
        for until in (since, since + 3):
            assert presence.absence(KEYS, client, since, until) == scanned(away, since, until)
    shares = [away(t + 0.5) for t in range(500)]
    assert 0.3 < np.mean(shares) < 0.5


def test_absences_of_a_trace_are_those_of_a_scan(trace: Trace) -> None:
    """Also over the end of the period, where an absence goes on into the next; device c has none there."""
    chosen = {id_: device for id_, device in _devices(trace).items() if "active" in device}
    assert {device["computation"] for device in chosen.values()} == {10.0, 5}
    for client, device in chosen.items():
        spans = list(zip(device["active"], device["inactive"], strict=True))

        def away(t: float, spans: list[tuple[float, float]] = spans) -> bool:
            return not any(a <= t % 10 < b for a, b in spans)

        for since in np.arange(0, 32, 0.25):
            for until in (since, since + 2, since + 15):
                assert trace.absence(KEYS, client, since, until) == scanned(away, since, until), (
                    since,
                    until,
                )


def _devices(trace: Trace) -> dict[int, dict[str, Any]]:
    return {client: trace._device(KEYS, client) for client in range(20)}


def test_a_trace_says_seconds(trace: Trace) -> None:
    for client, device in _devices(trace).items():
        assert trace.gradient_seconds(KEYS, client, 0, 0.0) == 3 * 4 * device["computation"] / 1000
        assert trace.message_seconds(KEYS, client, 0, 5000, up=True) == 5 / device["communication"]
    assert {d["computation"] for d in _devices(trace).values()} == {10.0, 50.0, 5}


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([], "table of devices"),
        ({"a": {"communication": 1}}, "computation = None: must be a number above 0"),
        ({"a": {**DEVICES["b"], "communication": True}}, "communication = True: must be a number above 0"),
        ({"a": {**DEVICES["b"], "active": [1]}}, "has active, and not all of"),
        ({"a": {**DEVICES["a"], "inactive": [9, 4]}}, "must alternate and grow"),
        ({"a": {**DEVICES["a"], "finish_time": 8}}, "must alternate and grow"),
    ],
)
def test_a_trace_of_another_form_is_refused(tmp_path: Path, devices: Any, words: str) -> None:
    (tmp_path / "odd.json").write_text(json.dumps(devices))
    with pytest.raises(Invalid, match=words):
        Trace(str(tmp_path / "odd.json")).gradient_seconds(KEYS, 0, 0, 0.0)
    with pytest.raises(Invalid, match="cannot be read as JSON"):
        Trace(str(tmp_path / "absent.json")).gradient_seconds(KEYS, 0, 0, 0.0)


def test_a_spell_is_the_model_the_gradients_and_the_message() -> None:
    clock = Clock(Constant(2.0), Bandwidth(up=100.0, down=1000.0, latency=0.5), byzantine=Constant(0.25))
    load = Load(gradients=3, up=200, down=4000)
    spell = clock.spell(KEYS, 1, 0, 10.0, load)
    assert (spell.begun, spell.sent, spell.arrived) == (10.0, 10 + 4.5 + 6, 10 + 4.5 + 6 + 2.5)
    assert clock.spell(KEYS, 1, 0, 10.0, load, hostile=True).sent == 10 + 4.5 + 0.75


class Once(Presence):
    """Away from 5 to 8, and from 20 to 30."""

    def absence(self, keys: Keys, client: int, since: float, until: float) -> tuple[float, float]:
        return next(
            (gap for gap in ((5.0, 8.0), (20.0, 30.0)) if gap[1] > since and gap[0] <= until), (inf, inf)
        )


def test_who_is_away_begins_later_and_who_leaves_loses_its_work() -> None:
    clock = Clock(Constant(3.0), presence=Once())
    load = Load(1, 0, 0)
    lost = clock.spell(KEYS, 0, 0, 4.0, load)
    assert (lost.begun, lost.arrived, lost.left, lost.back, lost.known) == (4.0, inf, 5.0, 8.0, 5.0)
    later = clock.spell(KEYS, 0, 0, 6.0, load)
    assert (later.begun, later.arrived) == (8.0, 11.0)
    assert clock.spell(KEYS, 0, 0, 1.0, load).arrived == 4.0


def test_what_no_clock_can_be() -> None:
    with pytest.raises(Invalid, match="nobody is late; give a deadline"):
        Clock(Constant(1.0), late="carried")
    for wrong in (lambda: Pareto(1.0, 0.01), lambda: LogNormal(1.0, 50.0), lambda: Dropouts(1.0, 1.0)):
        with pytest.raises(Invalid, match="must be"):
            wrong()
