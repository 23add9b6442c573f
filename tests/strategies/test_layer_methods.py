"""Methods by layer against their papers' lines, written out matrix by matrix, and against one another."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from resuming import resumed_to_the_bit
from small import final, small
from torch import Tensor

from fedsim.attacks import ALIE, SignFlip
from fedsim.batches import Fixed
from fedsim.check import Invalid
from fedsim.env import AtServer, as_read
from fedsim.federation import Federation
from fedsim.gradients import one_client, one_loss
from fedsim.layout import Block
from fedsim.messages import All, ByLayer, Float32, TopK
from fedsim.method import Method
from fedsim.models import MLP
from fedsim.privacy import CentralDP, ExampleDP, MessageDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import (
    EF21,
    FRUGAL,
    NGNM,
    NNM,
    ByzClipSGD,
    Chain,
    ClientMuon,
    DiffGrad,
    DropMuon,
    EF21Muon,
    FedMuon,
    Gluon,
    JaguarMuon,
    JaguarSignSGD,
    MajorityVote,
    Muon,
    Scion,
    SGDSaI,
    SignMuon,
    SignSGD,
    TrimmedMean,
)
from fedsim.strategies.methods.ef21 import LMO, Normalized
from fedsim.strategies.methods.estimators import Polyak
from fedsim.strategies.methods.scion import budget_batch
from fedsim.strategies.oracles import ExactPolar, Frobenius, Norms, Sign, Spectral

N = 4
Layers = list[Tensor]


def experiment(method: Method, **changes: object) -> Experiment:
    return small(method, MLP(hidden=(7, 6)), **{"clients": N, **changes})


class Plain:
    """A federation as lists of matrices, with the gradients of each client."""

    def __init__(self, e: Experiment) -> None:
        self.fed = Federation(e)
        self.roles = [block.role for block in self.fed.layout.blocks]

    @property
    def start(self) -> Layers:
        return self.cut(self.fed.x0)

    def cut(self, x: Tensor) -> Layers:
        return [part.clone() for part in self.fed.layout.views(x)]

    def grad(self, i: int, layers: Layers, round: int) -> Layers:
        batch = self.fed.batch(round, np.array([i])).part(0)
        return self.cut(one_client(self.fed.model, torch.cat([w.flatten() for w in layers]), batch))

    def zeros(self) -> Layers:
        return [torch.zeros_like(w) for w in self.start]


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Muon's Newton-Schulz, as on its author's page."""
    x = g / (g.norm() + 1e-7)
    x = x.T if len(g) > len(g.T) else x
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if len(g) > len(g.T) else x


def scion(role: str, g: Tensor) -> Tensor:
    """The directions of Scion by role."""
    if role == "vector":
        return g / g.square().mean().sqrt()
    m, q = g.shape
    if role == "head":
        return g.sign() / q
    return orthogonal(g) * (sqrt(m / q) if role == "hidden" else max(1.0, sqrt(m / q)))


def mean(layers: list[Layers]) -> Layers:
    return [torch.stack(some).mean(0) for some in zip(*layers, strict=True)]


def top(w: Tensor, share: float) -> Tensor:
    """The largest entries of a layer, by a sort."""
    v = w.flatten()
    keep = np.argsort(-v.abs().numpy(), kind="stable")[: max(1, round(share * len(v)))]
    out = torch.zeros_like(v)
    out[keep] = v[keep]
    return out.view(w.shape)


def same(ours: Tensor, layers: Layers) -> None:
    torch.testing.assert_close(ours, torch.cat([w.flatten() for w in layers]), rtol=1e-4, atol=2e-5)


