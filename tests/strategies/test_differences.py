"""Methods whose messages are differences, or signs of several batches, against their sources' lines written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from resuming import resumed_to_the_bit
from test_compressed_methods import Clients, N, experiment, final, top
from torch import Tensor

from fedsim.batches import Fixed, Full
from fedsim.check import Invalid
from fedsim.config import catalog
from fedsim.env import places
from fedsim.federation import Federation
from fedsim.flower.payload import pack, received, size, travelling
from fedsim.gradients import one_client
from fedsim.messages import All, NaturalCompression, RandK, TopK
from fedsim.method import Method
from fedsim.privacy import ExampleDP
from fedsim.round import Server, answer
from fedsim.runner import run
from fedsim.schedule import Power
from fedsim.spec import Experiment
from fedsim.strategies import EF21, MARINA, SSDM, EControl, HeavyTailSign, MajorityVote, Mean, Signum
from fedsim.strategies.methods.ef21 import Plain
from fedsim.strategies.methods.estimators import PAGE, Decay, LastGradient

ENGINES = ["loop", "vector"]


def close(e: Experiment, x: Tensor, engine: str) -> None:
    torch.testing.assert_close(final(e, engine), x, rtol=1e-4, atol=1e-5)


def coin(clients: Clients, t: int) -> float:
    """The coin that decides whether a round's messages travel whole."""
    return float(clients.fed.keys.uniform("whole", t, np.array([0]), 1)[0, 0])


@pytest.mark.parametrize("engine", ENGINES)
def test_econtrol_line_by_line(engine: str) -> None:
    """Algorithm 2 of arXiv:2311.05645: delta = eta e + g - h, Delta = C(delta), e <- e + g - h - Delta."""
    e = experiment(EControl(up=TopK(0.2), move=Plain(0.2), eta=0.3))
    clients = Clients(e)
    x, zero = clients.fed.x0, torch.zeros_like(clients.fed.x0)
    error, h = [zero] * N, [zero] * N
    for t in range(e.rounds):
        for i in range(N):
            g = clients.grad(i, x, t)
            sent = top(0.3 * error[i] + g - h[i], 0.2)
            error[i] = error[i] + g - h[i] - sent
            h[i] = h[i] + sent
        x = x - 0.2 * torch.stack(h).mean(0)
    close(e, x, engine)


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_marina_line_by_line(engine: str, away: bool) -> None:
    """Algorithm 1 of arXiv:2102.07845: g_i = grad f_i(x), or by the coin g + Q(grad f_i(x) - grad f_i(x'))."""
    e = experiment(MARINA(lr=0.2, p=0.6, up=RandK(0.5), away=away), rounds=8)
    clients = Clients(e)
    x = before = clients.fed.x0
    d, g, wholes = len(x), torch.zeros_like(x), 0
    for t in range(e.rounds):
        if t == 0 or coin(clients, t) < 0.6:
            g_i = [clients.grad(i, x, t) for i in range(N)]
            wholes += 1
        else:
            kept = places(clients.fed, t)(d).argsort(stable=True)[: round(d / 2)]
            g_i = []
            for i in range(N):
                difference, q = clients.grad(i, x, t) - clients.grad(i, before, t), torch.zeros(d)
                q[kept] = difference[kept] * (d / len(kept))
                g_i.append(g + q)
        g = torch.stack(g_i).mean(0)
        before, x = x, x - 0.2 * g
    assert 1 < wholes < e.rounds
    close(e, x, engine)
    sent = wholes * 32 * d + (e.rounds - wholes) * 32 * len(kept)
    assert sum(map(clients.fed.uplink_bits, range(e.rounds))) == sent
    assert run(e).frame["uplink_bits"].iloc[-1] == sent


