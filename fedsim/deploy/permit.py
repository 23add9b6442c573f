"""Whether a device's terms allow an answer, and what will have been spent after it."""

from __future__ import annotations

from fedsim.asynchronous import Asynchronous
from fedsim.check import Invalid
from fedsim.deploy.spent import Spent, hiding
from fedsim.deploy.terms import Terms
from fedsim.federation import Federation
from fedsim.flower.order import Order
from fedsim.spec import Experiment


def check(terms: Terms, order: Order) -> None:
    """Raise `Invalid` where an order is not for this device, before its experiment is even looked at."""
    if order.client != terms.client:
        raise Invalid(f"order for client {order.client}: this device is client {terms.client}")
    if terms.fingerprint not in ("any", order.fingerprint):
        raise Invalid(f"experiment {order.fingerprint}: this device agreed to {terms.fingerprint} alone")
    if order.derived and not terms.test_mode:
        raise Invalid(
            "noise derived from the experiment's seed hides nothing: this device has test_mode = false"
        )


def check_kind(terms: Terms, experiment: Experiment) -> None:
    """Raise `Invalid` for an experiment of another kind or size than agreed, before anything is built from it."""
    if experiment.clock is not None:  # asynchronous methods need one
        raise Invalid("clock: simulates seconds, and devices take seconds of their own; allowed is none")
    for name in ("rounds", "clients"):
        asked, most = getattr(experiment, name), getattr(terms, name)
        if asked > most:
            raise Invalid(f"an experiment with {asked} {name}: this device agreed to {most}")


def permit(terms: Terms, order: Order, fed: Federation, spent: Spent) -> Spent:
    """What will have been spent once this order is answered; raises `Invalid` where that is more than agreed."""
    experiment = fed.experiment
    # once answered, it would bar all that come before it; attempts of an asynchronous run end where the terms do
    most = terms.rounds if isinstance(experiment.method, Asynchronous) else experiment.rounds
    if order.round >= most:
        raise Invalid(f"round {order.round}: the experiment has rounds 0 to {most - 1}")
    after = spent.charge(order, fed)
    if terms.client >= experiment.honest and not terms.red_team:
        raise Invalid(f"client {terms.client} would be Byzantine: this device has red_team = false")
    if after.rounds > terms.max_rounds:
        raise Invalid(
            f"{spent.rounds} rounds answered: this device agreed to {terms.max_rounds}, over all runs"
        )
    if order.derived:
        return after
    noise = noise_of(fed, order.round)
    if noise < terms.min_noise:
        raise Invalid(
            f"noise multiplier {noise:.4g} in round {order.round}: this device asks for {terms.min_noise:.4g}"
        )
    _check_budget(terms, fed, after)
    return after


def _check_budget(terms: Terms, fed: Federation, after: Spent) -> None:
    if terms.epsilon is None or terms.delta is None:
        return
    ledger = hiding(fed)
    if ledger is None:
        raise Invalid(
            "an experiment without privacy in its messages: "
            f"this device has a budget of epsilon = {terms.epsilon:g}"
        )
    if ledger.privacy.delta != terms.delta:
        raise Invalid(
            f"an experiment that counts at delta = {ledger.privacy.delta:g}: this device counts at {terms.delta:g}, "
            "and an epsilon at one delta says nothing about that at another; allowed is the same in both"
        )
    epsilon = after.epsilon(terms.delta)
    if epsilon > terms.epsilon * (1 + 1e-9):
        raise Invalid(
            f"this answer would bring epsilon to {epsilon:.4g} at delta = {terms.delta:g}: this device "
            f"agreed to {terms.epsilon:g}, over all runs"
        )


def noise_of(fed: Federation, round: int) -> float:
    """The noise multiplier of a client's message in a round, 0 where it has no noise."""
    ledger = hiding(fed)
    return ledger.multiplier * float(ledger.privacy.factors((round,))[0]) if ledger else 0.0
