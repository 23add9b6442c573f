"""Methods that step layer by layer, by the names of their papers: engines agree under every attack and rule here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_grid import both
from test_parity import agree, experiment

from fedsim.attacks import ALIE, SignFlip
from fedsim.batches import Fixed
from fedsim.messages import TopK
from fedsim.method import Method
from fedsim.spec import Experiment
from fedsim.strategies import (
    EF21,
    FRUGAL,
    NGNM,
    NNM,
    SWAN,
    Chain,
    ClientMuon,
    DiffGrad,
    DropMuon,
    EF21Muon,
    FedMuon,
    GeometricMedian,
    Gluon,
    JaguarMuon,
    JaguarSignSGD,
    Muon,
    PerLayer,
    Scion,
    SGDSaI,
    SignMuon,
    TrimmedMean,
)
from fedsim.strategies.methods.estimators import ClippedHM
from fedsim.strategies.methods.scion import budget_batch
from fedsim.strategies.oracles import Frobenius, KyFan, Mix, NewtonSchulz, Norms, Sign, Spectral
from fedsim.types import Attack, Rule

COARSE = Spectral(polar=NewtonSchulz(2))  # on clients; more steps make more of a gradient's last bits
METHODS: dict[str, Method] = {
    "Muon on the server": Muon(),
    "Muon on clients": ClientMuon(polar=NewtonSchulz(2)),
    "Scion": Scion(),
    "Scion before the rule": Scion(lmo="before", norms=Norms.all(COARSE)),
    "stochastic conditional gradient": Scion(constrained=True),
    "Gluon": Gluon(0.1),
    "EF21-Muon": EF21Muon(),
    "Drop-Muon": DropMuon(),
    "SignMuon": SignMuon(sign="before"),
    "FedMuon": FedMuon(local_steps=2),
    "MuonSGD by JAGUAR": JaguarMuon(tau=10.0),
    "JAGUAR SignSGD": JaguarSignSGD(tau=10.0),
    "F-Muon": Scion(norms=Norms.all(Mix(Spectral(), Frobenius()))),
    "S-Muon": Scion(norms=Norms.all(Mix(Spectral(), Sign()))),
    "Neon": Scion(norms=Norms.all(KyFan())),
    "SWAN": SWAN(),
    "FRUGAL": FRUGAL(),
    "SGD-SaI": SGDSaI(),
    "diffGrad": DiffGrad(),
    "NGN-M": NGNM(),
    "clipped Hessian": EF21(ClippedHM(curvature=0.01), TopK(0.3)),
}
FACED: tuple[
    tuple[Attack, Rule], ...
] = (  # no neighbours by layer: of vectors of signs many are equally near
    (SignFlip(), Chain(NNM(), TrimmedMean())),
    (ALIE(), PerLayer(GeometricMedian())),
)


def case(name: str, attack: Attack, rule: Rule) -> Experiment:
    e = replace(experiment(METHODS[name], rule, None), attack=attack, rounds=2)
    if name == "stochastic conditional gradient":
        e = replace(e, batches=Fixed(budget_batch(500, constant=0.1)))
    return e


@pytest.mark.parametrize(("attack", "rule"), FACED, ids=["flipped", "alie"])
@pytest.mark.parametrize("name", METHODS)
def test_vector_is_the_loop(name: str, attack: Attack, rule: Rule) -> None:
    agree(case(name, attack, rule), rounds=2)


@pytest.mark.parametrize("name", METHODS)
def test_the_grid_is_the_loop_to_the_bit(name: str) -> None:
    both(case(name, *FACED[1]))
