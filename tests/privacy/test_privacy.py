"""From a budget to noise and back, what a statement says, and what is refused or warned about."""

from dataclasses import dataclass, replace
from math import log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim import engines
from fedsim.accounting import Release, exact, gaussian_epsilon, rdp
from fedsim.batches import Epochs, Fixed, Full, Poisson
from fedsim.check import Invalid
from fedsim.config import codec
from fedsim.datasets.load import Blobs
from fedsim.datasets.split import IID
from fedsim.federation import Federation
from fedsim.models import MLP
from fedsim.privacy import ExampleDP, MessageDP, Quantile
from fedsim.privacy.plan import Plan
from fedsim.runner import run
from fedsim.schedule import InverseTime, Milestones
from fedsim.spec import Experiment
from fedsim.strategies import FedAvg, FedSGD, Mean
from fedsim.task import Task
from fedsim.types import Batch

FULL = Full()


def rounds(count):
    """Clients that took part in the first `count` rounds."""
    return frozenset({tuple(range(count))})


def plan(batches=FULL, count=100, smallest=600, clients=20, parameters=650):
    return Plan(rounds(count), 1, batches, smallest, clients, 1.0, parameters)


# ---------------------------------------------------------------- budget and noise
BATCHES = [Full(), Fixed(32), Epochs(32), Poisson(size=32), Poisson(rate=0.1)]


@pytest.mark.parametrize("batches", BATCHES, ids=repr)
@pytest.mark.parametrize("epsilon", [0.5, 20.0])
def test_a_budget_becomes_noise_that_spends_it(batches, epsilon):
    private = ExampleDP(1.0, epsilon=epsilon)
    z = private.multiplier(plan(batches))
    assert epsilon * (1 - 1e-4) <= private.spent(plan(batches), rounds(100)) <= epsilon * (1 + 1e-12)
    same = ExampleDP(1.0, noise=z)
    assert same.spent(plan(batches), rounds(100)) == private.spent(plan(batches), rounds(100))
    assert private.spent(plan(batches), rounds(0)) == 0


@pytest.mark.parametrize("batches", BATCHES, ids=repr)
def test_what_is_spent_grows_with_every_release(batches):
    private = ExampleDP(1.0, noise=1.5)
    spent = [private.spent(plan(batches), rounds(count)) for count in range(0, 100, 9)]
    assert spent == sorted(spent)
    assert spent[0] == 0 < spent[1]


@given(st.floats(0.05, 50), st.integers(1, 500), st.integers(1, 9), st.floats(1e-8, 1e-3))
def test_full_batches_and_messages_are_accounted_by_the_closed_form(epsilon, count, steps, delta):
    several = replace(plan(count=count), steps=steps)
    examples, messages = ExampleDP(2.0, epsilon=epsilon, delta=delta), MessageDP(epsilon=epsilon, delta=delta)
    for private, releases in ((examples, count * steps), (messages, count)):
        z = private.multiplier(several)
        assert gaussian_epsilon(sqrt(releases) / z, delta) == pytest.approx(epsilon, rel=1e-11)


def test_the_noise_is_the_multiplier_times_twice_the_clip_over_the_batch():
    private, sizes = ExampleDP(0.5, noise=3.0), np.array([10, 100])
    scale = private.scale(plan(), 7) * private.bound(7)
    np.testing.assert_allclose(
        scale * private.client_sensitivity(Full(), sizes, None), [3 * 2 * 0.5 / 10, 3 * 2 * 0.5 / 100]
    )
    np.testing.assert_allclose(
        scale * private.client_sensitivity(Fixed(20), sizes, None), [3 * 2 * 0.5 / 10, 3 * 2 * 0.5 / 20]
    )
    np.testing.assert_allclose(
        scale * private.client_sensitivity(Poisson(rate=0.2), sizes, None), [3 * 0.5 / 2, 3 * 0.5 / 20]
    )
    message = MessageDP(noise=3.0)
    np.testing.assert_allclose(
        message.scale(plan(), 7) * message.client_sensitivity(Full(), sizes, 0.3), [3 * 2 * 0.3] * 2
    )


