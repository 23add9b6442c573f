"""What a device agreed to, in a file of its own: no server can talk it into less."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fedsim.check import Chance, Count, Finite, Invalid, Natural, NonNegative
from fedsim.deploy.settings import Settings
from fedsim.deploy.spent import Spent, hiding
from fedsim.federation import Federation
from fedsim.flower.order import Order


@dataclass(frozen=True, kw_only=True)
class Agreement(Settings):
    """The terms of one device, in its `device.toml`; the device counts over all runs, whatever the server says.

    client       the id of this device in every experiment
    data         "partition": this client's part of the experiment's own data set, for trials; otherwise an .npz file
                 of this device with arrays x (m, ...) and y (m,), its path from the device's folder on
    classes      how many classes there are, where `data` is a file
    min_noise    the least noise multiplier (standard deviation over sensitivity) in any round
    max_rounds   the most rounds that it answers, ever
    epsilon      its whole privacy budget, at `delta`, over all runs; "none" where it asks for none
    fingerprint  the one experiment that it takes part in; "any" otherwise
    test_mode    whether it accepts noise derived from the experiment's seed, which hides nothing
    red_team     whether it plays a Byzantine client where an experiment makes it one
    """

    client: Natural
    data: str = "partition"
    classes: Count = 10
    min_noise: NonNegative = 0.0
    max_rounds: Count = 10_000
    epsilon: Finite | None = None
    delta: Chance = 1e-5
    fingerprint: str = "any"
    test_mode: bool = False
    red_team: bool = False

    @classmethod
    def of(cls, folder: Path) -> Agreement:
        """The terms in a device's folder, with the whole path of its data."""
        terms = cls.load(folder / "device.toml")
        return replace(terms, data=str(folder / terms.data)) if terms.own_data else terms

    @property
    def own_data(self) -> bool:
        """Whether the device has data of its own in place of its part of the experiment's."""
        return self.data != "partition"

    @property
    def wide_open(self) -> bool:
        """Whether experiments without noise are answered too, whatever they are and without a budget."""
        return self.min_noise == 0 and self.epsilon is None and self.fingerprint == "any"

    def check(self, order: Order) -> None:
        """Raise `Invalid` where an order is not for this device, before its experiment is even looked at."""
        if order.client != self.client:
            raise Invalid(f"order for client {order.client}: this device is client {self.client}")
        if self.fingerprint not in ("any", order.fingerprint):
            raise Invalid(f"experiment {order.fingerprint}: this device agreed to {self.fingerprint} alone")
        if order.derived and not self.test_mode:
            raise Invalid(
                "noise derived from the experiment's seed hides nothing: this device has test_mode = false"
            )

    def permit(self, order: Order, fed: Federation, spent: Spent) -> Spent:
        """What will have been spent once this order is answered; raises `Invalid` where that is more than agreed."""
        experiment = fed.experiment
        if order.round >= experiment.rounds:  # once answered, it would bar all that come before it
            raise Invalid(f"round {order.round}: the experiment has rounds 0 to {experiment.rounds - 1}")
        after = spent.charge(order, fed)
        if self.client >= experiment.honest and not self.red_team:
            raise Invalid(f"client {self.client} would be Byzantine: this device has red_team = false")
        if after.rounds > self.max_rounds:
            raise Invalid(
                f"{spent.rounds} rounds answered: this device agreed to {self.max_rounds}, over all runs"
            )
        if order.derived:
            return after
        noise = noise_of(fed, order.round)
        if noise < self.min_noise:
            raise Invalid(
                f"noise multiplier {noise:.4g} in round {order.round}: this device asks for {self.min_noise:.4g}"
            )
        if self.epsilon is not None:
            if hiding(fed) is None:
                raise Invalid(
                    "an experiment without privacy in its messages: "
                    f"this device has a budget of epsilon = {self.epsilon:g}"
                )
            epsilon = after.epsilon(self.delta)
            if epsilon > self.epsilon * (1 + 1e-9):
                raise Invalid(
                    f"this answer would bring epsilon to {epsilon:.4g} at delta = {self.delta:g}: this device "
                    f"agreed to {self.epsilon:g}, over all runs"
                )
        return after


def noise_of(fed: Federation, round: int) -> float:
    """The noise multiplier of a client's message in a round, 0 where it has no noise."""
    ledger = hiding(fed)
    return ledger.multiplier * float(ledger.privacy.factors((round,))[0]) if ledger else 0.0
