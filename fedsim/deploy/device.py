"""A client on a device: its own data, its own noise, its own memory and ledger on its own disk."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context
from numpy.typing import NDArray
from torch import Tensor

from fedsim.check import Invalid
from fedsim.deploy.agreement import Agreement
from fedsim.deploy.entropy import normal, uniform
from fedsim.deploy.spent import Spent
from fedsim.federation import Federation, Ids
from fedsim.flower.memory import Memory
from fedsim.flower.order import Order
from fedsim.keys import Keys
from fedsim.machine.files import write_whole
from fedsim.spec import Experiment
from fedsim.types import Dataset, Examples, Inputs


class DeviceFederation(Federation):
    """The federation as one device sees it: batches and noise come from its own entropy, unless `derived`."""

    def __init__(self, experiment: Experiment, own: Agreement, secret: int, derived: bool) -> None:
        self._own, self._derived = own, derived
        super().__init__(experiment, dataset=examples(own) if own.own_data else None)
        if not derived:
            self.choice = Keys(secret, experiment.clients)

    def normal(self, z: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        return super().normal(z, keys) if self._derived else z.copy_(normal(z.numel()).view_as(z))

    def uniform(self, keys: NDArray[np.uint64], start: int, count: int) -> Tensor:
        return super().uniform(keys, start, count) if self._derived else uniform(count)[None]

    def _deal(self, dataset: Dataset) -> list[Ids]:
        if not self._own.own_data:
            return super()._deal(dataset)
        nothing = np.zeros(0, np.int64)
        everything = np.arange(len(dataset.train))
        return [everything if i == self._own.client else nothing for i in range(self.experiment.clients)]

    def _as_seen(self, x: Inputs) -> Inputs:
        return x if self._own.own_data else super()._as_seen(x)


class Device:
    """The `Host` of a device, from its folder: device.toml, ledger.json, and a memory for each run.

    The ledger is written before the memory, and both before an answer goes out; each is replaced whole. A device that
    dies in between has paid for an answer that nobody got, and gives none to that round.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.own = folder, Agreement.of(folder)

    @property
    def own_data(self) -> bool:
        return self.own.own_data

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.json"

    def recall(self, order: Order, context: Context) -> Memory:
        self.own.check(order)
        path = self._memory(order)
        if path.exists():
            return Memory.load(path.read_bytes())
        secret = Spent.load(self.ledger).secret(order)
        return Memory(secret=secrets.randbits(63) if secret is None else secret)

    def federation(self, order: Order, memory: Memory) -> Federation:
        experiment = Experiment.from_json(order.experiment)
        if experiment.fingerprint != order.fingerprint:
            raise Invalid(f"experiment {experiment.fingerprint}: announced was {order.fingerprint}")
        fed = DeviceFederation(experiment, self.own, memory.secret, order.derived)
        self.own.permit(order, fed, Spent.load(self.ledger))
        return fed

    def keep(self, order: Order, fed: Federation, memory: Memory, context: Context) -> None:
        with Spent.alone(self.ledger):  # of several runs at once none may lose what another has paid
            spent = Spent.load(self.ledger)
            if spent.booked(order):  # by a process beside this one, or with a memory that is lost
                raise Invalid(
                    f"round {order.round}: booked in run {order.run} already, and a round is answered once; "
                    "allowed is a later one"
                )
            self.own.permit(order, fed, spent).save(self.ledger)
        write_whole(self._memory(order), memory.dump())

    def _memory(self, order: Order) -> Path:
        if not order.run.isalnum():
            raise Invalid(f"run = {order.run[:40]!r}: must be letters and digits")
        return self.folder / f"memory-{order.run}.pt"


def examples(own: Agreement) -> Dataset:
    """The examples of a device; raises `Invalid` where its file does not hold them."""
    try:
        with Path(own.data).open("rb") as file, np.load(file, allow_pickle=False) as held:
            x, y = torch.tensor(held["x"], dtype=torch.float32), torch.tensor(held["y"], dtype=torch.int64)
    except Exception as error:  # NumPy has many for a file that is none of its own
        raise Invalid(f"data = {own.data}: not an .npz file with arrays x and y ({error})") from None
    if x.ndim < 2 or x.shape[:1] != y.shape or not len(y) or int(y.min()) < 0 or int(y.max()) >= own.classes:
        raise Invalid(
            f"data = {own.data}: inputs {tuple(x.shape)}, labels {tuple(y.shape)}: must be x (m, ...) and y (m,), "
            f"m at least one, labels from 0 to {own.classes - 1} (classes = {own.classes})"
        )
    broken = int((~x.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise Invalid(
            f"data = {own.data}: {broken} of {len(x)} examples with NaN or Inf: all must be finite, since no clip "
            "bounds what such an example does to a message"
        )
    return Dataset(Examples(x, y), Examples(x[:0], y[:0]), own.classes)
