"""Every engine does what the loop does: one round from a common state, every method, with and without privacy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from fedsim import engines
from fedsim.asynchronous import Asynchronous
from fedsim.attacks import ALIE, IPM, LabelFlip
from fedsim.batches import Batches, Fixed, Full, Poisson
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import Dirichlet
from fedsim.engines.vector import _sum
from fedsim.federation import Federation, Ids
from fedsim.gradients import one_client
from fedsim.messages import All, ByLayer, NaturalCompression, RandK, RankK, Signs, TopK
from fedsim.method import Method
from fedsim.models import MLP
from fedsim.privacy import ExampleDP, MessageDP, Privacy, Quantile
from fedsim.round import Messages, Server, attempt, finish
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.states import States
from fedsim.strategies import (
    DIANA,
    EF14,
    EF21,
    FRUGAL,
    MARINA,
    NGNM,
    NNA,
    NNM,
    QFFL,
    SCAFFOLD,
    SSDM,
    SSVRMV,
    SWAN,
    Adam,
    Bucketing,
    ByzClip21SGD2M,
    ByzClip21SGD2MPlus,
    ByzClipSGD,
    Chain,
    ClientMuon,
    Clip21SGD2M,
    DecayingLocalSGD,
    DiffGrad,
    Ditto,
    DropMuon,
    DualLocalSGD,
    DVRSign,
    EControl,
    EF21Muon,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedDyn,
    FedMuon,
    FedNova,
    FedPer,
    FedProx,
    FedSGD,
    FedYogi,
    Gluon,
    HeavyBall,
    HeavyTailSign,
    JaguarMuon,
    JaguarSignSGD,
    MajorityVote,
    Mean,
    Median,
    MinibatchSGD,
    MoNNA,
    Muon,
    NoisyMedian,
    SafeDSHB,
    Scion,
    SGDSaI,
    SignMuon,
    SignSGD,
    Signum,
    StochasticVote,
    TrimmedMean,
)
from fedsim.strategies.methods.ef21 import Normalized, Plain
from fedsim.strategies.methods.estimators import HM, IGT, MVR, PAGE, ClippedHM, Decay
from fedsim.strategies.oracles import NewtonSchulz, Norms, Spectral
from fedsim.task import Task
from fedsim.types import Attack, Batch, Rule, State, View, weighted_mean

ROBUST = Chain(NNM(), Median())
EXAMPLE, MESSAGE = ExampleDP(clip=0.5, noise=0.3, delta=1e-4), MessageDP(noise=0.3, delta=1e-4)
CASES: dict[str, tuple[Method, Rule, Privacy | None]] = {
    "FedSGD": (FedSGD(lr=0.5), ROBUST, None),
    "HeavyBall": (HeavyBall(lr=0.5), ROBUST, None),
    "HeavyBall, example": (HeavyBall(lr=0.5), ROBUST, EXAMPLE),
    "FedAvg": (FedAvg(lr=0.5, local_steps=3), ROBUST, None),
    "FedAvg, message": (FedAvg(lr=0.5, local_steps=3, tau=0.4), ROBUST, MESSAGE),
    "FedAvg, example": (FedAvg(lr=0.5, local_steps=3), ROBUST, EXAMPLE),
    "ByzClipSGD": (ByzClipSGD(lr=0.5, tau=0.3), ROBUST, MESSAGE),
    "SafeDSHB": (SafeDSHB(lr=0.5, tau=0.3), ROBUST, MESSAGE),
    "ByzClip21SGD2M": (ByzClip21SGD2M(lr=0.5, tau=0.3), ROBUST, MESSAGE),
    "ByzClip21SGD2MPlus": (ByzClip21SGD2MPlus(lr=0.5, tau=0.3), ROBUST, EXAMPLE),
    "Clip21SGD2M": (Clip21SGD2M(lr=0.5, tau=0.3), Mean(), MESSAGE),
    "SignSGD": (SignSGD(lr=0.01), MajorityVote(), None),
    "SignSGD, coins": (SignSGD(lr=0.01, zeros="coin"), MajorityVote(), None),
    "Signum": (Signum(lr=0.01), MajorityVote(), EXAMPLE),
    "Adam": (Adam(lr=0.01), ROBUST, None),
    "Adam, example": (Adam(lr=0.01), ROBUST, EXAMPLE),
    "EF21": (EF21(up=TopK(0.3)), ROBUST, None),
    "EF21, example": (EF21(up=ByLayer(TopK(0.3)), move=Normalized(0.3)), ROBUST, EXAMPLE),
    "EF21, message": (EF21(up=TopK(0.3, NaturalCompression()), tau=0.3), ROBUST, MESSAGE),
    "EF21, both ways": (
        EF21(IGT(), RandK(0.5, unbiased=False), Normalized(0.3), down=TopK(0.5)),
        ROBUST,
        None,
    ),
    "EF21, variance reduced": (EF21(MVR(), RankK(2), Normalized(0.3, by_layer=True)), ROBUST, EXAMPLE),
    "EF21, Hessian": (EF21(HM(random=True), TopK(0.3)), ROBUST, None),
    "EF21, clipped Hessian": (EF21(ClippedHM(curvature=0.01), TopK(0.3)), ROBUST, None),
    "EF21, PAGE": (EF21(PAGE(0.4, few=3), TopK(0.3), Plain(1.0)), ROBUST, None),
    "EF21, whole at first": (EF21(up=ByLayer(TopK(0.3)), start="whole"), ROBUST, None),
    "EF21, PAGE, example": (EF21(PAGE(0.4), TopK(0.3)), ROBUST, EXAMPLE),
    "EControl": (EControl(up=TopK(0.3)), ROBUST, None),
    "MARINA": (MARINA(p=0.4, up=RandK(0.3)), ROBUST, EXAMPLE),
    "MARINA, away": (MARINA(p=0.4, up=All(NaturalCompression()), away=True), Mean(), None),
    "EF21Muon": (EF21Muon(), ROBUST, None),
    "EF21Muon, example": (EF21Muon(), Mean(), EXAMPLE),
    "Muon": (Muon(), ROBUST, None),
    "Muon, message": (Muon(tau=0.4), Mean(), MESSAGE),
    "ClientMuon": (
        ClientMuon(polar=NewtonSchulz(2)),
        ROBUST,
        None,
    ),  # more steps, more of a gradient's last bits
    "Scion": (Scion(), ROBUST, EXAMPLE),
    "Scion, before": (Scion(lmo="before", norms=Norms.all(Spectral(polar=NewtonSchulz(2)))), ROBUST, None),
    "Gluon": (Gluon(0.1), ROBUST, None),
    "DropMuon": (DropMuon(), ROBUST, None),
    "SignMuon": (SignMuon(sign="before"), MajorityVote(), None),
    "FedMuon": (FedMuon(local_steps=2), ROBUST, None),
    "JaguarSignSGD": (JaguarSignSGD(tau=10.0), Mean(), None),
    "JaguarMuon": (JaguarMuon(tau=10.0), ROBUST, None),
    "SWAN": (SWAN(), ROBUST, EXAMPLE),
    "FRUGAL": (FRUGAL(), ROBUST, EXAMPLE),
    "SGDSaI": (SGDSaI(), ROBUST, None),
    "DiffGrad": (DiffGrad(), ROBUST, None),
    "NGNM": (NGNM(), ROBUST, None),
    "EF14": (EF14(up=All(Signs())), ROBUST, None),
    "DIANA": (DIANA(up=All(NaturalCompression())), ROBUST, None),
    "FedProx": (FedProx(lr=0.5, local_steps=3, mu=0.5, least=1), ROBUST, None),
    "FedProx, example": (FedProx(lr=0.5, local_steps=3, mu=0.5), ROBUST, EXAMPLE),
    "SCAFFOLD": (SCAFFOLD(lr=0.5, local_steps=3, option="I"), ROBUST, None),
    "SCAFFOLD, message": (SCAFFOLD(lr=0.5, local_steps=3, tau=0.4), ROBUST, MESSAGE),
    "SCAFFOLD, example": (SCAFFOLD(lr=0.5, local_steps=2, option="I"), ROBUST, EXAMPLE),
    "FedNova": (FedNova(lr=0.5, local_steps=3, least=1, momentum=0.5), ROBUST, None),
    "FedNova, example": (FedNova(lr=0.5, local_steps=3, least=1), ROBUST, EXAMPLE),
    "FedDyn": (FedDyn(lr=0.5, local_steps=3, alpha=0.5), ROBUST, None),
    "FedDyn, message": (FedDyn(lr=0.5, local_steps=3, alpha=0.5, tau=0.4), ROBUST, MESSAGE),
    "FedAvgM": (FedAvgM(lr=0.5, local_steps=3), ROBUST, None),
    "FedAdagrad": (FedAdagrad(lr=0.5, local_steps=3), ROBUST, None),
    "FedAdam": (FedAdam(lr=0.5, local_steps=3), ROBUST, None),
    "FedYogi": (FedYogi(lr=0.5, local_steps=3), ROBUST, None),
    "Ditto": (Ditto(lr=0.5, local_steps=2, personal_steps=2), ROBUST, None),
    "Ditto, example": (Ditto(lr=0.5, local_steps=2, personal_steps=2), ROBUST, EXAMPLE),
    "FedPer": (FedPer(lr=0.5, local_steps=3), ROBUST, None),
    "FedPer, message": (FedPer(lr=0.5, local_steps=3, tau=0.4), ROBUST, MESSAGE),
    "FedBN": (FedBN(lr=0.5, local_steps=3, kept=("*.bias",)), ROBUST, None),
    "QFFL": (QFFL(lr=0.5, local_steps=3), ROBUST, None),
    "StochasticVote": (StochasticVote(lr=0.01), MajorityVote(), None),
    "SSVRMV": (SSVRMV(lr=0.01), MajorityVote(), EXAMPLE),
    "SSDM": (SSDM(lr=0.01), Mean(), EXAMPLE),
    "HeavyTailSign": (HeavyTailSign(lr=0.01, samples=2), MajorityVote(), EXAMPLE),
    "HeavyTailSign, vote": (HeavyTailSign(lr=0.01, samples=3, by="vote"), MajorityVote(), None),
    "HeavyTailSign, momentum": (HeavyTailSign(lr=0.01, samples=2, eta=Decay()), MajorityVote(), None),
    "DVRSign": (DVRSign(lr=0.01), Mean(), None),
    "MoNNA": (MoNNA(lr=0.5), NNA(), None),
    "MinibatchSGD": (MinibatchSGD(lr=0.1, local_steps=3), ROBUST, EXAMPLE),
    "DualLocalSGD": (DualLocalSGD(lr=0.1, local_steps=3), Mean(), None),
    "DecayingLocalSGD": (DecayingLocalSGD(lr=0.1, local_steps=3, tau=0.4), ROBUST, MESSAGE),
    "MoNNA, example": (MoNNA(lr=0.5), TrimmedMean(), EXAMPLE),
}


def experiment(method: Method, rule: Rule, privacy: Privacy | None) -> Experiment:
    return Experiment(
        task=Task(data=Blobs(), model=MLP(hidden=8), l2=1e-3),
        split=Dirichlet(1.0),
        clients=9,
        byzantine=2,
        attack=LabelFlip(),
        rule=rule,
        method=method,
        privacy=privacy,
        batches=Fixed(6),
        rounds=3,
        evaluate_every=1,
    )


def agree(e: Experiment, rounds: int = 3, device: str = "cpu") -> None:
    """From the loop's state before each round, another engine's messages, states and model after it are the same."""
    fed, other = Federation(e), Federation(e, device)
    loop, vector = engines.get("loop"), engines.get("vector")
    server, kept = Server.start(fed), States.start(fed.client_state(), fed.computing)
    for t in range(rounds):
        ids = fed.cohort(t)
        working = ids[ids < fed.computing]
        states = kept.of(working)
        told = server.told(e.method)
        after, theirs = vector(other, on(device, states), on(device, told), t, working)
        states, ours = loop(fed, states, told, t, working)
        assert theirs.mean_only == other.mean_only
        mean = weighted_mean(ours.rows, fed.weights(working))[None]
        close(theirs.rows, mean if theirs.mean_only else ours.rows)
        for name, value in states.items():
            close(after[name], value)
        kept = kept.after(working, states)
        after_rows, _ = finish(fed, server, replace(theirs, rows=theirs.rows.cpu(), spare=None), ids, t)
        server, _ = finish(fed, server, ours, ids, t)
        close(after_rows.x, server.x)


def ask(engine: str, fed: Federation, states: State, x: torch.Tensor, ids: Ids) -> Messages:
    """The messages of a first round at x."""
    return engines.get(engine)(fed, states, {"x": x}, 0, ids)[1]


def on(device: str, state: State) -> State:
    return {name: value.to(device) for name, value in state.items()}


def close(ours: torch.Tensor, truth: torch.Tensor) -> None:
    assert float((ours.cpu() - truth).norm()) <= 2e-6 * float(
        truth.norm()
    )  # the least exact kernels have 1.1e-6


@pytest.mark.parametrize("case", CASES)
def test_vector_equals_loop(case: str) -> None:
    agree(experiment(*CASES[case]))


def test_every_method_is_a_case() -> None:
    from fedsim.config import catalog

    tested = {type(method).__name__ for method, _, _ in CASES.values()}
    rounds = {name for name, cls in catalog.names("methods").items() if not issubclass(cls, Asynchronous)}
    assert tested == rounds  # the others: tests/clock/test_course.py


@pytest.mark.parametrize("batches", [Full(), Poisson(size=6)])
@pytest.mark.parametrize("attack", [None, IPM(10.0), ALIE()])
def test_with_uneven_batches_cohorts_and_attacks(batches: Batches, attack: Attack | None) -> None:
    e = experiment(ByzClip21SGD2M(lr=0.5, tau=0.3), ROBUST, EXAMPLE)
    agree(replace(e, attack=attack, batches=batches, cohort=5), rounds=4)


QUANTILE = replace(EXAMPLE, clip=Quantile(start=0.5))
POOLED: dict[str, tuple[Method, Privacy | None]] = {
    "FedSGD": (FedSGD(lr=0.5), None),
    "FedSGD, example": (FedSGD(lr=0.5), EXAMPLE),
    "FedSGD, adaptive clip": (FedSGD(lr=0.5), QUANTILE),
    "FedAvg": (FedAvg(lr=0.5, local_steps=3), None),
    "FedAvg, all alike": (FedAvg(lr=0.5, local_steps=3, weights="equal"), None),
    "FedAvg, message": (FedAvg(lr=0.5, local_steps=3, tau=0.4), MESSAGE),
    "ByzClipSGD": (ByzClipSGD(lr=0.5, tau=0.3), MESSAGE),
    "SafeDSHB": (SafeDSHB(lr=0.5, tau=0.3), MESSAGE),
    "Clip21SGD2M": (Clip21SGD2M(lr=0.5, tau=0.3), MESSAGE),
    "SCAFFOLD": (SCAFFOLD(lr=0.5, local_steps=3), None),
    "FedDyn": (FedDyn(lr=0.5, local_steps=3, alpha=0.5), None),
    "FedPer": (FedPer(lr=0.5, local_steps=3), None),
}


@pytest.mark.parametrize("cohort", [None, 5])
@pytest.mark.parametrize("case", POOLED)
def test_where_the_mean_is_enough_messages_are_added_up(case: str, cohort: int | None) -> None:
    method, privacy = POOLED[case]
    e = replace(experiment(method, Mean(), privacy), byzantine=0, attack=None, cohort=cohort)
    assert Federation(e).mean_only
    agree(e)


def test_the_gradient_of_a_single_local_step_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment(FedAvg(lr=0.5, local_steps=1), ROBUST, None)
    agree(e)
    fed, calls = Federation(e), []
    passes = fed.gradients.prepare
    monkeypatch.setattr(fed.gradients, "prepare", lambda *args: calls.append(0) or passes(*args))
    ask("vector", fed, {}, fed.x0, np.arange(9))
    assert len(calls) == 1


def test_a_mean_that_expects_byzantine_clients_is_taken_of_all_messages() -> None:
    agree(replace(experiment(FedSGD(lr=0.5), Mean(), None), byzantine=0, attack=None, f=2))


@pytest.mark.parametrize("rule", [Chain(Bucketing(), Median()), NoisyMedian(noise=0.1)], ids=repr)
def test_a_random_rule_among_peers_draws_from_its_address(rule: Rule) -> None:
    e = replace(experiment(MoNNA(lr=0.5), rule, None), byzantine=1)
    before = torch.get_rng_state()
    agree(e)
    first, again = (run(e, engine=engine).model for engine in ("vector", "loop"))
    assert all(float((first[name] - again[name]).abs().max()) < 1e-6 for name in first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tau", [0.1, 1.5, 1e3])
def test_clipped_gradients_are_added_up_before_they_are_written(tau: float) -> None:
    """Their norms follow from the layers, unless something is added to a gradient before it is clipped."""
    e = replace(experiment(ByzClipSGD(lr=0.5, tau=tau), Mean(), MESSAGE), byzantine=0, attack=None)
    bare = replace(e, task=replace(e.task, l2=0.0))
    agree(bare)
    for case, at_once in ((bare, True), (e, False), (replace(bare, privacy=EXAMPLE), False)):
        fed = Federation(case)
        states = States.start(fed.client_state(), fed.computing).of(np.arange(9))
        assert (_sum(fed, states, {"x": fed.x0}, 0, np.arange(9)) is not None) == at_once


def test_where_it_is_not_they_are_kept() -> None:
    """A rule that looks at rows, Byzantine clients, rows that the server remembers, peers."""
    clean = replace(experiment(FedSGD(lr=0.5), Mean(), None), byzantine=0, attack=None)
    assert Federation(clean).mean_only
    for change in (
        {"rule": ROBUST},
        {"byzantine": 2, "attack": IPM(10.0)},
        {"method": ByzClip21SGD2M(lr=0.5, tau=0.3)},
        {"method": MoNNA(lr=0.5)},
    ):
        assert not Federation(replace(clean, **change)).mean_only


def test_a_broken_message_among_those_added_up_is_dropped() -> None:
    e = replace(experiment(FedSGD(lr=0.5), Mean(), None), byzantine=0, attack=None)
    fed = Federation(e)
    fed.train.x[fed.starts[3] : fed.starts[4]] = torch.nan  # client 3's examples
    rows = ask("vector", fed, {}, fed.x0, np.arange(9)).rows
    server, _ = finish(fed, Server.start(fed), Messages(rows), np.arange(9), 0)
    truth = ask("loop", fed, {}, fed.x0, np.arange(9)).rows
    assert truth[3].isnan().any()
    assert len(rows) == 9
    close(server.x, fed.x0 - 0.5 * truth[[i for i in range(9) if i != 3]].mean(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case[2] is None])
def test_cuda_equals_loop(case: str) -> None:
    agree(experiment(*CASES[case]), device="cuda")


def test_a_client_alone_answers_what_it_answers_among_others() -> None:
    fed = Federation(experiment(*CASES["ByzClip21SGD2MPlus"]))
    states = fed.client_states()
    rows = ask("loop", fed, states, fed.x0, np.arange(9)).rows
    fourth = {name: value[4:5] for name, value in states.items()}
    one = ask("loop", fed, fourth, fed.x0, np.array([4])).rows
    assert torch.equal(rows[4], one[0])


def test_a_peer_whose_message_is_lost_stays_where_it_is() -> None:
    """The others average what they have, each at its own place."""
    e = experiment(MoNNA(lr=0.5), NNA(), None)
    fed, ids = Federation(e), np.arange(9)
    states, server = fed.client_states(), Server.start(fed)
    server.state["x"].normal_(generator=torch.Generator().manual_seed(0))
    rows = ask("loop", fed, states, server.x, ids).rows
    there = np.delete(ids, 3)
    after, _ = attempt(fed, server, Messages(rows[there]), there, ids, 0)
    mask = e.method.topology(8, 6, 2, fed.keys.generator("received", 0))
    assert torch.equal(after.x[there], e.rule.each(rows[there], 2, mask))
    assert torch.equal(after.x[3], server.x[3])


@dataclass(frozen=True)
class Picky(Median):
    """A rule that finds something wrong with what it sees."""

    def __call__(self, rows: torch.Tensor, f: int = 0, **given: object) -> torch.Tensor:
        raise Invalid("Picky: these rows will not do")


def test_a_missing_answer_hides_no_other_fault() -> None:
    """A round is skipped where its rule is not defined for so few, and for no other reason."""
    fed, ids = Federation(experiment(FedSGD(lr=0.5), ROBUST, None)), np.arange(9)
    server, rows = Server.start(fed), ask("loop", fed, {}, fed.x0, ids).rows
    for few, moves in ((np.delete(ids, 3), True), (ids[:5], True), (ids[:4], False), (ids[:0], False)):
        after, seen = attempt(fed, server, Messages(rows[few]), few, ids, 0)
        assert (seen is not None) == moves
        assert torch.equal(after.x, server.x) != moves
    few = np.delete(ids, 3)
    with pytest.raises(Invalid, match="these rows will not do"):
        attempt(
            Federation(experiment(FedSGD(lr=0.5), Picky(), None)), server, Messages(rows[few]), few, ids, 0
        )


def test_among_peers_too_a_rule_is_asked_whether_it_is_defined_for_so_few() -> None:
    fed, ids = Federation(experiment(MoNNA(lr=0.5), TrimmedMean(), None)), np.arange(9)
    server = Server.start(fed)
    rows = ask("loop", fed, fed.client_states(), server.x, ids).rows
    for few, moves in ((ids[2:], True), (ids[5:], False)):
        _, seen = attempt(fed, server, Messages(rows[few]), few, ids, 0)
        assert (seen is not None) == moves


@pytest.mark.parametrize("attack", [IPM(10.0), ALIE()], ids=repr)
def test_a_cohort_may_be_all_byzantine(attack: Attack) -> None:
    """Then nothing moves; and where they are half of it or more, the attack still knows what to send."""
    base = experiment(FedSGD(lr=0.5), Mean(), None)
    e = replace(base, byzantine=4, attack=attack, cohort=2, f=0, rounds=12)
    fed = Federation(e)
    assert any((fed.cohort(t) >= e.honest).all() for t in range(e.rounds))
    first, *others = (run(e, engine=engine) for engine in ("loop", "vector", "grid"))
    for other in others:
        close(torch.tensor(other.frame["loss"].to_numpy()), torch.tensor(first.frame["loss"].to_numpy()))


@pytest.mark.parametrize("rule", [Mean(), ROBUST], ids=repr)
@pytest.mark.parametrize("clip", [0.5, QUANTILE.clip], ids=["fixed", "adaptive"])
def test_a_gradient_that_overflows_counts_as_zero_where_it_is_clipped(
    rule: Rule, clip: float | Quantile
) -> None:
    """One example of client 3 is so far out that it is none of a finite gradient; no message tells."""
    e = replace(experiment(FedSGD(lr=0.5), rule, replace(EXAMPLE, clip=clip)), byzantine=0, attack=None, f=2)
    e = replace(e, batches=Full(), task=replace(e.task, model=MLP(hidden=8, activation="relu")))
    if isinstance(rule, Mean):
        e = replace(e, f=0)
    fed = Federation(e)
    place = int(fed.starts[3])
    fed.train.x[place] = 1e38
    states, ids = fed.client_states(), np.arange(9)
    assert not one_client(fed.model, 30 * fed.x0, fed_batch(fed, 3)).isfinite().all()
    truth = ask("loop", fed, states, 30 * fed.x0, ids).rows
    rows = ask("vector", fed, states, 30 * fed.x0, ids).rows
    assert truth.isfinite().all()
    close(rows, truth if len(rows) == 9 else truth.mean(0, keepdim=True))
    fed.train.x[place] = 0.0
    fed.train.y[place] = 0
    others = ask("loop", fed, states, 30 * fed.x0, ids).rows
    assert float((others[3] - truth[3]).norm()) <= 2 * 0.5 / int(fed.sizes[3])


def fed_batch(fed: Federation, client: int) -> Batch:
    batch = fed.batch(0, np.array([client]))
    return Batch(batch.x[0], batch.y[0], batch.weight[0])


@pytest.mark.parametrize("rule", [Mean(), ROBUST], ids=repr)
def test_a_message_that_overflows_counts_as_zero_where_it_is_clipped(rule: Rule) -> None:
    e = replace(experiment(ByzClipSGD(lr=0.5, tau=0.3), rule, MESSAGE), byzantine=0, attack=None)
    fed = Federation(replace(e, task=replace(e.task, l2=0.0)))
    fed.train.x[fed.starts[3] : fed.starts[4]] = torch.nan
    truth = ask("loop", fed, {}, fed.x0, np.arange(9)).rows
    rows = ask("vector", fed, {}, fed.x0, np.arange(9)).rows
    noise = fed.noisy(torch.zeros(9, fed.x0.numel()), "message", 0, np.arange(9))
    close(truth[3], noise[3])
    close(rows, truth)


@dataclass(frozen=True)
class Odd(Median):
    """A rule that answers in another form."""

    form: str = "shape"

    def __call__(self, rows: torch.Tensor, f: int = 0, **given: object) -> torch.Tensor:
        return {"shape": rows, "type": rows[0].double(), "none": None}[self.form]  # type: ignore[return-value]


@dataclass(frozen=True)
class OddAttack(Attack):
    """An attack that forges one row too few, or of another type."""

    form: str = "shape"

    def forge(self, view: View) -> torch.Tensor:
        rows = torch.zeros(view.f, len(view.x))
        return {"shape": rows[1:], "type": rows.double(), "none": None}[self.form]  # type: ignore[return-value]


@pytest.mark.parametrize("form", ["shape", "type", "none"])
@pytest.mark.parametrize("odd", [Odd, OddAttack])
def test_a_component_of_one_s_own_that_answers_in_another_form_is_named(odd: type, form: str) -> None:
    e = experiment(FedSGD(lr=0.5), ROBUST, None)
    e = replace(e, rule=Odd(form=form)) if odd is Odd else replace(e, attack=OddAttack(form=form))
    with pytest.raises(Invalid, match=rf"{odd.__name__}: gave back a .*must be"):
        run(e)
