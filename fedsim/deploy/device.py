"""A client on a device: its own data, its own noise, its own memory and ledger on its own disk."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fedsim.check import Invalid
from fedsim.config.untrusted import experiment_of
from fedsim.deploy import permit
from fedsim.deploy.data import examples
from fedsim.deploy.entropy import normal, uniform
from fedsim.deploy.spent import LEDGER, Spent
from fedsim.deploy.terms import Terms
from fedsim.federation import Federation, Ids
from fedsim.flower.memory import Memory
from fedsim.flower.order import Order
from fedsim.keys import Keys
from fedsim.link import journal
from fedsim.machine.files import write_whole
from fedsim.spec import Experiment
from fedsim.traffic import shapes_told
from fedsim.types import Dataset, Inputs, on_inputs

# Runs whose memories stay on disk; a round of an older one is still answered once, by the ledger.
MEMORIES = 16
TENSORS = 2_000  # of a model's parameters, the most


class DeviceFederation(Federation):
    """The federation as one device sees it: batches and noise come from its own entropy, unless `derived`."""

    def __init__(
        self,
        experiment: Experiment,
        terms: Terms,
        secret: int,
        derived: bool,
        dataset: Dataset | None = None,
    ) -> None:
        self._terms, self._derived = terms, derived
        super().__init__(experiment, dataset=dataset)
        if not derived:
            self.choice = Keys(secret, experiment.clients)

    @property
    def told_shapes(self) -> dict[str, tuple[int, ...]]:
        """Without memory for the tables that a server keeps, which nobody has agreed to."""
        return shapes_told(self.experiment.method, self.x0.to("meta"))

    def normal(self, z: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        return super().normal(z, keys) if self._derived else z.copy_(normal(z.numel()).view_as(z))

    def uniform(self, keys: NDArray[np.uint64], start: int, count: int, dtype: torch.dtype) -> Tensor:
        return super().uniform(keys, start, count, dtype) if self._derived else uniform(count, dtype)[None]

    def _deal(self, dataset: Dataset) -> list[Ids]:
        if not self._terms.own_data:
            return super()._deal(dataset)
        nothing = np.zeros(0, np.int64)
        everything = np.arange(len(dataset.train))
        return [everything if i == self._terms.client else nothing for i in range(self.experiment.clients)]

    def _as_seen(self, x: Inputs) -> Inputs:
        return x if self._terms.own_data else super()._as_seen(x)


class Device:
    """The `Host` of a device, from its folder: device.toml, ledger.json, and a memory for each run.

    The memory, with the answer in it, is written before the ledger, and both before the answer goes out; each is
    replaced whole. A device that dies in between gives the answer that it kept, once that is booked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.terms = folder, Terms.of(folder)
        self._known: tuple[tuple[object, ...], DeviceFederation] | None = None

    @property
    def own_data(self) -> bool:
        return self.terms.own_data

    @property
    def ledger(self) -> Path:
        return self.folder / LEDGER

    def recall(self, order: Order, context: Context) -> Memory:
        permit.check(self.terms, order)
        if (held := self._held(order)) is not None:
            return held
        secret = Spent.of(self.folder).secret(order)
        return Memory(secret=secrets.randbits(63) if secret is None else secret)

    def federation(self, order: Order, memory: Memory) -> Federation:
        key = (order.experiment, order.fingerprint, memory.secret, order.derived)
        if self._known is None or self._known[0] != key:
            self._known = None  # two at a time would take twice the memory
            self._known = key, self._federation(order, memory)
        fed = self._known[1]
        permit.permit(self.terms, order, fed, Spent.of(self.folder))
        return fed

    def keep(self, order: Order, fed: Federation, memory: Memory, context: Context) -> None:
        with Spent.alone(self.ledger):  # of several runs at once none may lose what another has paid
            spent = Spent.of(self.folder)
            if spent.booked(order):
                held = self._held(order)
                if held is None or not held.answers_as(
                    memory
                ):  # a process beside this one, or a memory that is lost
                    raise Invalid(
                        f"round {order.round}: booked in run {order.run} already, and a round is answered once; "
                        "allowed is a later one"
                    )
                return
            after = permit.permit(self.terms, order, fed, spent)
            if not self.ledger.exists():
                # no memory without a ledger: where there is one, it is known to be lost
                spent.save(self.ledger)
            write_whole(self._memory(order), memory.dump())
            after.save(self.ledger)
        self._forget()

    def failed(self, error: Exception) -> None:
        """Log it: what the server learns, that there is no answer, is booked as an answer is."""
        journal.LOG.error("error in a round", exc_info=error, extra={"fields": {}})

    def _federation(self, order: Order, memory: Memory) -> DeviceFederation:
        experiment = experiment_of(order.experiment, frozenset(self.terms.components), self.own_data)
        if experiment.fingerprint != order.fingerprint:
            raise Invalid(f"experiment {experiment.fingerprint}: announced was {order.fingerprint}")
        permit.check_kind(self.terms, experiment)
        dataset = self._data() if self.own_data else experiment.task.data.load()
        _check_parameters(self.terms, experiment, dataset)
        with self._private(self.own_data):
            return DeviceFederation(experiment, self.terms, memory.secret, order.derived, dataset)

    def _data(self) -> Dataset:
        with self._private():
            return examples(self.terms)

    @contextmanager
    def _private(self, own: bool = True) -> Iterator[None]:
        """What goes wrong in the body may tell of the device's data: that is for its owner, not for the server."""
        try:
            yield
        except Exception as error:
            if not own:
                raise
            journal.LOG.error(
                "this experiment cannot be run on this data", exc_info=error, extra={"fields": {}}
            )
            raise Invalid(
                "this device cannot use its data, or not for this experiment; its own log says why"
            ) from None

    def _held(self, order: Order) -> Memory | None:
        """The memory of a run as it is on the disk."""
        path = self._memory(order)
        return Memory.load(path.read_bytes()) if path.exists() else None

    def _memory(self, order: Order) -> Path:
        if not (order.run.isascii() and order.run.isalnum()):
            raise Invalid(f"run = {order.run[:40]!r}: must be letters and digits")
        return self.folder / f"memory-{order.run}.pt"

    def _forget(self) -> None:
        """Remove the oldest memories: a server that begins run after run does not fill the disk."""
        found = sorted(self.folder.glob("memory-*.pt"), key=lambda path: path.stat().st_mtime_ns)
        for path in found[:-MEMORIES]:
            path.unlink()


def _check_parameters(terms: Terms, experiment: Experiment, dataset: Dataset) -> None:
    """Raise `Invalid` for a model with more parameters than agreed, without memory for any of them."""
    task, train, count, tensors = experiment.task, dataset.train, 0, 0
    shape = on_inputs(lambda t: tuple(t.shape[1:]), train.x)

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, tensors
        count, tensors = count + (0 if parameter is None else parameter.numel()), tensors + 1
        if count > terms.parameters or tensors > TENSORS:
            raise Invalid(
                f"a model with {count} parameters or more, in {tensors} tensors: this device agreed to "
                f"{terms.parameters}, in {TENSORS}"
            )

    watch = register_module_parameter_registration_hook(add)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            task.model.build(shape, task.loss.outputs(train, dataset.classes))
    finally:
        watch.remove()