def test_noise_and_clip_follow_their_schedules_and_are_accounted():
    clip, factor = InverseTime(2.0, 10), Milestones(1.0, (4, 8), 0.5)
    private = ExampleDP(clip, noise=3.0, schedule=factor)
    for t in range(12):
        assert private.scale(plan(), t) == pytest.approx(3.0 * factor.at(t))
        assert private.bound(t) == pytest.approx(clip.at(t))
    mu = sqrt(
        sum(1 / (3.0 * factor.at(t)) ** 2 for t in range(12))
    )  # the clip does not matter: noise grows with it
    assert private.spent(plan(), rounds(12)) == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-12)
    budget = ExampleDP(clip, epsilon=2.0, schedule=factor)
    assert budget.spent(plan(), rounds(100)) == pytest.approx(2.0, rel=1e-12)
    message = MessageDP(epsilon=2.0, schedule=factor)
    assert message.spent(plan(), rounds(100)) == pytest.approx(2.0, rel=1e-12)
    assert message.multiplier(plan()) == pytest.approx(budget.multiplier(plan()))


def test_the_client_that_takes_part_most_sets_the_noise_and_the_report():
    often, seldom = (0, 1, 2, 5), (3,)
    both = replace(plan(), rounds=frozenset({often, seldom}))
    private = MessageDP(epsilon=1.0)
    assert private.multiplier(both) == MessageDP(epsilon=1.0).multiplier(plan(count=4))
    assert private.spent(both, frozenset({often, seldom})) == private.spent(both, frozenset({often}))
    assert private.spent(both, frozenset({seldom})) < private.spent(both, frozenset({often}))


def test_an_epoch_pays_once_for_each_example():
    private, epochs = ExampleDP(1.0, noise=4.0), plan(Epochs(60), smallest=600)  # ten batches an epoch

    def spent(*taken):
        return private.spent(epochs, frozenset({taken}))

    once, twice, thrice = (private.spent(plan(), rounds(k)) for k in (1, 2, 3))
    assert spent(*range(1)) == spent(*range(10)) == once
    assert spent(*range(11)) == spent(*range(20)) == twice
    assert spent(0, 10, 20) == spent(9, 10, 29) == thrice  # three rounds, but of three epochs


def test_an_epoch_of_changing_noise_pays_for_the_least():
    private = ExampleDP(1.0, noise=4.0, schedule=Milestones(1.0, (15,), 0.5))
    epochs = plan(Epochs(60), smallest=600)
    mu = sqrt(1 / 4.0**2 + 1 / 2.0**2)  # the second epoch begins with noise 4 and ends with noise 2
    assert private.spent(epochs, rounds(20)) == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-12)


def test_automatic_accounting_is_the_lower_of_two_valid_bounds():
    for noise, smallest in ((3.0, 6000), (3.0, 40)):  # sampling helps in the first, hardly in the second
        fixed = plan(Fixed(32), smallest=smallest)
        release = [Release(noise, 100, "fixed", 32 / smallest)]
        bounds = exact(release, 1e-5), rdp(release, 1e-5)
        assert ExampleDP(1.0, noise=noise).spent(fixed, rounds(100)) == min(bounds)
        assert ExampleDP(1.0, noise=noise, accountant="exact").spent(fixed, rounds(100)) == bounds[0]
        assert ExampleDP(1.0, noise=noise, accountant="rdp").spent(fixed, rounds(100)) == bounds[1]


# ---------------------------------------------------------------- statements
def test_a_statement_says_all_that_epsilon_means():
    assert ExampleDP(1.0, epsilon=4.81).statement(plan(), rounds(100)) == (
        "epsilon = 4.81 at delta = 1e-05, unit: one example, replace-one, exact Gaussian composition"
    )
    assert (
        ExampleDP(1.0, epsilon=2.0, delta=1e-6)
        .statement(plan(Poisson(size=32)), rounds(100))
        .endswith("at delta = 1e-06, unit: one example, add-or-remove, RDP")
    )
    assert "one example, or all that a client has, replace-one" in MessageDP(epsilon=8.0).statement(
        plan(), rounds(1)
    )


def test_the_papers_calibration_is_called_nominal_beside_what_it_accounts_to():
    private = MessageDP(epsilon=3.0, delta=4e-4, calibration="paper")
    z = private.multiplier(plan(count=300))
    tau = 0.7  # sigma = (tau / epsilon) sqrt(T ln(1/delta)), over a sensitivity of 2 tau
    assert z * 2 * tau == pytest.approx(tau / 3 * sqrt(300 * log(1 / 4e-4)))
    accounted = private.spent(plan(count=300), rounds(300))
    assert round(accounted, 1) == 8.9  # as the docstring says; zCDP, a looser bound, has 10.8
    statement = private.statement(plan(count=300), rounds(300))
    assert statement.startswith(f"epsilon = {accounted:.4g} at delta = 0.0004")
    assert statement.endswith("(nominal epsilon = 3 of arXiv:2603.23472, which drops constants)")


