"""What a device insists on, in a file of its own: no server can talk it into less. Light, as the front reads it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from fedsim.check import Chance, Count, Finite, Invalid, Natural, NonNegative
from fedsim.deploy.settings import Settings

Value = str | int | float | bool
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Terms(Settings):
    """The terms of one device, in its `device.toml`; the device counts over all runs, whatever the server says.

    client       the id of this device in every experiment
    app          the ClientApp that answers, as module:app; it is installed here
    data         "partition": this client's part of the experiment's own data set, for trials; otherwise a file of this
                 device (.npz, .csv or .parquet, its path from the device's folder on), or module:function, installed
    components   components of one's own, as module:name, that an experiment may name; they are installed here
    classes      how many classes there are, where `data` is the device's own; 0 where labels are numbers to be met
    epsilon      its whole privacy budget at `delta`, over all runs; "none" for both where it asks for none
    delta        experiments count at this delta, or are refused
    min_noise    the least noise multiplier (standard deviation over sensitivity) in any round
    max_rounds   the most rounds that it answers, ever
    fingerprint  the one experiment that it takes part in; "any" otherwise
    test_mode    whether it accepts noise derived from the experiment's seed, which hides nothing
    red_team     whether it plays a Byzantine client where an experiment makes it one
    seconds      for an answer, bytes of a message or an answer, GiB of memory for the app's process: the most;
                 memory = 0 for no limit
    rounds       of an experiment, its clients, the parameters of its model: the most
    node_config  what the app finds in `context.node_config`, and in `context.run_config`
    """

    client: Natural
    epsilon: Finite | None
    delta: Chance | None
    app: str = "fedsim.deploy.app:client"
    data: str = "partition"
    components: list[str] = field(default_factory=list)
    classes: Natural = 10
    min_noise: NonNegative = 0.0
    max_rounds: Count = 10_000
    fingerprint: str = "any"
    test_mode: bool = False
    red_team: bool = False
    seconds: Finite = 600.0
    bytes: Count = 1 << 28
    memory: NonNegative = 16.0
    rounds: Count = 10_000
    clients: Count = 10_000
    parameters: Count = 100_000_000
    node_config: dict[str, Value] = field(default_factory=dict)
    run_config: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epsilon is None) != (self.delta is None):
            raise Invalid(
                "epsilon and delta: must both be numbers, or both none: one says nothing without the other"
            )

    @classmethod
    def of(cls, folder: Path) -> Terms:
        """The terms in a device's folder, with the whole path of its data."""
        terms = cls.load(folder / "device.toml")
        return (
            replace(terms, data=str(folder / terms.data))
            if terms.own_data and ":" not in terms.data
            else terms
        )

    @property
    def own_data(self) -> bool:
        """Whether the device has data of its own in place of its part of the experiment's."""
        return self.data != "partition"

    @property
    def wide_open(self) -> bool:
        """Whether experiments without noise are answered too, whatever they are and without a budget."""
        return self.min_noise == 0 and self.epsilon is None and self.fingerprint == "any"
