"""The nouns of a federation, and what each promises to the others.

n clients, f of them Byzantine (the last f ids), d parameters; rows (n, d) float32, in client-id order.
Components are frozen dataclasses with pure methods: state goes in and comes out as a dict of tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.func import functional_call

from fedsim.check import Component, Invalid
from fedsim.layout import Layout

State = dict[str, Tensor]
Round = int | NDArray[np.int64]  # of all clients, or the attempt (k,) that each of k is at
Knowledge = Literal["own", "honest", "rule"]


def at(round: Round, clients: slice | int) -> Any:
    """The round of some of k clients, or of one."""
    return round if isinstance(round, int) else round[clients]


# ---------------------------------------------------------------- data and model
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]  # several: a model is called with them all


def on_inputs(f: Callable[..., Any], *inputs: Any) -> Any:
    """f of one `Inputs` or more, tensor by tensor, in the form of the first."""
    first = inputs[0]
    if isinstance(first, dict):
        return {name: f(*(each[name] for each in inputs)) for name in first}
    if isinstance(first, tuple):
        return tuple(f(*parts) for parts in zip(*inputs, strict=True))
    return f(*inputs)


def forward(model: nn.Module, parameters: dict[str, Tensor], x: Inputs) -> Tensor:
    """What the model puts out for inputs x, with these of its parameters: model(x), model(*x) or model(**x)."""
    args = x if isinstance(x, tuple) else () if isinstance(x, dict) else (x,)
    named = x if isinstance(x, dict) else {}
    out: Tensor = functional_call(model, parameters, args, named) if parameters else model(*args, **named)
    return out


def single(x: Inputs, who: str) -> Tensor:
    """The one tensor that inputs are; raises `Invalid` where they are several."""
    if not isinstance(x, Tensor):
        raise Invalid(f"{who} takes inputs of one tensor; the data set has {len(x)}")
    return x


@dataclass(frozen=True)
class Examples:
    """Inputs x (N, ...), one tensor or several, and labels y (N, ...): int64, float32 where numbers are to be met."""

    x: Inputs
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def part(self, some: slice | Tensor) -> Examples:
        """Some of them."""
        return Examples(on_inputs(lambda t: t[some], self.x), self.y[some])

    def to(self, device: str) -> Examples:
        return Examples(on_inputs(lambda t: t.to(device), self.x), self.y.to(device))


@dataclass(frozen=True)
class Dataset:
    """A loaded data set, resident as whole tensors.

    classes  labels are below it; 0 where there are no classes
    groups, test_groups  (N,), a number for the natural owner of each training and each test example
    reveals  what the shapes of inputs and outputs tell of all rows, which no privacy accounts for
    """

    train: Examples
    test: Examples
    classes: int
    groups: Tensor | None = None
    test_groups: Tensor | None = None
    reveals: tuple[str, ...] = field(default=(), kw_only=True)


class Data(Component):
    """A source of examples. `load` raises `Invalid` where the files are missing.

    held_out  the test part is none, but put aside from the training part, to choose by
    """

    held_out: ClassVar[bool] = False

    @abstractmethod
    def load(self) -> Dataset: ...


class Model(Component):
    """A network without batch statistics (group norm, never batch norm)."""

    @abstractmethod
    def build(self, shape: Any, classes: int) -> nn.Module:
        """For inputs of a shape (a tuple or dict of shapes where they are several) and so many outputs."""


class Loss(Component):
    """What an example costs, from the model's outputs and the labels."""

    @abstractmethod
    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The losses (b,) of b examples, from outputs (b, ...) and labels (b, ...)."""

    def gradient(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Of each loss with respect to the example's outputs, (b, ...)."""
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            return torch.autograd.grad(self(outputs, y).sum(), outputs)[0]

    def outputs(self, examples: Examples, classes: int) -> int:
        """How many outputs a model needs for these examples."""
        return classes

    def require(self, y: Tensor, classes: int) -> None:
        """Raise `Invalid` for labels of another kind than this loss is of."""

    def predicted(self, outputs: Tensor) -> Tensor | None:
        """The labels that outputs stand for; None where labels are no classes."""
        return None


class Split(Component):
    """How training examples are dealt: one index array a client, every client non-empty."""

    @abstractmethod
    def deal(self, dataset: Dataset, n: int, rng: np.random.Generator) -> list[np.ndarray]: ...

    def shift(self, x: Tensor, client: int, n: int, rng: np.random.Generator) -> Tensor:
        """The training inputs x (k, ...) of client `client` of n as it sees them; applied once, after dealing."""
        return x