# ---------------------------------------------------------------- warnings
@given(st.floats(1e-9, 0.5), st.integers(1, 10_000))
def test_delta_is_warned_about_from_a_tenth_of_one_over_m_on(delta, m):
    warned = [w for w in ExampleDP(1.0, noise=50.0, delta=delta).warnings(plan(smallest=m)) if "delta" in w]
    assert bool(warned) == (delta >= 1 / (10 * m))
    assert ("is not below 1/m" in "".join(warned)) == (delta >= 1 / m)


def test_too_little_noise_is_warned_about_by_the_shuffle_bound():
    epochs = plan(Epochs(64), smallest=60_000)  # M = 937
    (warning,) = ExampleDP(1.0, noise=0.13, delta=1e-6).warnings(
        epochs
    )  # twice that over the clip: replace-one
    assert "0.26 times the clip" in warning
    assert "= 0.27 at M = 937" in warning
    assert "kappa >= 0.315" in warning
    assert ExampleDP(1.0, noise=0.14, delta=1e-6).warnings(epochs) == []
    poisson = plan(Poisson(size=64), smallest=60_000)
    assert len(ExampleDP(1.0, noise=0.26, delta=1e-6).warnings(poisson)) == 1
    assert ExampleDP(1.0, noise=0.28, delta=1e-6).warnings(poisson) == []
    alone = ExampleDP(1.0, noise=0.01, delta=1e-6).warnings(
        plan(Full())
    )  # one update an epoch: it says nothing
    assert not any("shuffle bound" in warning for warning in alone)


def test_message_noise_that_drowns_few_clients_is_warned_about():
    few, many = plan(clients=20, count=50), plan(clients=20_000, count=50)
    (warning,) = MessageDP(epsilon=8.0, delta=1e-4).warnings(few)
    assert "20 honest clients" in warning
    assert "use ExampleDP" in warning
    assert MessageDP(epsilon=8.0, delta=1e-4).warnings(many) == []
    # The figure is the ratio of norms, noise to signal, in the sum of T mean messages of clip 1.
    z = MessageDP(epsilon=8.0, delta=1e-4).multiplier(few)
    ratio = 2 * z * sqrt(50 / 20) * sqrt(650) / 50
    assert f"{ratio:.2g} times" in warning


# ---------------------------------------------------------------- refusals
MISUSE = [
    (lambda: ExampleDP(1.0), "give exactly one"),
    (lambda: ExampleDP(1.0, epsilon=1.0, noise=1.0), "give exactly one"),
    (MessageDP, "give exactly one"),
    (lambda: ExampleDP(1.0, epsilon=0.0), "ExampleDP.epsilon = 0.0"),
    (lambda: ExampleDP(1.0, epsilon=-1.0), "ExampleDP.epsilon = -1.0"),
    (lambda: ExampleDP(1.0, epsilon=float("nan")), "ExampleDP.epsilon = nan"),
    (lambda: ExampleDP(1.0, noise=0.0), "ExampleDP.noise = 0.0"),  # clipping without noise
    (lambda: ExampleDP(float("inf"), noise=1.0), "ExampleDP.clip = inf"),  # noise without clipping
    (lambda: ExampleDP(0.0, noise=1.0), "ExampleDP.clip = 0.0"),
    (lambda: MessageDP(epsilon=1.0, delta=1.0), "MessageDP.delta = 1.0"),
    (lambda: MessageDP(epsilon=1.0, delta=0.0), "MessageDP.delta = 0.0"),
    (lambda: MessageDP(noise=1.0, calibration="paper"), "needs epsilon"),
    (lambda: ExampleDP(1.0, epsilon=1.0, accountant="moments"), "ExampleDP.accountant = 'moments'"),
]


@pytest.mark.parametrize(("make", "message"), MISUSE)
def test_misuse_is_refused_in_one_sentence(make, message):
    with pytest.raises(Invalid, match=message) as error:
        make()
    assert "\n" not in str(error.value)


VALID = {
    "exact": (Full, Fixed, Epochs),
    "rdp": (Full, Fixed, Epochs, Poisson),
    "prv": (Full, Epochs, Poisson),
    "gdp": (Full, Epochs),
}


@pytest.mark.parametrize("accountant", VALID)
@pytest.mark.parametrize("batches", BATCHES[:4], ids=repr)
def test_an_accountant_is_used_only_for_sampling_that_it_is_valid_for(accountant, batches):
    private = ExampleDP(1.0, noise=2.0, accountant=accountant)
    if isinstance(batches, VALID[accountant]):
        assert private.spent(plan(batches, count=10), rounds(10)) > 0
    else:
        with pytest.raises(
            Invalid, match=f"'{accountant}' is not valid for batches = {type(batches).__name__}"
        ):
            private.spent(plan(batches, count=10), rounds(10))


