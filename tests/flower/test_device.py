"""A device: its own noise, data, memory and ledger, and terms that no server talks it out of; in this process."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from scipy.stats import kstest
from test_messages import small

from fedsim.accounting import gaussian_epsilon
from fedsim.attacks import IPM, LabelFlip
from fedsim.batches import Fixed, Poisson
from fedsim.check import Invalid
from fedsim.datasets.load import Digits
from fedsim.deploy import app
from fedsim.deploy.device import DeviceFederation
from fedsim.deploy.entropy import normal
from fedsim.deploy.spent import Spent
from fedsim.deploy.terms import Terms
from fedsim.deploy.trial import Trial
from fedsim.federation import Federation
from fedsim.flower.grid import FIRST_NODE, InProcessGrid
from fedsim.flower.memory import Memory
from fedsim.flower.remote import Remote, discover
from fedsim.messages import All, NaturalCompression, RandK, Signs, TopK
from fedsim.method import Method
from fedsim.models import Logistic
from fedsim.privacy import CentralDP, ExampleDP, MessageDP, RandomizedResponse
from fedsim.round import answer
from fedsim.runner import Result, run
from fedsim.spec import Experiment
from fedsim.strategies import (
    DIANA,
    EF14,
    EF21,
    MARINA,
    NNM,
    QFFL,
    SCAFFOLD,
    SSDM,
    SSVRMV,
    ByzClip21SGD2MPlus,
    Chain,
    Ditto,
    DVRSign,
    EControl,
    EF21Muon,
    FedAvg,
    FedDyn,
    FedPer,
    HeavyBall,
    HeavyTailSign,
    JaguarSignSGD,
    MajorityVote,
    Mean,
    Median,
    SignSGD,
    Signum,
    StochasticVote,
)
from fedsim.strategies.methods.ef21 import Normalized
from fedsim.strategies.methods.estimators import HM, MVR
from fedsim.task import Task


def terms(client: int, **changes: Any) -> Terms:
    """A device's terms, without a budget unless they say otherwise."""
    return Terms(**{"client": client, "epsilon": None, "delta": None, **changes})


class Site:
    """Devices in folders of their own, on a grid in this process, and a server that runs experiments on them."""

    def __init__(self, place: Path, clients: int = 5, **changes: Any) -> None:
        self.place, self.clients = place, clients
        for i in range(clients):
            self.folder(i).mkdir(parents=True)
            terms(i, **{"test_mode": True, **changes}).save(self.folder(i) / "device.toml")

    def folder(self, i: int) -> Path:
        return self.place / str(i)

    def grid(self, lost: Callable[[Message], bool] = lambda m: False) -> InProcessGrid:
        app._device.cache_clear()  # as in a process of its own: what a device knows is on its disk
        grid = InProcessGrid(app.client, self.clients, lost=lost)
        for i in range(self.clients):
            grid.contexts[FIRST_NODE + i].node_config["device"] = str(self.folder(i))
        return grid

    def run(
        self, e: Experiment, grid: InProcessGrid | None = None, **config: Any
    ) -> tuple[Result, list[str]]:
        trial = Trial(config.get("test-mode", True), config.get("red-team", False), timeout=1.0)
        trial.check(e)
        grid, out = grid or self.grid(), Path(config.get("out", self.place / "out"))
        nodes = discover(grid, Federation(e).computing)
        result, remote = app.serve(grid, Federation(e), trial, nodes, out, config.get("resume", False))
        return result, [each.reason for each in remote.set_aside]

    def spent(self, i: int) -> Spent:
        return Spent.load(self.folder(i) / "ledger.json")


def same(a: Result, b: Result) -> bool:
    return all(torch.equal(a.model[name], value) for name, value in b.model.items())


def asking(site: Site, e: Experiment) -> Callable[[int, int], tuple[torch.Tensor, list[str]]]:
    """A server that asks all devices for any round, in normal mode, and says that it took in any: rows and refusals."""
    fed = Federation(e)

    def ask(round: int, accepted: int) -> tuple[torch.Tensor, list[str]]:
        grid = site.grid()
        remote = Remote(grid, discover(grid, site.clients), run="again", derived=False)
        states = {"accepted": torch.full((site.clients,), accepted)}
        _, came, _ = remote(fed, states, {"x": fed.x0}, round, np.arange(site.clients))
        return came.rows, [each.reason for each in remote.set_aside]

    return ask