# ---------------------------------------------------------------- EF21-Muon
@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_ef21_muon_line_by_line(engine: str) -> None:
    """arXiv:2510.00643, both ways compressed; the server's G is the mean of the clients', without a memory of each."""
    e = experiment(EF21Muon(Polyak(0.3), ByLayer(TopK(0.3)), LMO(0.05), ByLayer(TopK(0.5))))
    plain = Plain(e)
    x, w, big = plain.start, plain.start, plain.zeros()
    m, g = ([plain.zeros() for _ in range(N)] for _ in range(2))
    for t in range(e.rounds):
        sent = []
        for j in range(N):
            m[j] = [0.7 * a + 0.3 * b for a, b in zip(m[j], plain.grad(j, w, t), strict=True)]
            sent.append([top(a - b, 0.3) for a, b in zip(m[j], g[j], strict=True)])
            g[j] = [a + b for a, b in zip(g[j], sent[j], strict=True)]
        big = [a + b for a, b in zip(big, mean(sent), strict=True)]
        x = [a - 0.05 * scion(role, b) for role, a, b in zip(plain.roles, x, big, strict=True)]
        w = [a + top(b - a, 0.5) for a, b in zip(w, x, strict=True)]
    same(final(e, engine), x)


def test_radii_by_name_and_a_rule_in_place_of_the_mean() -> None:
    """A layer whose radius is tiny stays; Byzantine clients meet the rule, the oracle comes after it."""
    still = Norms(radii=(("*bias", 1e-9),))
    e = experiment(
        EF21Muon(move=LMO(0.02, still), down=None),
        clients=7,
        byzantine=2,
        attack=ALIE(),
        rule=Chain(NNM(), TrimmedMean()),
    )
    plain, after = Plain(e), run(e).model
    moved = [
        (after[b.name] - w).abs().max() for b, w in zip(plain.fed.layout.blocks, plain.start, strict=True)
    ]
    assert [float(far) > 1e-3 for far in moved] == [role != "vector" for role in plain.roles]


RESUMED = [
    EF21Muon(move=LMO(0.05)),
    Muon(0.02),
    ClientMuon(0.02),
    Gluon(0.1),
    DropMuon(0.02),
    SignMuon(0.01),
    FedMuon(0.02, 2),
    JaguarMuon(0.01, 3),
    FRUGAL(0.01, every=4),
    SGDSaI(0.01),
    DiffGrad(0.01),
    NGNM(0.5),
]


@pytest.mark.parametrize("method", RESUMED, ids=lambda m: type(m).__name__)
def test_resumes_to_the_bit(method: Method, tmp_path) -> None:  # type: ignore[no-untyped-def]
    e = experiment(method)
    resumed_to_the_bit(e, tmp_path / "a")


# ---------------------------------------------------------------- Muon and Scion
def adam_step(g: Tensor, m: Tensor, v: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    return m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-10), m, v


def reference_muon(e: Experiment, clients: int, after: bool) -> Layers:
    """The reference's lines, matrix by matrix: of the mean gradient, or of each client's before the mean."""
    plain = Plain(e)
    x = plain.start
    who = range(1 if after else clients)
    m, v = ([plain.zeros() for _ in who] for _ in range(2))
    for t in range(e.rounds):
        each = [plain.grad(i, x, t) for i in range(clients)]
        moves = []
        for i, g in enumerate([mean(each)] if after else each):
            move = []
            for k, role in enumerate(plain.roles):
                if role in ("vector", "head"):
                    u, m[i][k], v[i][k] = adam_step(g[k], m[i][k], v[i][k], t + 1)
                    move.append(0.015 * u)
                else:
                    m[i][k] = 0.95 * m[i][k] + g[k]
                    rows, columns = g[k].shape
                    move.append(orthogonal(g[k] + 0.95 * m[i][k]) * max(1, rows / columns) ** 0.5)
            moves.append(move)
        x = [0.9998 * a - 0.02 * b for a, b in zip(x, mean(moves), strict=True)]
    return x