# ---------------------------------------------------------------- clips by layer, and clips that adapt
def clipping(privacy, **changes):
    base = Experiment(
        task=Task(data=Blobs(), model=MLP(hidden=8)),
        split=IID(),
        clients=6,
        rule=Mean(),
        method=FedAvg(lr=0.2, local_steps=2),
        privacy=privacy,
        batches=Poisson(size=20),
        rounds=10,
        evaluate_every=5,
    )
    return replace(base, **changes)


QUANTILE = Quantile(start=5.0, target=0.3, speed=0.4)
CLIPS = {
    "by layer": ExampleDP(0.4, noise=1.0, delta=1e-3, by_layer=True),
    "quantile": ExampleDP(QUANTILE, noise=1.0, delta=1e-3),
    "quantile by layer": ExampleDP(QUANTILE, noise=1.0, delta=1e-3, by_layer=True),
}


@pytest.mark.parametrize("name", CLIPS)
def test_the_engines_clip_alike(name):
    for changes in ({}, {"cohort": 4}):
        chosen = clipping(CLIPS[name], **changes)
        loop, vector = (run(chosen, engine=engine).model for engine in ("loop", "vector"))
        for a, b in zip(loop.values(), vector.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_clip_that_adapts_finds_the_quantile_of_every_client():
    # The step is so small that the gradients stay what they are: the quantile is known.
    target = 0.7
    quantile = Quantile(start=5.0, target=target, speed=0.1)
    chosen = clipping(
        ExampleDP(quantile, noise=0.05, delta=1e-3), batches=Full(), method=FedSGD(lr=1e-6), rounds=100
    )
    fed = Federation(chosen)
    states, ids = fed.client_states(), np.arange(6)
    for t in range(100):
        states, _ = engines.get("vector")(fed, states, {"x": fed.x0}, t, ids)
    batch = fed.batch(0, ids)
    for i, bound in enumerate(states["privacy.clip"].tolist()):
        single = Batch(batch.x[i][:, None], batch.y[i][:, None], torch.ones(batch.y.shape[1], 1))
        norms = fed.gradients(fed.x0, single)[batch.weight[i] > 0].norm(dim=1)
        assert float((norms <= bound).float().mean()) == pytest.approx(target, abs=0.12)


def test_the_count_and_the_gradient_are_one_release_of_the_booked_noise():
    private, run_plan = ExampleDP(QUANTILE, noise=2.0), plan()
    gradient = private.scale(run_plan, 0)  # over the clip and the reach: the multiplier of the gradient alone
    count = private.count_scale(run_plan, 0) * 2  # over the reach: a share moves by half of it
    assert 1 / gradient**2 + 1 / count**2 == pytest.approx(1 / 2.0**2)
    assert private.spent(run_plan, rounds(100)) == ExampleDP(1.0, noise=2.0).spent(run_plan, rounds(100))


def test_a_clip_that_adapts_survives_an_interruption(tmp_path):
    def interrupt(round, metrics):
        if round == 6:
            raise KeyboardInterrupt

    whole = run(clipping(CLIPS["quantile"]))
    with pytest.raises(KeyboardInterrupt):
        run(clipping(CLIPS["quantile"]), out=tmp_path, progress=interrupt)
    resumed = run(clipping(CLIPS["quantile"]), out=tmp_path, resume=True)
    for a, b in zip(whole.model.values(), resumed.model.values(), strict=True):
        assert torch.equal(a, b)


@dataclass(frozen=True)
class Greedy(FedSGD):
    """A method that computes more gradients than it says."""

    def client_step(self, state, x, batch, env):
        return state, env.grad(x, batch) + env.grad(x, batch)


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_a_gradient_that_the_ledger_does_not_count_is_refused(engine):
    with pytest.raises(Invalid, match="asks for gradient 2 on batch 1 of a round, its `steps` says 1"):
        run(clipping(CLIPS["by layer"], method=Greedy(lr=0.1)), engine=engine)


def test_a_clip_is_a_component_that_is_saved_and_named_on_a_command_line():
    chosen = clipping(CLIPS["quantile"])
    assert Experiment.from_json(chosen.to_json()) == chosen
    changed = codec.update(chosen, [("privacy.clip", "Quantile(start=2.0, target=0.5)")])
    assert changed.privacy.clip == Quantile(start=2.0, target=0.5)
    assert codec.update(chosen, [("privacy.clip", "0.5")]).privacy.clip == 0.5