@dataclass(frozen=True)
class Batch:
    """Examples of one client (b, ...) or of n (n, b, ...); a gradient is sum_j weight_j * grad_j, padding weighs 0.

    Where a round has several local steps, their batches: (steps, b, ...) or (n, steps, b, ...).
    """

    x: Inputs
    y: Tensor
    weight: Tensor
    step: int = 0  # which batch of the round it is

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """f of every tensor."""
        return replace(self, x=on_inputs(f, self.x), y=f(self.y), weight=f(self.weight))

    def part(self, clients: slice | int | Tensor) -> Batch:
        """The batches of some of n clients, or that of one."""
        return self.map(lambda t: t[clients])

    def each(self) -> Iterator[Batch]:
        """The batch of each of n clients."""
        return (self.part(i) for i in range(len(self.weight)))

    def first(self, count: int) -> Batch:
        """Its first examples, `count` at most, whose weights then have the sum that all had; of one step."""
        axis = self.weight.dim() - 1
        few = self.map(lambda t: t.narrow(axis, 0, min(count, t.shape[axis])))
        had, has = (b.weight.sum(axis, keepdim=True) for b in (self, few))
        return replace(few, weight=few.weight * torch.where(has > 0, had / has, 0))

    def split(self, steps: int) -> Iterator[Batch]:
        """The batch of each of so many local steps."""
        if steps == 1:
            yield self
        else:
            axis = self.weight.dim() - 2
            yield from (replace(self.map(lambda t, i=i: t.select(axis, i)), step=i) for i in range(steps))  # type: ignore[misc]


# ---------------------------------------------------------------- aggregation
@dataclass
class Kept:
    """What a rule keeps of a table from one answer to the next, by name; checkpoints hold it.

    changed   the one row that is another than at the last answer; None: any may be
    old, new  what was kept then, which may be written over; what is to be kept now
    """

    changed: int | None = None
    old: State = field(default_factory=dict)
    new: State = field(default_factory=dict)

    def of(self, name: str, *shape: int) -> Tensor | None:
        """What was kept, where it is of that shape and one row has changed."""
        found = self.old.get(name)
        return None if self.changed is None or found is None or found.shape != shape else found


