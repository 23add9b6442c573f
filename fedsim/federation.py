"""An experiment brought to life: data loaded and dealt, model built, noise calibrated; all follows from it alone."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.asynchronous import Asynchronous
from fedsim.check import Invalid
from fedsim.clock import Clock, Load
from fedsim.dealing import deal, require_alike, require_finite, tested
from fedsim.fetched import Steps
from fedsim.gradients import ClientGradients, require_certain
from fedsim.keys import SHARED, Keys, torch_seed, uniform
from fedsim.layout import Layout, norms
from fedsim.machine.mapped import Space
from fedsim.machine.normal import add_normal, normal_
from fedsim.machine.threads import one_thread
from fedsim.method import Method
from fedsim.privacy import CLIP, ExampleDP, MessageDP, Quantile, RandomizedResponse
from fedsim.privacy.base import Privacy
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import Plan, histories
from fedsim.recall import MemoryRule
from fedsim.spec import Experiment
from fedsim.task import Signature
from fedsim.traffic import Traffic
from fedsim.types import Batch, Dataset, Examples, Inputs, Round, Split, State, on_inputs, single

Ids = NDArray[np.int64]


class Federation(Traffic):
    """What the engines and the round work on; nothing in it changes from round to round."""

    @one_thread()
    def __init__(
        self,
        experiment: Experiment,
        device: str = "cpu",
        dataset: Dataset | None = None,
        space: Space | None = None,
    ) -> None:
        self.experiment, self.device = experiment, device
        self.keys = Keys(experiment.seed, experiment.clients)
        self.choice = self.keys  # of batches; a device draws these from a secret of its own
        self.accounted = True  # False where a deployment derives its noise: that hides nothing
        dataset = dataset or experiment.task.data.load()
        for part, some in (("training", dataset.train), ("test", dataset.test)):
            require_alike(part, some)
        require_finite(dataset.train.x)
        self.shards = self._deal(dataset)
        self.sizes = np.array([len(shard) for shard in self.shards], np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        order = torch.from_numpy(np.concatenate(self.shards))
        dealt = dataset.train.part(order)
        self.train = Examples(self._as_seen(dealt.x), dealt.y).to(device)
        self.test, self.about = dataset.test.to(device), tested(dataset, self.shards, experiment.honest)
        self.classes, self.reveals = dataset.classes, dataset.reveals
        self.signature = Signature.of(dataset, experiment.task.loss)
        self.model, x0 = experiment.task.build(dataset, self.keys)
        self.model.to(device)
        self.x0, self.layout = x0.to(device), Layout.of(self.model)
        self.width = experiment.method.width(self.layout.trained)  # of a message
        self.rule = experiment.rule.on(self.layout.trained, self.width)
        self._require_comparable()
        self.loss = experiment.task.loss
        self.gradients = ClientGradients(self.model, loss=self.loss)
        few = self.train.part(slice(0, 4))
        require_certain(self.model, self.x0, Batch(few.x, few.y, self.x0.new_ones(len(few))), self.loss)
        self.computing = _computing(experiment)
        self._require_addresses()
        self.ledger = self._ledger()
        self.space = (space or Space()).beside(self._round_bytes())

    @property
    def example_privacy(self) -> ExampleDP | None:
        privacy = self.experiment.privacy
        return privacy if isinstance(privacy, ExampleDP) else None

    @property
    def message_privacy(self) -> MessageDP | None:
        privacy = self.experiment.privacy
        return privacy if isinstance(privacy, MessageDP) else None

    @cached_property
    def triggered(self) -> Examples | None:
        """The test examples as a backdoor's adversary shows them; None without one."""
        attack = self.experiment.attack
        return None if attack is None else attack.triggered(self.test)

    @property
    def response(self) -> RandomizedResponse | None:
        privacy = self.experiment.privacy
        return privacy if isinstance(privacy, RandomizedResponse) else None

    @property
    def mean_only(self) -> bool:
        """Whether the mean of the messages is all that a server needs of them."""
        method, own = self.experiment.method, type(self.experiment.method).receive is not Method.receive
        clock = self.experiment.clock
        apart = method.peer or method.server_memory or self.experiment.byzantine
        apart = apart or isinstance(method, Asynchronous)
        aside = apart or (clock is not None and clock.late == "carried")
        return self.experiment.rule.averages and not aside and (method.linear or not own)

    # ------------------------------------------------------------ a round
    def weights(self, ids: Ids, examples: Ids | None = None) -> Tensor | None:
        """What rows of clients `ids` count in their mean, (k,), float64, sum 1; None where they count alike.

        examples  how many each has, by what it says itself, 0 where it says nothing; by default as they were dealt
        """
        method = self.experiment.method
        if not (method.by_examples and self.experiment.rule.averages) or method.peer or not len(ids):
            return None
        held = (self.sizes[ids] if examples is None else examples).astype(np.float64)
        held[held == 0] = held[held > 0].mean() if held.any() else 1.0
        return None if (held == held[0]).all() else torch.from_numpy(held / held.sum()).to(self.device)

    def evaluated(self, round: int) -> bool:
        """Whether a round's end is measured."""
        after, every = round + 1, self.experiment.evaluate_every
        return after % every == 0 or after == self.experiment.rounds

    def cohort(self, round: int) -> Ids:
        """The clients that take part, in order."""
        n, k = self.experiment.clients, self.experiment.active
        if k == n:
            return np.arange(n)
        return np.sort(self.keys.numpy("cohort", round).choice(n, k, replace=False))

    def load(self, round: int) -> Load:
        """An attempt of a client, by backward passes and by the bits of its message and of the model."""
        method = self.experiment.method
        bits = self.uplink_bits(round), self.downlink_bits
        return Load(method.backprops, *bits, method.backprops // method.steps)

    def batch(self, round: Round, ids: Ids) -> Batch:
        """The batches of clients `ids`, (k, b, ...) or (k, steps, b, ...), poisoned where an attack does so."""
        experiment, steps = self.experiment, self.experiment.method.steps
        index, weight = experiment.batches.draw(self.choice, round, ids, self.sizes[ids], steps)
        place = torch.from_numpy(self.starts[ids][:, None] + index).to(self.device)
        weights = torch.from_numpy(weight).to(self.device)
        clock = experiment.clock
        if steps > 1 and isinstance(clock, Clock) and clock.work is not None:
            work = self.load(0)  # as much in every round; bits take none of it
            done = torch.from_numpy(clock.done(self.keys, ids, round, work, experiment.honest))
            idle = torch.arange(steps) >= done[:, None]
            weights = (
                weights.unflatten(1, (steps, -1)).masked_fill(idle.to(self.device)[:, :, None], 0).flatten(1)
            )
        if steps == 1:
            batch = self._fetched(place, weights)
        else:
            batch = Steps(self._fetched, *(t.unflatten(1, (steps, -1)) for t in (place, weights)))
        bad = torch.from_numpy(ids >= experiment.honest)
        if experiment.attack is None or not experiment.attack.poisons or not bad.any():
            return batch
        whole = Batch(batch.x, batch.y, batch.weight)

        def put(here: Tensor, poisoned: Tensor) -> Tensor:
            here[bad] = poisoned
            return here

        poisoned = experiment.attack.poison(whole.part(bad), self.classes)
        return Batch(on_inputs(put, whole.x, poisoned.x), put(whole.y, poisoned.y), whole.weight)

    def _fetched(self, place: Tensor, weight: Tensor) -> Batch:
        flat = place.flatten()

        def take(t: Tensor) -> Tensor:
            taken: Tensor = t.index_select(0, flat).unflatten(0, place.shape)
            return taken

        return Batch(on_inputs(take, self.train.x), take(self.train.y), weight)

    def noisy(
        self,
        rows: Tensor,
        purpose: str,
        round: Round,
        ids: Ids,
        call: int = 0,
        scale: Tensor | float = 1.0,
        out: Tensor | None = None,
    ) -> Tensor:
        """`rows` (k, d) of clients `ids` plus the noise of the mechanism, times `scale`, one for all or (k,).

        A single row of several clients is their sum, and gets the noise of all. Raises `Invalid` for a message beyond
        the bound that the noise is made for.
        """
        if purpose == "message" and len(rows) == len(ids):
            self._require_bounded(rows)
        return self.add_gaussian_noise(
            rows, self.deviation(round, ids) * scale, purpose, round, ids, call, out
        )

    def _require_bounded(self, messages: Tensor) -> None:
        """Raise `Invalid` where a method does not clip as it says; not on a GPU, which would have to wait."""
        method = self.experiment.method
        bound = method.message_bound
        if bound is None or messages.device.type != "cpu":
            return
        longest = float(norms(messages).max())
        if not longest <= bound * (1 + 1e-5):
            raise Invalid(
                f"{type(method).__name__}: a message of norm {longest:.6g}, its message_bound says {bound:g}: "
                "the noise is made for no more"
            )

    def add_gaussian_noise(
        self,
        rows: Tensor,
        deviations: Tensor,
        purpose: str,
        round: Round,
        ids: Ids,
        call: int = 0,
        out: Tensor | None = None,
    ) -> Tensor:
        """`rows` (k, w), or their sum, plus normal numbers of deviations (k,), a stream each; `out` may be `rows`."""
        # gradients of a round are counted on, so that all of a purpose have streams of their own
        at = round * self.experiment.method.steps * self.experiment.method.gradients + call
        keys, deviation = self.keys.of(f"{purpose}/0", at, ids), deviations.tolist()
        return add_normal(rows, deviation, keys, self.normal, torch.empty_like(rows) if out is None else out)

    def normal(self, z: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Fill z (k, w), w = whole(w), with standard normal numbers, of k keys; on a device of its own entropy."""
        return normal_(z, [torch.Generator(self.device).manual_seed(torch_seed(key)) for key in keys])

    def uniform(self, keys: NDArray[np.uint64], start: int, count: int, dtype: torch.dtype) -> Tensor:
        """Numbers in [0, 1), (k, count), of clients' own; on a device from its own entropy."""
        return uniform(keys, start, count, self.device, dtype)

    def published(self, aggregate: Tensor, rows: int, round: int) -> Tensor:
        """What a server makes known of the aggregate of so many rows: with noise where privacy is central."""
        experiment, ledger = self.experiment, self.ledger
        if ledger is None or ledger.privacy.level != "central":
            return aggregate
        bound = experiment.method.message_bound
        moved = bound and experiment.rule.sensitivity(bound, rows, min(experiment.f_total, rows - 1))
        assert moved is not None  # the experiment was checked
        deviation = aggregate.new_tensor([ledger.privacy.scale(ledger.plan, round) * moved])
        return self.add_gaussian_noise(aggregate[None], deviation, "central", round, np.array([SHARED]))[0]

    def rule_seed(self, round: int) -> int:
        """What a random rule draws from in a round."""
        return torch_seed(self.keys.of("rule", round)[0])

    def regularise(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient with that of (l2 / 2) ||x||^2 added."""
        l2 = self.experiment.task.l2
        return gradient.add_(x, alpha=l2) if l2 else gradient

    # ------------------------------------------------------------ set-up
    @staticmethod
    def scheduled(round: Round) -> int:
        """The round that schedules go by; where clients are at attempts of their own there are none."""
        return round if isinstance(round, int) else 0

    def _deal(self, dataset: Dataset) -> list[Ids]:
        return deal(self.experiment, dataset, self.keys)

    def _as_seen(self, x: Inputs) -> Inputs:
        """The training inputs, client by client, after the shift of features that a split may bring."""
        split, owners = self.experiment.split, int((self.sizes > 0).sum())
        if type(split).shift is Split.shift:
            return x
        parts = single(x, type(split).__name__).split(self.sizes[:owners].tolist())
        return torch.cat(
            [split.shift(part, i, owners, self.keys.numpy("shift", 0, i)) for i, part in enumerate(parts)]
        )

    def client_state(self) -> State:
        """A client's state before its first round."""
        first = self.experiment.method.client_init(self.x0)
        privacy = self.example_privacy
        if privacy and isinstance(privacy.clip, Quantile):
            first |= {CLIP: self.x0.new_tensor(privacy.clip.start)}
        return first

    def client_states(self) -> State:
        """Those of all clients that ever compute, stacked."""
        first = self.client_state()
        return {name: value.expand(self.computing, *value.shape).clone() for name, value in first.items()}

    def _round_bytes(self) -> int:
        """What the matrices of a round take: messages, states before and after, and what the server keeps of each."""
        method, row = self.experiment.method, self.width * self.x0.element_size()
        states = sum(value.nbytes for value in self.client_state().values())
        if isinstance(
            method, Asynchronous
        ):  # its state, a row for each client, and the model that each one has
            tables = method.server_init(self.x0.to("meta"), self.experiment.clients)
            return sum(value.nbytes for value in tables.values()) + self.experiment.clients * self.x0.nbytes
        kept = self.experiment.clients * row if method.server_memory or method.peer else 0
        rule = self.experiment.rule
        if isinstance(rule, MemoryRule):
            own = rule.own(self.x0.new_zeros(self.width))
            kept += self.experiment.clients * sum(value.nbytes for value in own.values())
        return self.experiment.active * (2 * states + (0 if self.mean_only else row)) + kept

    def _ledger(self) -> Ledger | None:
        """The ledger before the first round, with the noise calibrated; None without privacy."""
        experiment = self.experiment
        if experiment.privacy is None:
            return None
        plan = self._plan(experiment.privacy)
        experiment.privacy.require(plan, experiment.rounds, self._moved(experiment.privacy))
        return Ledger.open(experiment.privacy, plan)

    def _moved(self, privacy: Privacy) -> float:
        """The least sensitivity of a release, of a client or of the server, over the bound of its norm."""
        experiment, held = self.experiment, self.sizes[self.sizes > 0]
        if privacy.level == "central":
            rows = experiment.active
            moved = experiment.rule.sensitivity(1.0, rows, min(experiment.f_total, rows - 1))
            assert moved is not None  # the experiment was checked
            return moved
        bound = None if experiment.method.message_bound is None else 1.0
        return float(
            (privacy.client_sensitivity(experiment.batches, held, bound) * privacy.sensitivity(0)).min()
        )

    def _require_comparable(self) -> None:
        """Raise `Invalid` where a rule compares messages with moves of the model, and these differ in width."""
        rule, method = self.experiment.rule, type(self.experiment.method).__name__
        if isinstance(rule, MemoryRule) and rule.of_moves and self.width != self.x0.numel():
            raise Invalid(
                f"rule = {type(rule).__name__}: compares messages with moves of the model, of {self.x0.numel()} "
                f"numbers; those of {method} have {self.width}: choose another rule or method"
            )

    def _require_addresses(self) -> None:
        """Raise `Invalid` where noise would repeat: a generator takes 32 bits of what names a draw (`Keys.of`)."""
        method = self.experiment.method
        draws = self.experiment.rounds * method.steps * method.gradients * self.experiment.clients
        if self.experiment.privacy is not None and draws > 2**32:
            raise Invalid(
                f"clients = {self.experiment.clients} and rounds = {self.experiment.rounds}: {draws:.3g} draws of "
                f"noise, of which two would be the same; allowed are {2**32:.3g}"
            )

    def _plan(self, privacy: Privacy) -> Plan:
        """Who takes part in which rounds, and how many examples clients hold."""
        experiment, h, held = self.experiment, self.experiment.honest, self.sizes[self.sizes > 0]
        secret = not experiment.method.client_init(self.x0)
        paid = [privacy.payers(self.cohort(round), h, secret) for round in range(experiment.rounds)]
        return Plan(
            rounds=histories(paid, h, privacy.counts_rounds(experiment.batches)),
            steps=experiment.method.steps,
            gradients=experiment.method.gradients,
            batches=experiment.batches,
            smallest=int(held.min()),
            clients=h,
            active=min(1.0, experiment.active / h),  # Byzantine clients know that they were not drawn
            secret=secret,
            parameters=self.width,
            others=experiment.batches.unlike(held),
        )

    def deviation(self, round: Round, ids: Ids) -> Tensor:
        """Standard deviation of the noise of clients `ids` (k,): multiplier times sensitivity, over the clip."""
        assert self.ledger is not None
        privacy, plan = self.ledger.privacy, self.ledger.plan
        reach = privacy.client_sensitivity(
            plan.batches, self.sizes[ids], self.experiment.method.message_bound
        )
        return torch.from_numpy(privacy.scale(plan, self.scheduled(round)) * reach).float().to(self.device)


def _computing(experiment: Experiment) -> int:
    """How many clients, from id 0 on, ever compute: Byzantine ones only where their own rows matter."""
    attack = experiment.attack
    return experiment.honest if attack is not None and not attack.works_on_data else experiment.clients