@pytest.mark.parametrize("engine", ["loop", "vector"])
@pytest.mark.parametrize("clients", [1, N])
def test_muon_line_by_line(clients: int, engine: str) -> None:
    """K. Jordan's Muon with Nesterov momentum, Adam for vectors and the output layer, decay 0.01 times the rate."""
    e = experiment(Muon(0.02, decay=0.01), clients=clients)
    same(final(e, engine), reference_muon(e, clients, after=True))


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_muon_on_clients_line_by_line(engine: str) -> None:
    e = experiment(ClientMuon(0.02, decay=0.01))
    same(final(e, engine), reference_muon(e, N, after=False))


def test_of_one_client_it_is_the_same_where_the_optimizer_stands() -> None:
    on_server, on_client = (experiment(method, clients=1) for method in (Muon(0.02), ClientMuon(0.02)))
    torch.testing.assert_close(final(on_client), final(on_server), rtol=1e-5, atol=1e-6)


def test_polar_factors_of_clients_that_differ_have_a_short_mean() -> None:
    """Why the oracle belongs after the rule: one of a mean is as long as ever, a mean of several is not."""
    generator = torch.Generator().manual_seed(0)
    block, oracle = Block("w", (20, 30), "hidden"), Spectral(polar=ExactPolar())
    rows = torch.randn(20, 30, generator=generator) + torch.randn(11, 20, 30, generator=generator)
    before, after = oracle.direction(rows, block).mean(0), oracle.direction(rows.mean(0), block)
    assert float(after.norm()) == pytest.approx(20**0.5, rel=1e-5)
    assert float(before.norm()) < 0.85 * float(after.norm())


@pytest.mark.parametrize("engine", ["loop", "vector"])
@pytest.mark.parametrize("lmo", ["after", "before"])
@pytest.mark.parametrize("constrained", [False, True])
def test_scion_line_by_line(lmo: str, constrained: bool, engine: str) -> None:
    """arXiv:2502.07529, algorithms 1 and 2, of the mean; or each client's step, and the mean of these."""
    e = experiment(Scion(0.03, 0.3, constrained=constrained, lmo=lmo))  # type: ignore[arg-type]
    plain = Plain(e)
    x, d = plain.start, [plain.zeros() for _ in range(N)]
    for t in range(e.rounds):
        for j in range(N):
            d[j] = [0.7 * a + 0.3 * b for a, b in zip(d[j], plain.grad(j, x, t), strict=True)]
        if lmo == "after":
            u = [scion(role, a) for role, a in zip(plain.roles, mean(d), strict=True)]
        else:
            u = mean([[scion(role, a) for role, a in zip(plain.roles, mine, strict=True)] for mine in d])
        x = [(0.97 if constrained else 1) * a - 0.03 * b for a, b in zip(x, u, strict=True)]
    same(final(e, engine), x)


def test_constrained_steps_stay_in_the_ball() -> None:
    """From anywhere the conditional gradient ends in the ball of its radius: here entries of at most 0.05."""
    e = experiment(Scion(0.5, norms=Norms.all(Sign(radius=0.05)), constrained=True), rounds=20)
    assert float(final(e).abs().max()) <= 0.05 * 1.001


def test_gluon_line_by_line() -> None:
    """arXiv:2505.13416: t = ||d||_* / (L0 + L1 ||d||_*) of each layer, with exact polar factors and dual norms."""
    exact = Norms.all(Spectral(polar=ExactPolar()))
    smooth = (("*bias", 4.0, 0.0), ("*", 2.0, 0.5))
    e = experiment(Gluon(0.7, 0.3, exact, smooth=smooth))
    plain = Plain(e)
    x, d = plain.start, plain.zeros()
    for t in range(e.rounds):
        g = mean([plain.grad(j, x, t) for j in range(N)])
        d = [0.7 * a + 0.3 * b for a, b in zip(d, g, strict=True)]
        for k, role in enumerate(plain.roles):
            u, s, vh = torch.linalg.svd(d[k].double().reshape(len(d[k]), -1), full_matrices=False)
            kept, nuclear = s > 1e-12 * s[0], float(s.sum())
            l0, l1 = (4.0, 0.0) if role == "vector" else (2.0, 0.5)
            way = ((u * kept) @ vh).float().reshape(d[k].shape)
            x[k] = x[k] - 0.7 * nuclear / (l0 + l1 * nuclear) * way
    same(final(e), x)
    with pytest.raises(Invalid, match=r"Gluon.smooth: no pattern fits the layer"):
        run(replace(e, method=Gluon(smooth=(("nothing", 1.0, 1.0),))))