# ---------------------------------------------------------------- entropy
def test_noise_is_normal_and_comes_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from fedsim.deploy import entropy

    bytes_drawn = []
    real = os.urandom
    monkeypatch.setattr(entropy.os, "urandom", lambda n: bytes_drawn.append(n) or real(n))
    state = torch.get_rng_state()
    x = normal(200_004).view(4, -1)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(bytes_drawn) >= 4 * 8 * x.numel()  # four summands of 64 bits each
    assert x.shape == (4, 50_001)
    assert x.dtype == torch.float32
    assert kstest(x.flatten().numpy(), "norm").pvalue > 1e-4
    assert abs(float(np.corrcoef(x.numpy())[0, 1])) < 0.03
    assert abs(float((x**4).mean()) - 3) < 0.1


def test_a_device_draws_its_own_noise_in_the_right_scale() -> None:
    e = small(privacy=MessageDP(noise=0.3, delta=1e-4))
    fed = DeviceFederation(e, terms(2), secret=5, derived=False)
    clean = DeviceFederation(replace(e, privacy=None), terms(2), secret=5, derived=False)
    state = e.method.client_init(fed.x0)
    rows = torch.stack([answer(fed, 2, state, {"x": fed.x0}, 0).message for _ in range(200)])
    noise = rows - answer(clean, 2, state, {"x": fed.x0}, 0).message
    assert abs(float(noise.std()) / (0.3 * 2 * 0.3) - 1) < 0.02  # multiplier times sensitivity 2 tau
    derived = DeviceFederation(e, terms(2), secret=5, derived=True)
    keys = fed.keys.of("client", 0, np.array([2]))
    ours, again, address = (each.uniform(keys, 0, 5000, torch.float32) for each in (fed, fed, derived))
    assert torch.equal(address, Federation(e).uniform(keys, 0, 5000, torch.float32))
    assert not torch.equal(ours, again)
    assert ours.shape == (1, 5000)
    assert kstest(ours[0].numpy(), "uniform").pvalue > 1e-4
    assert torch.equal(
        answer(derived, 2, state, {"x": fed.x0}, 0).message,
        answer(Federation(e), 2, state, {"x": fed.x0}, 0).message,
    )


def test_batches_are_drawn_from_the_devices_secret() -> None:
    e = small(batches=Fixed(3))
    batches = [
        DeviceFederation(e, terms(0), secret, derived=False).batch(0, np.array([0])).x for secret in (1, 2)
    ]
    assert not torch.equal(*batches)


# ---------------------------------------------------------------- whole runs
def test_in_test_mode_a_deployment_is_the_loop(tmp_path: Path) -> None:
    e = small(clients=6, byzantine=1, attack=IPM(2.0))
    result, aside = Site(tmp_path, 6).run(e, **{"red-team": True})
    truth = run(e, engine="loop", device="cpu")
    assert same(result, truth)
    assert not aside
    assert "epsilon" not in result.frame
    assert result.summary["epsilon"] is None
    assert result.notes[0].startswith("no epsilon")