@pytest.mark.parametrize("few", [None, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_page_line_by_line(engine: str, few: int | None) -> None:
    """EF21-PAGE of arXiv:2110.03294, one coin for all: differences of mini-batches between gradients of large ones."""
    e = experiment(EF21(PAGE(0.4, few), TopK(0.2), Plain(0.2)), rounds=8)
    clients = Clients(e)
    x = before = clients.fed.x0
    v, g, wholes = [torch.zeros_like(x)] * N, [torch.zeros_like(x)] * N, 0

    def small(i: int, at: Tensor, t: int) -> Tensor:
        batch = clients.fed.batch(t, np.array([i])).part(0)
        m = few or len(batch.y)
        part = replace(batch, x=batch.x[:m], y=batch.y[:m], weight=torch.full((m,), 1 / m))
        return one_client(clients.fed.model, at, part)

    for t in range(e.rounds):
        whole = float(clients_coin(clients, t)) < 0.4
        wholes += whole
        for i in range(N):
            if t == 0 or whole:
                v[i] = clients.grad(i, x, t)
            else:
                v[i] = v[i] + small(i, x, t) - small(i, before, t)
            g[i] = g[i] + top(v[i] - g[i], 0.2)
        before, x = x, x - 0.2 * torch.stack(g).mean(0)
    assert 0 < wholes < e.rounds
    close(e, x, engine)


def clients_coin(clients: Clients, t: int) -> float:
    from fedsim.env import AtServer

    return float(AtServer(clients.fed, t).common(1))


def test_page_on_all_data_is_gradient_descent() -> None:
    """Differences of full gradients add up to the gradient (arXiv:2008.10898 with sigma = 0), whatever the coin."""
    page = experiment(EF21(PAGE(0.3), All(), Plain(0.2)), batches=Full())
    plain = replace(page, method=EF21(LastGradient(), All(), Plain(0.2)))
    torch.testing.assert_close(final(page), final(plain), rtol=1e-5, atol=1e-6)


def test_marina_without_loss_is_gradient_descent() -> None:
    marina = experiment(MARINA(lr=0.2, p=0.3), batches=Full())
    plain = replace(marina, method=EF21(LastGradient(), All(), Plain(0.2)))
    torch.testing.assert_close(final(marina), final(plain), rtol=1e-5, atol=1e-6)


def test_page_with_fewer_examples_than_the_noise_is_made_for_is_refused() -> None:
    e = experiment(
        EF21(PAGE(1e-6, few=2), All(), Plain(0.2)), privacy=ExampleDP(clip=1.0, noise=1.0, delta=1e-4)
    )
    for engine in ENGINES:
        with pytest.raises(
            Invalid, match=r"weighs 0\.5 in a batch, where ExampleDP makes its noise for 0\.2"
        ):
            run(e, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_ssdm_line_by_line(engine: str) -> None:
    """Algorithm 3 of arXiv:1905.12938, the signs by the client's own numbers: +1 where u < (1 + v / ||v||) / 2."""
    from fedsim.env import Draws

    e = experiment(SSDM(lr=0.01, momentum=0.7))
    clients = Clients(e)
    x, v = clients.fed.x0, [torch.zeros_like(clients.fed.x0)] * N
    for t in range(e.rounds):
        signs = []
        for i in range(N):
            g = clients.grad(i, x, t)
            v[i] = 0.7 * v[i] + 0.3 * g if t else g
            u = Draws(clients.fed, "uplink", t, np.array([i])).own(len(x))[0]
            signs.append(torch.where(u < (1 + v[i] / v[i].norm()) / 2, 1.0, -1.0))
        x = x - 0.01 * torch.stack(signs).mean(0)
    # a draw within rounding of its chance may fall on either side: none does here
    close(e, x, engine)


def test_the_signs_of_ssdm_have_a_mean_along_the_momentum() -> None:
    v = torch.tensor([3.0, -4.0, 0.0])
    from fedsim.messages import StochasticSigns

    generator = torch.Generator().manual_seed(0)
    many = (v / v.norm()).expand(200_000, 3)
    signs = StochasticSigns(1.0).round(many, lambda k: torch.rand(len(many), k, generator=generator))
    torch.testing.assert_close(signs.mean(0), torch.tensor([0.6, -0.8, 0.0]), rtol=0, atol=5 / 200_000**0.5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["mean", "vote", "momentum"])
def test_heavy_tails_line_by_line(kind: str, engine: str) -> None:
    """Algorithms 2 and 3 of arXiv:2502.07923 and its M-SignSGD, three batches a client; votes are counted."""
    by, eta = ("vote" if kind == "vote" else "mean"), (Decay(0.5) if kind == "momentum" else 1.0)
    method = HeavyTailSign(Power(0.01, 0.75), samples=3, by=by, eta=eta)
    e = experiment(method, rule=MajorityVote())
    clients = Clients(e)
    x, m = clients.fed.x0, [torch.zeros_like(clients.fed.x0)] * N
    for t in range(e.rounds):
        votes = torch.zeros_like(x)
        for i in range(N):
            parts = clients.fed.batch(t, np.array([i])).part(0).split(3)
            gradients = [one_client(clients.fed.model, x, part) for part in parts]
            if kind == "vote":
                votes += sum(g.sign() for g in gradients).sign()
                continue
            fresh = (2 / (t + 2)) ** 0.5 if kind == "momentum" else 1.0
            m[i] = (1 - fresh) * m[i] + fresh * sum(gradients) / 3
            votes += m[i].sign()
        x = x - 0.01 * (t + 1) ** -0.75 * votes.sign()
    close(e, x, engine)


def test_one_sample_with_momentum_is_signum() -> None:
    ours = experiment(HeavyTailSign(0.01, samples=1, eta=0.1), rule=MajorityVote())
    torch.testing.assert_close(final(ours), final(replace(ours, method=Signum(0.01, momentum=0.9))))


def test_a_vote_of_samples_does_what_their_mean_does_not() -> None:
    """Cauchy noise: the sign of the mean of 101 is wrong as often as that of one, the vote's is right nearly always."""
    gradients = torch.from_numpy(0.5 + np.random.default_rng(0).standard_t(1, (101, 4000)))
    alone, mean, vote = (
        float((signs > 0).float().mean())
        for signs in (gradients[0].sign(), gradients.mean(0).sign(), gradients.sign().sum(0).sign())
    )
    assert abs(mean - alone) < 0.04
    assert vote > 0.99
    with pytest.raises(Invalid, match="a vote has no momentum"):
        HeavyTailSign(0.1, by="vote", eta=0.5)


def test_the_first_message_travels_whole_where_the_source_has_it_so() -> None:
    """g_i^0 = grad f_i(x^0), sent in 32 bits a coordinate: the bytes of a reply, and what is counted."""
    e = experiment(EF21(LastGradient(), TopK(0.1, NaturalCompression()), start="whole"))
    fed = Federation(e)
    state, told = fed.client_state(), Server.start(fed).told(e.method)
    d, packed = fed.width, fed.experiment.method.uplink.bits(fed.layout)
    for t, bits in enumerate((32 * d, packed)):
        answered = answer(fed, 1, state, told, t)
        record = pack(travelling(fed, answered, t))
        assert size(record) == -(-bits // 8) + 128
        assert torch.equal(received(fed, record, t), answered.message)
    assert sum(map(fed.uplink_bits, range(3))) == 32 * d + 2 * packed
    torch.testing.assert_close(
        answer(fed, 1, state, told, 0).message, Clients(e).grad(1, fed.x0, 0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "method",
    [
        EControl(up=TopK(0.2)),
        MARINA(p=0.4, up=All(NaturalCompression())),
        EF21(PAGE(0.4, few=2), TopK(0.2), start="whole"),
        SSDM(),
        HeavyTailSign(0.01, samples=2, eta=Decay()),
    ],
    ids=lambda method: type(method).__name__,
)
def test_resumes_to_the_bit(method: Method, tmp_path) -> None:  # type: ignore[no-untyped-def]
    e = experiment(
        method,
        batches=Fixed(4),
        rounds=5,
        rule=MajorityVote() if isinstance(method, HeavyTailSign) else Mean(),
    )
    resumed_to_the_bit(e, tmp_path / "a")


def test_they_are_found_by_name() -> None:
    assert {"EControl", "MARINA", "SSDM", "HeavyTailSign"} <= set(catalog.names("methods"))
    assert "PAGE" in catalog.names("estimators")
    assert "Decay" in catalog.names("decays")
    e = experiment(HeavyTailSign(Power(0.01, 0.75), eta=Decay(0.5, every=3, lag=1)))
    assert Experiment.from_json(e.to_json()) == e