@pytest.mark.parametrize("move", ["lmo", "sharp"])
def test_drop_muon_line_by_line(move: str) -> None:
    """arXiv:2510.02239: layers before the drawn one keep weights and momentum; which, from the round's address."""
    norms = Norms.all(Spectral(polar=ExactPolar()))
    e = experiment(DropMuon(0.05, 0.3, norms, move=move, chances=(1.0, 2.0, 1.0)))  # type: ignore[arg-type]
    plain, firsts = Plain(e), []
    names = [block.name for block in plain.fed.layout.blocks]
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    x, d = plain.start, plain.zeros()
    for t in range(e.rounds):
        drawn = 4 * float(AtServer(plain.fed, t).common(1))
        firsts.append(0 if drawn < 1 else 1 if drawn < 3 else 2)
        g = mean([plain.grad(j, x, t) for j in range(N)])
        for k, name in enumerate(names):
            if layers.index(name.rpartition(".")[0]) >= firsts[-1]:
                d[k] = 0.7 * d[k] + 0.3 * g[k]
                u, s, vh = torch.linalg.svd(d[k].double().reshape(len(d[k]), -1), full_matrices=False)
                way = ((u * (s > 1e-12 * s[0])) @ vh).float().reshape(d[k].shape)
                x[k] = x[k] - 0.05 * way * (float(s.sum()) if move == "sharp" else 1)
    assert len(set(firsts)) > 1
    same(final(e), x)
    always = DropMuon(0.05, 0.3, norms, chances=(1.0, 0.0, 0.0))
    torch.testing.assert_close(
        final(replace(e, method=always)), final(replace(e, method=Scion(0.05, 0.3, norms)))
    )
    with pytest.raises(Invalid, match=r"one for each of the 3 layers"):
        run(replace(e, method=DropMuon(chances=(1.0, 1.0))))


def test_what_drop_muon_leaves_out_does_not_travel() -> None:
    """Bits of each round are those of the layers drawn, on the wire of `grid` too; an attacker can send no more."""
    e = experiment(DropMuon(0.05, 0.3), byzantine=1, attack=SignFlip())
    plain, sizes = Plain(e), dict[str, int]()
    for block in plain.fed.layout.blocks:
        home = block.name.rpartition(".")[0]
        sizes[home] = sizes.get(home, 0) + block.size
    left, sent = list(sizes.values()), []
    for t in range(e.rounds):
        first = int(len(left) * float(AtServer(plain.fed, t).common(1)))
        sent.append(32 * sum(left[first:]))
        by = plain.fed.uplink(t)
        assert by is not None
        forged = as_read(plain.fed, torch.ones(1, plain.fed.width), t)
        assert int(forged.sum()) == sum(left[first:])
        payload = by.encode(torch.ones(plain.fed.width), plain.fed.layout, torch.zeros)
        assert plain.fed.uplink_bits(t) == 32 * len(payload["value"]) == sent[-1]
    assert len(set(sent)) > 1
    found = [run(replace(e, evaluate_every=1), engine=engine) for engine in ("loop", "vector", "grid")]
    for result in found:
        assert np.diff(result.frame["uplink_bits"], prepend=0).tolist() == sent
    assert all(torch.equal(found[0].model[name], found[2].model[name]) for name in found[0].model)


