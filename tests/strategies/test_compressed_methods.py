"""Compressed methods against their sources' lines, written out client by client, and against one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from resuming import resumed_to_the_bit
from small import final, small
from torch import Tensor

from fedsim import engines
from fedsim.attacks import ALIE, SignFlip
from fedsim.check import Invalid
from fedsim.env import places
from fedsim.federation import Federation
from fedsim.flower.payload import pack, received, size, travelling
from fedsim.gradients import one_client
from fedsim.messages import (
    All,
    ByLayer,
    Float32,
    NaturalCompression,
    RandK,
    Signs,
    StochasticSigns,
    Ternary,
    TopK,
)
from fedsim.method import Method
from fedsim.models import MLP
from fedsim.round import Server, answer, attempt
from fedsim.schedule import Power
from fedsim.spec import Experiment
from fedsim.strategies import (
    DIANA,
    EF14,
    EF21,
    NNM,
    ByzClip21SGD2M,
    Chain,
    DVRSign,
    HeavyBall,
    MajorityVote,
    SignSGD,
    StochasticVote,
    TrimmedMean,
)
from fedsim.strategies.methods.ef21 import Normalized, Plain
from fedsim.strategies.methods.estimators import IGT, MVR, Decay, LastGradient, Polyak

N = 5


def experiment(method: Method, **changes: object) -> Experiment:
    return small(method, MLP(hidden=6), **{"clients": N, **changes})


class Clients:
    """Plain gradients of each client, at any point."""

    def __init__(self, e: Experiment) -> None:
        self.fed = Federation(e)

    def grad(self, i: int, x: Tensor, round: int) -> Tensor:
        return one_client(self.fed.model, x, self.fed.batch(round, np.array([i])).part(0))


def top(v: Tensor, share: float) -> Tensor:
    """The largest entries, by a sort."""
    keep = np.argsort(-v.abs().numpy(), kind="stable")[: max(1, round(share * len(v)))]
    out = torch.zeros_like(v)
    out[keep] = v[keep]
    return out


@pytest.mark.parametrize("engine", ["loop", "vector"])
@pytest.mark.parametrize("kind", ["last", "polyak", "igt", "mvr"])
def test_error_feedback_line_by_line(kind: str, engine: str) -> None:
    """Algorithms of arXiv:2106.05203, 2305.15155 and 2511.14501, with g_i = 0 at the start."""
    power = {"igt": 4 / 7, "mvr": 2 / 3}.get(kind, 0.0)
    estimator = {"last": LastGradient(), "polyak": Polyak(0.3), "igt": IGT(), "mvr": MVR()}[kind]
    step = Normalized(Power(0.2, 0.75)) if power else Plain(0.2)
    e = experiment(EF21(estimator, TopK(0.2), step))
    clients = Clients(e)
    x = before = clients.fed.x0
    v, g = [torch.zeros_like(x)] * N, [torch.zeros_like(x)] * N
    for t in range(e.rounds):
        eta = (2 / (t + 2)) ** power if power else 0.3
        for i in range(N):
            new = clients.grad(i, x, t)
            if kind == "last":
                v[i] = new
            elif kind == "polyak":
                v[i] = (1 - eta) * v[i] + eta * new
            elif kind == "igt":
                v[i] = (1 - eta) * v[i] + eta * clients.grad(i, x + (1 - eta) / eta * (x - before), t)
            else:
                v[i] = new + (1 - eta) * (v[i] - clients.grad(i, before, t)) if t else new
            g[i] = g[i] + top(v[i] - g[i], 0.2)
        mean = torch.stack(g).mean(0)
        moved = 0.2 * (t + 1) ** -0.75 * mean / mean.norm() if power else 0.2 * mean
        before, x = x, x - moved
    torch.testing.assert_close(final(e, engine), x, rtol=1e-4, atol=1e-5)


def test_without_loss_error_feedback_is_heavy_ball() -> None:
    plain = final(experiment(HeavyBall(lr=0.3, momentum=0.8)))
    torch.testing.assert_close(
        final(experiment(EF21(Polyak(0.2), All(Float32()), Plain(0.3)))), plain, rtol=1e-5, atol=1e-6
    )


def test_the_first_message_makes_up_for_its_error_later() -> None:
    """g_i = sum of all that was sent: with one place a round, d rounds send a gradient that stays."""
    e = experiment(EF21(LastGradient(), TopK(1e-6), Plain(1e-12)), rounds=70)
    clients = Clients(e)
    d = len(clients.fed.x0)
    server, state = Server.start(clients.fed), clients.fed.client_state()
    for _ in range(d):
        state = answer(clients.fed, 0, state, server.told(e.method), 0).state
    torch.testing.assert_close(state["g"], clients.grad(0, clients.fed.x0, 0), rtol=1e-5, atol=1e-6)


def test_ef14_line_by_line() -> None:
    e = experiment(EF14(lr=0.2, up=TopK(0.2)))
    clients = Clients(e)
    x, left = clients.fed.x0, [torch.zeros_like(clients.fed.x0)] * N
    for t in range(e.rounds):
        sent = []
        for i in range(N):
            p = left[i] + 0.2 * clients.grad(i, x, t)
            sent.append(top(p, 0.2))
            left[i] = p - sent[-1]
        x = x - torch.stack(sent).mean(0)
    torch.testing.assert_close(final(e), x, rtol=1e-4, atol=1e-5)


def test_diana_line_by_line() -> None:
    """With places that all know, so that the compressor can be written out: arXiv:1901.09269, algorithm 1."""
    e = experiment(DIANA(lr=0.2, up=RandK(0.5), shift=0.5))
    clients = Clients(e)
    x, h = clients.fed.x0, [torch.zeros_like(clients.fed.x0)] * N
    d = len(x)
    for t in range(e.rounds):
        kept = places(clients.fed, t)(d).argsort(stable=True)[: round(d / 2)]
        seen = []
        for i in range(N):
            difference, c = clients.grad(i, x, t) - h[i], torch.zeros(d)
            c[kept] = difference[kept] * (d / len(kept))
            seen.append(h[i] + c)
            h[i] = h[i] + 0.5 * c
        x = x - 0.2 * torch.stack(seen).mean(0)
    torch.testing.assert_close(final(e), x, rtol=1e-4, atol=1e-5)


def test_stochastic_signs_of_large_numbers_are_signs() -> None:
    """Beyond the bound no chance is left: the vote is signSGD's."""
    vote = final(experiment(StochasticVote(lr=0.01, bound=1e-6, beta=1.0), rule=MajorityVote(), clients=3))
    torch.testing.assert_close(vote, final(experiment(SignSGD(lr=0.01), rule=MajorityVote(), clients=3)))