@pytest.mark.parametrize(
    "method",
    [
        *(SCAFFOLD(lr=0.2), FedDyn(lr=0.2, alpha=0.3), Ditto(lr=0.2), FedPer(lr=0.2, kept=("*.bias",))),
        EF21(MVR(), TopK(0.2, NaturalCompression()), Normalized(0.3), down=TopK(0.2), start="whole"),
        EF21(HM(), All()),
        *(EControl(up=All(Signs())), EF14(up=RandK(0.3)), DIANA(), MARINA(p=0.4), EF21Muon()),
        *(SignSGD(0.01, zeros="coin"), Signum(0.01), HeavyTailSign(0.01, samples=2)),
        *(StochasticVote(), SSVRMV(), SSDM(), DVRSign()),
    ],
    ids=lambda method: type(method).__name__,
)
def test_what_a_method_keeps_of_a_client_is_on_the_device(method: Method, tmp_path: Path) -> None:
    """Control variates, memories and models of devices that are asked now and then; the server sees none of them."""
    rule = MajorityVote() if "Sign" in type(method).__name__ or "Vote" in type(method).__name__ else Median()
    e = small(method=method, rule=rule, privacy=None, cohort=3, f=0)
    site = Site(tmp_path)
    result, aside = site.run(e)
    truth = run(e, engine="loop", device="cpu")
    assert not aside
    assert same(result, truth)
    assert not [column for column in result.frame if column.startswith("personal")]  # only they could say
    memories = [Memory.load(path.read_bytes()) for path in tmp_path.glob("*/memory-*.pt")]
    own = [memory.pending.state for memory in memories if memory.pending]
    assert len(own) == 5
    assert all(set(state) == set(method.client_init(torch.zeros(1))) for state in own)
    assert result.frame["uplink_bits"].tolist() == truth.frame["uplink_bits"].tolist()
    assert result.frame["downlink_bits"].tolist() == truth.frame["downlink_bits"].tolist()
    if method.uplink is not None:
        fed = Federation(e)
        sent = [3 * (-(-fed.uplink_bits(t) // 8) + 128) for t in range(e.rounds)]
        assert result.frame["bytes"].tolist() == sent


@pytest.mark.parametrize("method", [JaguarSignSGD(lr=0.1), QFFL(lr=0.2)], ids=repr)
def test_losses_are_taken_on_the_device(method: Method, tmp_path: Path) -> None:
    """And numbers that all draw alike; messages of a width of their own."""
    e = small(method=method, rule=Mean(), privacy=None, cohort=3, f=0)
    result, aside = Site(tmp_path).run(e)
    assert not aside
    assert same(result, run(e, engine="loop", device="cpu"))


def digits(**changes: Any) -> Experiment:
    """5 devices hold handwritten digits; one of them is Byzantine, and the server forges for it."""
    return replace(
        small(),
        task=Task(data=Digits(), model=Logistic()),
        method=ByzClip21SGD2MPlus(lr=2.0, tau=1.0, beta=0.1, beta_hat=1.0),
        rule=Chain(NNM(), Median()),
        privacy=ExampleDP(clip=1.0, noise=2.0, delta=1e-4),
        batches=Poisson(rate=0.5),
        byzantine=1,
        attack=IPM(10.0),
        f=None,
        rounds=25,
        evaluate_every=5,
        **changes,
    )


def test_in_normal_mode_it_learns_and_every_ledger_is_right(tmp_path: Path) -> None:
    e, site = digits(), Site(tmp_path, test_mode=False)
    result, aside = site.run(e, **{"test-mode": False, "red-team": True})
    assert not aside
    assert result.accuracy > 0.6
    assert not same(result, run(e, engine="loop", device="cpu"))
    assert result.summary["epsilon"] == run(e, engine="loop", device="cpu").summary["epsilon"]
    for i in range(4):  # the fifth was never asked: the red team spoke for it
        assert site.spent(i).rounds == e.rounds
        assert site.spent(i).epsilon(1e-4) == pytest.approx(result.summary["epsilon"], rel=1e-9)
    assert site.spent(4).rounds == 0


def test_the_ledger_composes_runs_and_outlives_them(tmp_path: Path) -> None:
    """Gaussian releases compose in closed form: mu^2 = rounds / z^2, over runs and restarts."""
    e, site = (
        small(privacy=MessageDP(noise=2.0, delta=1e-4), rounds=3),
        Site(tmp_path, epsilon=50.0, delta=1e-4),
    )
    for done in range(1, 4):
        site.run(e, out=str(tmp_path / f"out{done}"), **{"test-mode": False})
        assert site.spent(0).epsilon(1e-4) == pytest.approx(
            gaussian_epsilon((3 * done) ** 0.5 / 2.0, 1e-4), rel=1e-6
        )


def test_signs_are_flipped_and_paid_for_on_the_device(tmp_path: Path) -> None:
    """By chance of its own, which no address gives; its ledger books the Gaussian that bounds randomized response."""
    privacy = RandomizedResponse(noise=0.3, delta=1e-4)
    e = small(method=Signum(lr=0.01), rule=MajorityVote(), privacy=privacy, rounds=4)
    site = Site(tmp_path, test_mode=False)
    budget = gaussian_epsilon(3**0.5 / 0.3, 1e-4)
    terms(1, epsilon=budget, delta=1e-4).save(site.folder(1) / "device.toml")
    result, aside = site.run(e, **{"test-mode": False})
    assert result.frame["answered"].tolist() == [5, 5, 5, 4]
    assert "over all runs" in aside[0]
    assert site.spent(1).epsilon(1e-4) == pytest.approx(budget, rel=1e-6)
    paid = site.spent(0).epsilon(1e-4)
    assert paid == pytest.approx(gaussian_epsilon(4**0.5 / 0.3, 1e-4), rel=1e-6)
    assert paid / (np.pi / 2) < result.summary["epsilon"] <= paid
    fed = DeviceFederation(e, terms(2), secret=5, derived=False)
    d, p = fed.width, fed.response.flips(fed.ledger.plan, 0)
    assert result.frame["bytes"].iloc[0] == 5 * (-(-d // 8) + 128)
    state, told = e.method.client_init(fed.x0), {"x": fed.x0}
    honest = answer(DeviceFederation(replace(e, privacy=None), terms(2), 5, False), 2, state, told, 0).message
    rows = torch.stack([answer(fed, 2, state, told, 0).message for _ in range(400)])
    assert set(rows.unique().tolist()) == {-1.0, 1.0}
    flipped = (rows != honest).double().mean(0)[honest != 0]
    assert abs(float(flipped.mean()) - p) < 5 * (p * (1 - p) / (400 * len(flipped))) ** 0.5
    derived = Federation(e).uniform(fed.keys.of("flips", 0, np.array([2])), 0, d, torch.float32)
    assert not torch.equal(
        answer(fed, 2, state, told, 0).message, torch.where(derived[0] < 1 - p, 1, -1) * honest
    )


def test_a_ledger_does_not_add_what_has_no_common_epsilon(tmp_path: Path) -> None:
    """Replace-one and add-or-remove are different promises: an answer under the other one is refused, unpaid."""
    site = Site(tmp_path, epsilon=50.0, delta=1e-4)
    e = small(privacy=ExampleDP(clip=1.0, noise=2.0, delta=1e-4), rounds=2)
    site.run(e, **{"test-mode": False})
    before = site.spent(0)
    _, aside = site.run(replace(e, batches=Poisson(size=4)), out=str(tmp_path / "b"), **{"test-mode": False})
    assert "add-or-remove, this device's ledger by replace-one" in aside[0]
    assert site.spent(0) == before


def test_a_device_stops_at_its_budget_and_the_run_goes_on(tmp_path: Path) -> None:
    e, site = small(privacy=MessageDP(noise=2.0, delta=1e-4), rounds=6), Site(tmp_path)
    budget = gaussian_epsilon(4**0.5 / 2.0, 1e-4)
    terms(1, epsilon=budget, delta=1e-4).save(site.folder(1) / "device.toml")
    result, aside = site.run(e, **{"test-mode": False})
    assert result.frame["answered"].tolist() == [5, 5, 5, 5, 4, 4]
    assert len(aside) == 2
    assert "over all runs" in aside[0]
    assert site.spent(1).epsilon(1e-4) == pytest.approx(budget, rel=1e-6)
    again, _ = site.run(replace(e, seed=1), out=str(tmp_path / "again"), **{"test-mode": False})
    assert again.frame["answered"].tolist() == [4] * 6  # another experiment, another run: the budget is gone


TERMS: dict[str, tuple[dict[str, Any], str]] = {
    "noise": ({"min_noise": 0.5}, "noise multiplier 0.3 in round 0: this device asks for 0.5"),
    "rounds": ({"max_rounds": 2}, "this device agreed to 2, over all runs"),
    "another experiment": ({"fingerprint": "0" * 16}, "this device agreed to 0000000000000000 alone"),
    "derived noise": ({"test_mode": False}, "this device has test_mode = false"),
    "budget": ({"epsilon": 0.1, "delta": 1e-4}, "this device agreed to 0.1"),
    "another client": ({"client": 4}, "this device is client 4"),
}


@pytest.mark.parametrize("case", TERMS)
def test_terms_are_kept(case: str, tmp_path: Path) -> None:
    changes, reason = TERMS[case]
    site = Site(tmp_path)
    terms(**{"client": 3, "test_mode": True, **changes}).save(site.folder(3) / "device.toml")
    result, aside = site.run(small(), **{"test-mode": case == "derived noise"})
    assert reason in aside[0]
    assert result.frame["answered"].tolist()[-1] == 4


def test_a_device_is_byzantine_only_where_it_agreed_to(tmp_path: Path) -> None:
    e = small(byzantine=1, attack=LabelFlip())
    site = Site(tmp_path)
    with pytest.raises(Invalid, match="red team"):
        site.run(e)
    _, aside = site.run(e, **{"red-team": True})
    assert "red_team = false" in aside[0]
    terms(4, red_team=True, test_mode=True).save(site.folder(4) / "device.toml")
    result, aside = site.run(e, **{"red-team": True})
    assert not aside
    assert same(result, run(e, engine="loop", device="cpu"))


def test_without_privacy_a_budget_is_no_budget(tmp_path: Path) -> None:
    site = Site(tmp_path, epsilon=1.0, delta=1e-4)
    _, aside = site.run(small(privacy=None), **{"test-mode": False})
    assert "an experiment without privacy" in aside[0]


def test_a_round_without_privacy_uses_up_any_budget(tmp_path: Path) -> None:
    site, e = Site(tmp_path, test_mode=False), small()
    site.run(replace(e, privacy=None), **{"test-mode": False})
    assert site.spent(0).epsilon(1e-4) == inf
    terms(0, epsilon=100.0, delta=1e-4).save(site.folder(0) / "device.toml")
    result, aside = site.run(e, out=str(tmp_path / "private"), **{"test-mode": False})
    assert "would bring epsilon to inf" in aside[0]
    assert result.frame["answered"].tolist() == [4] * 4


def test_answers_in_test_mode_are_left_out_of_epsilon(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.run(small(privacy=None))
    assert (site.spent(0).rounds, site.spent(0).epsilon(1e-4)) == (4, 0.0)


def test_a_ledger_as_it_was_written_before_is_read(tmp_path: Path) -> None:
    entry = {"fingerprint": "f", "derived": False, "adjacency": None, "rounds": [0, 1], "releases": []}
    release = {"z": 2.0, "times": 2, "sampling": "none", "rate": 1.0}
    private = {**entry, "adjacency": "replace-one", "releases": [release]}
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps({"a": private}))
    assert Spent.load(path).epsilon(1e-4) == pytest.approx(gaussian_epsilon(2**0.5 / 2.0, 1e-4), rel=1e-6)
    path.write_text(json.dumps({"a": private, "b": entry}))
    assert Spent.load(path).epsilon(1e-4) == inf


CENTRAL = small(
    method=FedAvg(lr=0.1, local_steps=1, tau=0.3, weights="equal"),
    rule=Mean(),
    f=0,
    privacy=CentralDP(noise=1.0, delta=1e-4),
)


def test_the_servers_noise_is_not_the_devices_own(tmp_path: Path) -> None:
    """A server that makes devices believe in noise of its own gets nothing from those who asked for any."""
    site = Site(tmp_path)
    terms(0, min_noise=0.5).save(site.folder(0) / "device.toml")
    terms(1, epsilon=1000.0, delta=1e-4).save(site.folder(1) / "device.toml")
    rows, refused = asking(site, CENTRAL)(0, -1)
    assert len(rows) == 3
    assert "noise multiplier 0 in round 0: this device asks for 0.5" in refused[0]
    assert "an experiment without privacy in its messages" in refused[1]
    assert site.spent(2).epsilon(1e-4) == inf


def test_a_server_takes_no_central_noise_for_private(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with pytest.raises(Invalid, match="every device gets"):
        site.run(CENTRAL, **{"test-mode": False})
    result, aside = site.run(CENTRAL)
    assert not aside
    assert result.summary["epsilon"] is None
    assert same(result, run(CENTRAL, engine="loop", device="cpu"))


# ---------------------------------------------------------------- data of its own
def own(site: Site, i: int, x: Any, y: Any, **changes: Any) -> Path:
    """Give device i a file of its own."""
    path = site.folder(i) / "own.npz"
    np.savez(path, x=x, y=y)
    terms(i, data=str(path), **changes).save(site.folder(i) / "device.toml")
    return path


def test_own_data_stay_on_the_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    e, site = small(batches=Fixed(4)), Site(tmp_path)
    held = Federation(e)
    for i in range(5):
        part = slice(int(held.starts[i]), int(held.starts[i] + held.sizes[i]))
        x, y = held.train.x[part].numpy(), held.train.y[part].numpy()
        path = own(site, i, x, y, classes=held.classes, test_mode=True)
    result, aside = site.run(e)
    assert not aside
    assert same(result, run(e, engine="loop", device="cpu"))
    path.write_bytes(b"nothing")
    _, aside = site.run(replace(e, seed=2), out=str(tmp_path / "second"))
    assert "its own log says why" in aside[0]
    assert "own.npz" not in aside[0]
    assert "own.npz" in caplog.text


def test_an_example_that_no_clip_bounds_is_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One NaN makes the whole message NaN, whatever clip and noise: its presence would be seen."""
    site, x = Site(tmp_path), np.zeros((10, 20), np.float32)
    x[3, 7] = np.inf
    own(site, 0, x, np.zeros(10, np.int64))
    _, refused = asking(site, small(privacy=ExampleDP(clip=1.0, noise=1.0), method=HeavyBall(lr=0.1)))(0, -1)
    assert "its own log says why" in refused[0]
    assert "1 of 10 examples with NaN or Inf" in caplog.text
    assert site.spent(0).rounds == 0


def test_the_server_states_no_epsilon_for_data_that_it_does_not_have(tmp_path: Path) -> None:
    """Of 10 examples a batch of 4 shows much more than of the 400 that the experiment's partition gives a client."""
    e = small(privacy=ExampleDP(clip=1.0, noise=1.0, delta=1e-4), method=HeavyBall(lr=0.1), evaluate_every=2)
    site = Site(tmp_path, test_mode=False)
    partition, _ = site.run(e, **{"test-mode": False})
    assert partition.summary["epsilon"] == pytest.approx(site.spent(3).epsilon(1e-4), rel=1e-9)
    own(site, 3, np.zeros((10, 20), np.float32), np.zeros(10, np.int64))
    for settings in ({}, {"resume": True}):  # resumed at its end, no device is asked any more
        mixed, aside = site.run(e, out=str(tmp_path / "mixed"), **{"test-mode": False, **settings})
        assert not aside
        assert mixed.summary["epsilon"] is None
        assert mixed.frame["epsilon"].isna().all()
        assert "1 of the devices hold data of their own" in mixed.notes[0]
        assert not any("epsilon = " in note for note in mixed.notes)
    assert site.spent(3).epsilon(1e-4) > 3 * site.spent(2).epsilon(1e-4)


def test_the_apps_on_a_superlink(tmp_path: Path) -> None:
    """The whole ServerApp and ClientApp as `flwr run` starts them, with the configuration that docs/flower.md shows."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "flower.md").read_text()
    snippet = tomllib.loads(next(part for part in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)))
    assert snippet["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "fedsim.deploy.app:server",
        "clientapp": "fedsim.deploy.app:client",
    }
    config = snippet["tool"]["flwr"]["app"]["config"] | {
        "experiment": small().to_json(),
        "out": str(tmp_path / "run"),
    }
    grid = InProcessGrid(app.client, 5, run_config=config)
    app.server(grid=grid, context=grid.server_context)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy"] == run(small(), engine="loop", device="cpu").accuracy