@pytest.mark.parametrize("where", ["after", "before", "both"])
def test_sign_muon_line_by_line(where: str) -> None:
    """arXiv:2605.16311: signs of polar factors, or of momenta, and a vote; zeros are drawn, here there are none."""
    norms = Norms.all(Spectral(polar=ExactPolar()))
    e = experiment(SignMuon(0.01, 0.3, where, norms), clients=3, rule=MajorityVote(), batches=Fixed(30))  # type: ignore[arg-type]
    plain = Plain(e)
    x, m = plain.start, [plain.zeros() for _ in range(3)]

    def polar(layers: Layers) -> Layers:
        return plain.cut(norms.direction(torch.cat([w.flatten() for w in layers]), plain.fed.layout))

    for t in range(e.rounds):
        for j in range(3):
            m[j] = [0.7 * a + 0.3 * b for a, b in zip(m[j], plain.grad(j, x, t), strict=True)]
        sent = m if where == "before" else [polar(mine) for mine in m]
        u = [torch.stack([w.sign() for w in some]).sum(0).sign() for some in zip(*sent, strict=True)]
        x = [a - 0.01 * b for a, b in zip(x, u if where == "after" else polar(u), strict=True)]
    same(final(e), x)
    assert plain.fed.bits(1)["uplink_bits"] == len(plain.fed.x0)


def test_fed_muon_line_by_line() -> None:
    """arXiv:2510.27403: local steps along (1 - mix) u + mix delta; both the model and the momentum are averaged."""
    e = experiment(FedMuon(0.02, 3, momentum=0.6, mix=0.4, decay=0.1))
    plain = Plain(e)
    x, m, delta = plain.start, plain.zeros(), plain.zeros()
    for t in range(e.rounds):
        ends, momenta = [], []
        for j in range(N):
            y, own = x, m
            batches = plain.fed.batch(t, np.array([j])).part(0).split(3)
            for batch in batches:
                g = plain.cut(one_client(plain.fed.model, torch.cat([w.flatten() for w in y]), batch))
                own = [0.6 * a + 0.4 * b for a, b in zip(own, g, strict=True)]
                u = [scion(role, a) for role, a in zip(plain.roles, own, strict=True)]
                y = [a - 0.02 * (0.6 * b + 0.4 * c + 0.1 * a) for a, b, c in zip(y, u, delta, strict=True)]
            ends.append(y)
            momenta.append(own)
        moved = [a - b for a, b in zip(x, mean(ends), strict=True)]
        delta = [a / (3 * 0.02) for a in moved]
        x, m = mean(ends), mean(momenta)
    same(final(e), x)
    assert plain.fed.bits(1) == {
        "uplink_bits": 64 * len(plain.fed.x0),
        "downlink_bits": 96 * len(plain.fed.x0),
    }


@pytest.mark.parametrize("method", [JaguarSignSGD, JaguarMuon])
def test_jaguar_line_by_line(method: type[JaguarSignSGD]) -> None:
    """arXiv:2506.04430: two losses for each of a few coordinates, one number each; nothing else is sent."""
    e = experiment(method(0.01, coordinates=5, momentum=0.5, tau=0.01))
    plain = Plain(e)
    x, m = plain.fed.x0, torch.zeros_like(plain.fed.x0)
    for t in range(e.rounds):
        chosen = AtServer(plain.fed, t).common(len(x)).argsort(stable=True)[:5].tolist()
        for j in chosen:
            e_j = torch.zeros_like(x)
            e_j[j] = 0.01
            found = []
            for i in range(N):
                batch = plain.fed.batch(t, np.array([i])).part(0)
                up, down = (one_loss(plain.fed.model, at, batch, plain.fed.loss) for at in (x + e_j, x - e_j))
                found.append(float(up - down) / 0.02)
            m[j] = 0.5 * m[j] + 0.5 * float(np.mean(found))
        way = m.sign() if method is JaguarSignSGD else torch.cat([jaguar(w).flatten() for w in plain.cut(m)])
        x = x - 0.01 * way
    torch.testing.assert_close(final(e), x, rtol=1e-3, atol=1e-4)
    assert plain.fed.bits(1)["uplink_bits"] == 5 * 32