def test_the_vote_of_unbiased_signs_is_biased() -> None:
    """Sign means (u, u, -2 u) have a mean of 0 and an expected vote of u^3; the mean of signs has none."""
    u, draws = 0.4, 400_000
    v = torch.tensor([u, u, -2 * u])
    generator = torch.Generator().manual_seed(0)
    signs = torch.stack(
        [
            StochasticSigns(1.0).round(value.expand(draws), lambda k: torch.rand(k, generator=generator))
            for value in v
        ]
    )
    assert float(signs.sum(0).sign().mean()) == pytest.approx(u**3, abs=5 / draws**0.5)
    assert float(signs.mean()) == pytest.approx(0, abs=5 / draws**0.5)


def test_the_model_that_clients_hold_line_by_line() -> None:
    """EF21-P: gradients at w, which follows x by compressed differences; x is what is evaluated."""
    e = experiment(EF21(LastGradient(), All(Float32()), Plain(0.2), down=TopK(0.3)))
    clients = Clients(e)
    x = w = clients.fed.x0
    for t in range(e.rounds):
        x = x - 0.2 * torch.stack([clients.grad(i, w, t) for i in range(N)]).mean(0)
        w = w + top(x - w, 0.3)
    assert set(clients.fed.told_shapes) == {"w"}
    torch.testing.assert_close(final(e), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        EF21(up=TopK(0.1)),
        EF21(up=TopK(0.3, NaturalCompression())),
        EF21(up=All(NaturalCompression())),
        EF21(up=All(Signs())),
        EF21(up=All(Ternary())),
        EF21(up=RandK(0.2)),
        EF21(up=ByLayer(TopK(0.1))),
        SignSGD(0.1),
        SignSGD(0.1, zeros="coin"),
        StochasticVote(),
    ],
    ids=repr,
)
def test_what_travels_is_what_is_counted(method: Method) -> None:
    """The reply that a client's record holds: the bits of the payload, padded to bytes, and NumPy's header."""
    fed = Federation(experiment(method))
    server = Server.start(fed)
    answered = answer(fed, 1, fed.client_state(), server.told(fed.experiment.method), 2)
    record = pack(travelling(fed, answered, 2))
    assert size(record) == -(-fed.uplink_bits(2) // 8) + 128
    assert torch.equal(received(fed, record, 2), answered.message)
    with pytest.raises(Invalid, match=r"bytes|shape"):
        received(fed, pack(travelling(fed, answered, 2)[:-1]), 2)
    with pytest.raises(Invalid, match="bytes"):  # eight bytes for one, or words that do not fit into a byte
        received(
            fed, ArrayRecord({"compressed": Array(travelling(fed, answered, 2).numpy().astype("u8"))}), 2
        )
    with pytest.raises(Invalid, match="must be 'compressed'"):
        received(fed, pack(answered.message), 2)


def test_forged_messages_go_through_the_compressor() -> None:
    e = experiment(
        EF21(Polyak(0.5), TopK(0.05)),
        clients=7,
        byzantine=2,
        rule=Chain(NNM(), TrimmedMean()),
        attack=SignFlip(factor=5.0),
        rounds=1,
    )
    fed = Federation(e)
    ids = fed.cohort(0)
    server = Server.start(fed)
    asked = ids[ids < fed.computing]
    _, messages = engines.get("vector")(
        fed, {k: v[asked] for k, v in fed.client_states().items()}, server.told(e.method), 0, asked
    )
    after, _ = attempt(fed, server, messages, asked, ids, 0)
    assert int((after.state["g"] != 0).sum(1).max()) <= round(0.05 * len(fed.x0))


@pytest.mark.parametrize("attack", [SignFlip(), ALIE()], ids=repr)
def test_resumes_and_runs_under_attack(attack: SignFlip | ALIE, tmp_path) -> None:  # type: ignore[no-untyped-def]
    e = experiment(
        EF21(MVR(), TopK(0.2, NaturalCompression()), Normalized(0.3), down=TopK(0.5)),
        clients=9,
        byzantine=2,
        rule=Chain(NNM(), TrimmedMean()),
        attack=attack,
        rounds=6,
    )
    whole, _ = resumed_to_the_bit(e, tmp_path / "a")
    assert whole.frame["uplink_bits"].iloc[-1] == 6 * Federation(e).uplink_bits(0)


def test_byz_clip21_is_error_feedback_with_a_clip() -> None:
    """Without the second momentum, and a compressor that loses nothing, EF21's clip is the headline method."""
    headline = final(experiment(ByzClip21SGD2M(lr=0.3, tau=0.05, beta=0.2, beta_hat=1.0)))
    ours = final(experiment(EF21(Polyak(0.2), All(Float32()), Plain(0.3), tau=0.05)))
    assert torch.equal(headline, ours)


def test_a_method_must_compress_what_it_says_it_compresses() -> None:
    class Forgetful(EF21):
        def client_step(self, state, x, batch, env):  # type: ignore[no-untyped-def]
            return state, env.first_gradient()

    fed = Federation(experiment(Forgetful()))
    with pytest.raises(Invalid, match=r"sends without env\.compress"):
        answer(fed, 0, fed.client_state(), Server.start(fed).told(fed.experiment.method), 0)


def test_decays() -> None:
    theory, code = Decay(0.5), Decay(0.5, every=10, lag=1)
    assert [round(theory.at(t), 6) for t in range(3)] == [1.0, 0.816497, 0.707107]
    assert {code.at(t) for t in range(20)} == {1.0}  # two epochs of ten rounds
    assert code.at(20) == theory.at(1)
    assert [Power(2.0, 0.75, every=2).at(t) for t in range(4)] == [2.0, 2.0, 2 * 2**-0.75, 2 * 2**-0.75]
    assert DVRSign().gradients == 2