class Rule(Component):
    """Robust aggregation, rows (n, d) -> (d,). Rows with NaN or Inf never move the answer.

    averages  the answer is the mean of the rows, so that they need not be kept
    """

    averages: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self, rows: Tensor, f: int = 0, *, previous: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Aggregate; `previous` (d,) is the last answer (None at first: zero), `generator` feeds random rules."""

    def of_table(
        self, rows: Tensor, f: int, kept: Kept, *, previous: Tensor | None, generator: Generator | None
    ) -> Tensor:
        """The answer where it is asked of one table again and again; `kept` is what it knows from the last time."""
        return self(rows, f, previous=previous, generator=generator)

    def on(self, layout: Layout, width: int) -> Rule:
        """The rule where the layers of messages of so many numbers are known; `layout` has those of x."""
        return self

    def each(self, rows: Tensor, f: int, topology: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The answers (n, d) of n nodes, of which node i has the rows j with topology[i, j]: (n, n) bool."""
        return torch.stack([self(rows[has], f, generator=generator) for has in topology])

    @abstractmethod
    def max_f(self, n: int) -> int:
        """The largest f that the rule is defined for among n rows."""

    def weighted(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Where the rule `averages`: the mean (d,) of rows that count by `weights` (n,); broken rows are left out."""
        mean = weighted_mean(rows, weights)
        if isfinite(mean.detach().sum()):
            return mean
        whole = rows.isfinite().all(1)
        return weighted_mean(rows[whole], weights[whole]) if whole.any() else rows.new_zeros(rows.shape[1])

    def sensitivity(self, bound: float, n: int, f: int) -> float | None:
        """How far the answer moves at most when one of n rows, of norm at most `bound`, is another; None: not known."""
        return None

    def require(self, n: int, f: int) -> None:
        """Raise `Invalid` where f of n rows are more than the rule can take."""
        if not 0 <= f <= self.max_f(n):
            most = self.max_f(n)
            allowed = f"from 0 to {most}" if most >= 0 else "nothing: too few rows"
            raise Invalid(f"{type(self).__name__}: f = {f} with n = {n}: allowed is {allowed}")


class Mixer(Component):
    """Pre-aggregation, rows (n, d) -> (m, d)."""

    @abstractmethod
    def __call__(self, rows: Tensor, f: int = 0, *, generator: Generator | None = None) -> Tensor: ...

    @abstractmethod
    def max_f(self, n: int) -> int:
        """The largest f that the mixer is defined for among n rows."""

    def count(self, n: int) -> int:
        """m, the number of rows that come out."""
        return n


def weighted_mean(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """sum_i w_i rows_i / sum_i w_i, (d,), of rows (n, d) that count by weights (n,), or alike."""
    return rows.mean(0) if weights is None else (weights / weights.sum()).to(rows) @ rows


# ---------------------------------------------------------------- attack
@dataclass(frozen=True)
class Target:
    """The server as an adversary with the knowledge "rule" sees it: forged rows (f, d) to the aggregate (d,)."""

    rule: Rule
    f: int
    previous: Tensor | None
    receive: Callable[[Tensor], Tensor]  # forged rows (f, d) -> what the rule would see
    seed: int
    honest: int  # so many rows of what the rule sees, the first ones, are honest
    topology: Tensor | None = None  # among peers: whose rows each node has
    weights: Tensor | None = None  # (n',), how much each of the rows counts, where they do not count alike
    recall: Callable[[Tensor, Generator], Tensor] | None = (
        None  # of a rule that remembers: rows -> the answer
    )

    def __call__(self, forged: Tensor) -> Tensor:
        """The aggregate; among peers the mean of the honest nodes' answers."""
        if self.topology is not None:
            generator = Generator(forged.device).manual_seed(self.seed)
            models = self.rule.each(self.receive(forged), self.f, self.topology, generator=generator)
            return models[: self.honest].mean(0)
        return self.aggregate(self.receive(forged))

    def aggregate(self, rows: Tensor) -> Tensor:
        """The aggregate (d,) of the rows (n', d) that the rule sees; not among peers."""
        if self.weights is not None:
            return self.rule.weighted(rows, self.weights)
        generator = Generator(rows.device).manual_seed(self.seed)
        if self.recall is not None:
            return self.recall(rows, generator)
        return self.rule(rows, self.f, previous=self.previous, generator=generator)

    def honest_mean(self, rows: Tensor) -> Tensor:
        """The mean (d,) of the honest ones of these rows, as they count."""
        h = self.honest
        return weighted_mean(rows[:h], None if self.weights is None else self.weights[:h])


@dataclass(frozen=True)
class View:
    """What an adversary knows in a round; a field that it was not granted is None."""

    n: int  # clients in the round
    f: int  # rows to forge
    round: int
    x: Tensor  # the broadcast model
    generator: Generator
    own: Tensor | None = None  # (f, d), what the Byzantine clients would honestly have sent
    honest: Tensor | None = None  # (n - f, d)
    target: Target | None = None
    ids: Tensor | None = None  # (n - f,) int64, whose the honest rows are, where clients have numbers
    numbers: int | None = None  # in a row, where not as many as in x

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.x.shape[-1] if self.numbers is None else self.numbers


@dataclass(frozen=True)
class Pilot:
    """What an adversary wants to try out: its `members`, of which each stage (rounds, how many go on) leaves fewer."""

    members: tuple[Attack, ...]
    stages: tuple[tuple[int, int], ...]


class Attack(Component):
    """Forges messages, or poisons the data of Byzantine clients; the base does neither."""

    @property
    def needs(self) -> frozenset[Knowledge]:
        """What the attack must be granted; a field may decide it."""
        return frozenset({"own"})

    @property
    def poisons(self) -> bool:
        return type(self).poison is not Attack.poison

    @property
    def forges(self) -> bool:
        """Whether what it sends is another message than its clients' own."""
        base = Attack
        return type(self).forge is not base.forge or type(self).remember is not base.remember

    @property
    def works_on_data(self) -> bool:
        """Whether Byzantine clients compute on data of their own; the others' work is left out."""
        return self.poisons or "own" in self.needs

    def forge(self, view: View) -> Tensor:
        """The rows (f, d) that the Byzantine clients send."""
        assert view.own is not None
        return view.own

    def remember(self, view: View, memory: State) -> tuple[Tensor, State]:
        """`forge` of an attack that keeps something from round to round, with its memory before and after.

        Rows of the view are to be copied: the server writes over them.
        """
        return self.forge(view), memory

    def rehearse(self, round: int, rounds: int) -> Pilot | None:
        """What is to be tried out before this round of so many; the most damaging member then is the attack."""
        return None

    def member(self, place: int) -> Attack:
        """The attack at this place among the members of a pilot."""
        return self

    def triggered(self, test: Examples) -> Examples | None:
        """Test examples as the adversary would show them, with the labels that it wants them told; None: it wants none.

        The accuracy on these is in the record as the attack's success, beside that on the others.
        """
        return None

    def poison(self, batch: Batch, classes: int) -> Batch:
        """The batch that Byzantine clients train on, of one client or of several."""
        return batch