def jaguar(w: Tensor) -> Tensor:
    """Ten steps of Newton-Schulz; 0 of nothing."""
    return orthogonal(w.reshape(len(w), -1), steps=10).reshape(w.shape)


def test_exact_differences_of_all_coordinates_are_sign_sgd() -> None:
    """|I| = d, no momentum: JAGUAR follows the gradient's signs, where these are not nothing."""
    e = experiment(JaguarSignSGD(0.01, coordinates=10**6, momentum=0.0, tau=0.01), clients=1, rounds=1)
    plain = Plain(e)
    g = torch.cat([w.flatten() for w in plain.grad(0, plain.start, 0)])
    moved = (plain.fed.x0 - final(e)) / 0.01
    clear = g.abs() > 1e-3
    assert clear.sum() > 20
    torch.testing.assert_close(moved[clear], g.sign()[clear], rtol=0, atol=1e-3)


def test_a_batch_for_a_budget() -> None:
    assert budget_batch(1_000_000, per_example=64) == 156
    assert budget_batch(8 * 10**6) == 4 * budget_batch(10**6)
    with pytest.raises(Invalid, match="above 0"):
        budget_batch(0)


# ---------------------------------------------------------------- reductions
def test_a_frobenius_norm_is_normalized_sgd() -> None:
    layers, plain = (
        final(experiment(EF21(Polyak(0.3), All(Float32()), move)))
        for move in (LMO(0.1, Norms.all(Frobenius())), Normalized(0.1, by_layer=True))
    )
    torch.testing.assert_close(layers, plain, rtol=1e-5, atol=1e-6)


def test_a_norm_of_entries_is_sign_sgd() -> None:
    entries = Norms.all(Sign())
    votes = final(experiment(SignSGD(0.01), rule=MajorityVote()))
    assert torch.equal(final(experiment(Scion(0.01, 1.0, entries, lmo="before"), rule=MajorityVote())), votes)
    alone = [experiment(method, clients=1) for method in (Scion(0.01, 1.0, entries), SignSGD(0.01))]
    assert torch.equal(final(alone[0]), final(alone[1]))


def test_without_loss_ef21_muon_is_scion() -> None:
    """Nothing compressed, the mean, all clients: one momentum, one oracle after the rule."""
    plain = EF21Muon(Polyak(0.3), All(Float32()), LMO(0.03), None)
    torch.testing.assert_close(
        final(experiment(plain)), final(experiment(Scion(0.03, 0.3))), rtol=1e-4, atol=2e-5
    )


# ---------------------------------------------------------------- private, attacked
def test_the_polar_factor_of_a_noisy_mean_costs_nothing() -> None:
    """The ledger books Muon's gradients as it books SGD's: what follows the noise is post-processing."""
    for privacy in (
        MessageDP(noise=1.0, delta=1e-4),
        CentralDP(noise=1.0, delta=1e-4),
        ExampleDP(clip=0.5, noise=1.0, delta=1e-4),
    ):
        spent = [
            run(experiment(method, privacy=privacy)).frame["epsilon"].iloc[-1]
            for method in (Muon(0.02, tau=0.5), ByzClipSGD(0.1, 0.5))
        ]
        assert spent[0] == spent[1] > 0
    for method in (ClientMuon(tau=0.5), Scion(lmo="before")):  # a message there has no bound
        with pytest.raises(Invalid, match="without a bound"):
            experiment(method, privacy=MessageDP(noise=1.0, delta=1e-4))


def test_losses_are_refused_where_examples_are_private() -> None:
    for method in (JaguarSignSGD(), NGNM()):
        with pytest.raises(Invalid, match=r"env\.loss tells of examples"):
            run(experiment(method, privacy=ExampleDP(clip=0.5, noise=1.0, delta=1e-4)))
