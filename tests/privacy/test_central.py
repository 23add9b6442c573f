"""A trusted server: noise on the mean of the messages, as large as one client may move it."""

from dataclasses import dataclass, replace
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_privacy import plan
from torch import Tensor

from fedsim.accounting import Release, exact, gaussian_epsilon, rdp
from fedsim.attacks import ALIE, IPM, NaN
from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.models import Logistic
from fedsim.privacy import CentralDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import SCAFFOLD, ByzClip21SGD2M, ByzClipSGD, Clip21SGD2M, FedSGD, Mean, Median
from fedsim.task import Task
from fedsim.types import Attack, View


def central(**changes):
    base = Experiment(
        task=Task(data=Blobs(), model=Logistic()),
        split=IID(),
        clients=8,
        rule=Mean(),
        method=ByzClipSGD(lr=0.5, tau=0.4),
        privacy=CentralDP(noise=3.0, delta=0.01),
        rounds=12,
        evaluate_every=6,
    )
    return replace(base, **changes)


def test_central_noise_is_on_the_mean_and_as_large_as_one_client_moves_it():
    fed = Federation(central())
    x = torch.zeros_like(fed.x0)
    drawn = torch.stack([fed.published(x, 8, t) for t in range(400)])
    assert float(drawn.std()) == pytest.approx(3.0 * 2 * 0.4 / 8, rel=0.02)
    few = torch.stack([fed.published(x, 2, t) for t in range(400)])  # six clients did not answer
    assert float(few.std()) == pytest.approx(3.0 * 2 * 0.4 / 2, rel=0.02)
    assert not (fed.noisy(torch.zeros(8, fed.x0.numel()), "message", 0, np.arange(8)) != 0).any(), (
        "clients of a trusted server add no noise"
    )


def test_a_secret_cohort_amplifies_and_all_pay_for_every_round():
    cohort = run(central(cohort=2))
    amplified = [Release(3.0, 12, "fixed", 0.25)]
    assert cohort.summary["epsilon"] == min(exact(amplified, 0.01), rdp(amplified, 0.01))
    everyone = run(central())
    assert everyone.summary["epsilon"] == gaussian_epsilon(sqrt(12) / 3.0, 0.01) > cohort.summary["epsilon"]
    assert "unit: one client, replace-one, exact Gaussian composition" in everyone.notes[0]


@pytest.mark.parametrize("method", [Clip21SGD2M(lr=0.5, tau=0.4), SCAFFOLD(lr=0.5, tau=0.4)], ids=repr)
def test_where_clients_keep_a_state_who_took_part_is_no_secret(method):
    """Then each pays in full for its own rounds, and for no other."""
    e = central(cohort=2, method=method)
    result, most = run(e), max(np.bincount(np.concatenate([Federation(e).cohort(t) for t in range(12)])))
    assert result.summary["epsilon"] == pytest.approx(gaussian_epsilon(sqrt(most) / 3.0, 0.01), rel=1e-12)
    assert result.summary["epsilon"] > run(central(cohort=2)).summary["epsilon"]


def test_the_vector_engine_and_the_loop_publish_the_same():
    models = [run(central(cohort=3), engine=engine).model for engine in ("loop", "vector")]
    for a, b in zip(models[0].values(), models[1].values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": Median()}, "how far one client moves Median is not known"),
        ({"method": ByzClip21SGD2M(lr=0.1, tau=0.1)}, "aggregates more than the messages of a round"),
        ({"method": FedSGD(lr=0.1)}, "sends messages without a bound"),
        ({"byzantine": 2, "f": 1}, "must assume all 2 Byzantine clients"),
    ],
)
def test_a_trusted_server_needs_a_mean_of_bounded_messages(changes, message):
    with pytest.raises(Invalid, match=message):
        central(**changes)


def test_a_delta_that_would_give_away_a_client_is_warned_about():
    assert len(CentralDP(noise=3.0, delta=0.05).warnings(plan(clients=20))) == 1
    assert CentralDP(noise=3.0, delta=0.04).warnings(plan(clients=20)) == []


def test_all_byzantine_clients_may_be_in_a_cohort_and_drop_out_of_the_mean():
    e = central(clients=20, byzantine=4, cohort=5, attack=NaN(), privacy=CentralDP(noise=1.0, delta=0.01))
    fed = Federation(e)
    honest = [int((fed.cohort(t) < e.honest).sum()) for t in range(400)]
    assert min(honest) < e.rows - e.f_round  # more Byzantine clients than on average
    drawn = torch.stack([fed.published(torch.zeros_like(fed.x0), 5, t) for t in range(400)])
    assert float(drawn.std()) == pytest.approx(2 * 0.4 / (5 - 4), rel=0.02)


def test_the_mean_of_a_cohort_is_what_gets_the_noise():
    method, rows, ids = Clip21SGD2M(lr=0.5, tau=0.4), torch.ones(5, 3), torch.arange(5)
    state, seen = method.receive(method.server_init(torch.zeros(3), 50), rows, ids)
    assert seen is rows  # of which one client moves the mean by 2 tau / 5 at most
    moved = method.step(state, seen.mean(0), SimpleNamespace(round=0))["g"]
    torch.testing.assert_close(
        moved, torch.full((3,), method.beta_hat * 5 / 50)
    )  # absent clients count as zero


@pytest.mark.parametrize("attack", [IPM(100.0), ALIE()], ids=repr)
def test_attacks_that_see_honest_messages_are_refused(attack: Attack) -> None:
    """IPM(100) carries one client's message into the forged rows: the mean moved by 1.92 where 0.10 was booked."""
    with pytest.raises(Invalid, match="need only their own rows"):
        central(byzantine=2, attack=attack)


@dataclass(frozen=True)
class Far(Attack):
    """Rows of one length, whatever it is."""

    size: float = 1e8
    needs = frozenset({"own"})

    def forge(self, view: View) -> Tensor:
        assert view.own is not None
        return torch.full_like(view.own, self.size / view.own.shape[1] ** 0.5)


def test_a_long_row_hides_no_noise() -> None:
    """Beside a row of norm 1e8 float32 carries neither noise nor other rows: the server clips it to the bound."""
    far, near = (run(central(byzantine=1, attack=Far(size))).model for size in (1e8, 0.4))
    for one, other in zip(far.values(), near.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_byzantine_clients_know_whether_they_were_drawn() -> None:
    """Two of eight are drawn and three are Byzantine: where none of these was, an honest one was with chance 2/5."""
    ledger = Federation(central(cohort=2, byzantine=3, attack=NaN())).ledger
    assert ledger is not None
    assert ledger.plan.active == 2 / 5


def test_an_attack_is_not_shown_more_than_it_declares() -> None:
    @dataclass(frozen=True)
    class Curious(Attack):
        """Declares its own rows, and would read the honest ones."""

        def forge(self, view: View) -> Tensor:
            assert view.honest is None
            assert view.own is not None
            return -view.own

    run(central(byzantine=2, attack=Curious(), rounds=1))
