"""What a method is, and what it has at hand on a client and on the server."""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from fedsim.check import Component
from fedsim.layout import Layout
from fedsim.messages import Compressor
from fedsim.types import Batch, State


class Env(Protocol):
    """What a client has at hand in a round. The same calls serve one client, x (d,), and n, x (d,) or (n, d).

    told    what the server broadcast, by name: the model, and what else the method `tells`
    layout  the blocks of x
    """

    told: State
    layout: Layout

    @property
    def whole(self) -> bool:
        """Whether the messages of the round travel as they are, by the method's `whole`."""
        ...

    @property
    def round(self) -> int:
        """Raises `Invalid` in an asynchronous run."""
        ...

    def grad(self, x: Tensor, batch: Batch, tau: float = inf) -> Tensor:
        """Gradient (d,) or (n, d) of the batch at x, as a whole clipped to L2 norm tau.

        Before that its examples are clipped one by one, and noise is added, where privacy is example-level.
        """
        ...

    def descend(self, x: Tensor, batch: Batch, lr: float, out: Tensor | None = None) -> Tensor:
        """x - lr * grad(x, batch), (d,) or (n, d); may be written into `out`, which may be x itself."""
        ...

    def noisy(self, message: Tensor) -> Tensor:
        """The message with Gaussian noise where privacy is message-level; otherwise as it is."""
        ...

    def respond(self, signs: Tensor) -> Tensor:
        """Signs, each flipped with the chance of randomized response where privacy is such; otherwise as they are."""
        ...

    def first_gradient(self, tau: float = inf) -> Tensor:
        """`grad(x, batch, tau)` at the x and on the batch, or the first of several, that `client_step` was given.

        The fast way to a gradient that is asked for before any other: engines work it out for many clients at once.
        """
        ...

    def hvp(self, x: Tensor, v: Tensor, batch: Batch) -> Tensor:
        """The Hessian of the batch's loss at x times v, (d,) or (n, d); refused where privacy is example-level."""
        ...

    def loss(self, x: Tensor, batch: Batch) -> Tensor:
        """The batch's loss at x, () or (n,); refused where privacy is example-level."""
        ...

    def uniform(self, count: int) -> Tensor:
        """Numbers in [0, 1), (count,) or (n, count), of each client's own; each call draws further ones."""
        ...

    def common(self, count: int) -> Tensor:
        """Numbers in [0, 1), (count,), the same for all clients of a round and for the server."""
        ...

    def compress(self, message: Tensor) -> Tensor:
        """The message as the server will read it: through the method's `uplink`, once a round."""
        ...

    def buffer(self, name: str) -> Tensor | None:
        """Where the new state `name` may be written, as `out=` of the operation that makes it; None: anywhere."""
        ...


class ServerEnv(Protocol):
    """What the server has at hand at the end of a round; `layout` has the blocks of x."""

    round: int
    layout: Layout

    @property
    def whole(self) -> bool:
        """As on a client."""
        ...

    def uniform(self, count: int) -> Tensor:
        """Numbers in [0, 1), (count,), of the server's own."""
        ...

    def common(self, count: int) -> Tensor:
        """The same numbers (count,) that every client of the round drew as `common`."""
        ...

    def compress(self, by: Compressor, message: Tensor) -> Tensor:
        """C(message) (d,), with random numbers of the server's own."""
        ...


class Method(Component):
    """An algorithm: its client half, over the last axis so that it serves one client and all, and its server half.

    peer       every node keeps a model of its own, x (n, d), and aggregates for itself
    server_memory  the rule sees a row for each of the n clients, whoever takes part
    sends      the entry of the server's state that clients get as x; "x" is what is evaluated
    tells      further entries, which clients get as `env.told`
    linear     `receive`, where a method has its own, is one linear map of every message, and so of their mean
    responds   its message is signs alone, which leave by `env.respond`
    idles      a local step of its `client_step` on a batch that weighs nothing changes nothing, so that a client may do
               fewer than `steps`; to be said by the class that defines `client_step`
    by_examples  where the rule is the mean, a client's message counts by how many examples it has; a field may decide
    """

    peer: ClassVar[bool] = False
    server_memory: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    responds: ClassVar[bool] = False
    idles: ClassVar[bool] = False
    sends: ClassVar[str] = "x"
    tells: ClassVar[tuple[str, ...]] = ()

    @property
    def steps(self) -> int:
        """Batches that a client draws in a round."""
        return 1

    @property
    def gradients(self) -> int:
        """Gradients on each of these batches, at most: at several points, say. The ledger books k of them together."""
        return 1

    @property
    def may_stop(self) -> bool:
        """Whether the class that defines `client_step` says that it `idles`; one that overrides it says so again."""
        owner = next(cls for cls in type(self).__mro__ if "client_step" in vars(cls))
        return bool(vars(owner).get("idles", False))

    @property
    def backprops(self) -> int:
        """Backward passes of a client in a round, a product with a Hessian as one; at most, where it draws them."""
        return self.steps * self.gradients

    def width(self, layout: Layout) -> int:
        """Numbers in a message; `layout` has the blocks of x."""
        return layout.width

    @property
    def uplink(self) -> Compressor | None:
        """How messages are compressed, by `env.compress`; None: they travel as they are, 32 bits a number."""
        return None

    def uplink_in(self, layout: Layout, coin: float) -> Compressor | None:
        """`uplink` where it is another in each round: `coin`, in [0, 1), is the first of the round's common numbers."""
        return self.uplink

    def whole(self, round: int, coin: float) -> bool:
        """Whether the messages of a round travel as they are, `uplink` or not; all know the coin, in [0, 1)."""
        return False

    @property
    def downlink(self) -> Compressor | None:
        """How what the server broadcasts is compressed; None: it travels as it is."""
        return None

    @property
    def by_examples(self) -> bool:
        return False

    @property
    def message_bound(self) -> float | None:
        """L2 bound of a message before noise; None where the method does not clip its messages."""
        return None

    @property
    def message_clip(self) -> float | None:
        """The L2 norm to which a message is clipped last, before any noise: how often that binds is recorded."""
        return self.message_bound

    def client_init(self, x: Tensor) -> State:
        """A client's state at the start, from the initial model x (d,)."""
        return {}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        """One round of a client: the new state and the message (d,).

        Here the gradient, clipped to `message_bound`, and with noise where privacy is message-level. Engines know this
        one: where a mean is all that is wanted they sum over clients before anything is written for each.
        """
        return state, env.noisy(env.first_gradient(self.message_bound or inf))

    def personal(self, state: State, x: Tensor, layout: Layout) -> Tensor:
        """The model that a client of this state uses, from the server's x: (d,) or (n, d); here x itself."""
        return x

    def server_init(self, x: Tensor, n: int) -> State:
        """The server's state; it holds the model under "x"."""
        return {"x": x}

    def receive(
        self, state: State, rows: Tensor, ids: Tensor, *, out: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """The state after the messages of clients `ids`, and the rows that the rule sees.

        What is made of the messages may be written into `out`, which may be `rows` itself.
        """
        return state, rows

    def topology(self, n: int, honest: int, f: int, generator: Generator) -> Tensor:
        """Among peers: whose rows each node has, (n, n) bool, its own always; here all have all."""
        return torch.ones(n, n, dtype=torch.bool)

    @abstractmethod
    def step(self, state: State, aggregate: Tensor, env: ServerEnv) -> State:
        """The server's state after a round: it moves the model by the rule's answer."""
