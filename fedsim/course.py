"""An asynchronous run: messages come one by one, on the clock, and gradients are worked out when one falls due.

A gradient depends on its client's state, its model and its address (client, attempt) alone. So when one is needed that
is not there, those of all who are at work are worked out in one call, each at its own model, and nothing depends on
which ones: all at once, one by one, or again after a checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from fedsim.asynchronous import Asynchronous, Due
from fedsim.attempts import Attempts
from fedsim.engines import Ask
from fedsim.env import AtServer
from fedsim.federation import Federation
from fedsim.machine import interrupts
from fedsim.privacy.ledger import Ledger
from fedsim.round import Seen, Server, require
from fedsim.standing import noted, to_device
from fedsim.states import States
from fedsim.types import Kept, State, View

# numbers of the messages of one call: memory that is used again, see `fedsim.machine.malloc`
AT_ONCE = 2**23 - 2**12
ALIKE = 8  # attempts at one model from which on a call of their own, which reads it once, is worth it
AHEAD = 16  # attempts of a client, at the most, before it is known whether it goes on at its model


@dataclass
class Course:
    """Where an asynchronous run stands between two events. Unlike a `Standing` it changes in place.

    round     updates of the model until now
    seconds   of the last event
    clients   what every client is at work on
    held      the model that each client has
    ready     (state after, message) of attempts (client, number) that are worked out already
    again     messages of each client since it was handed its model
    heard     the last message of each honest client, where the adversary knows it
    kept      what the rule keeps of a table of which one row changes at a time; `known` is whose rows these are
    """

    round: int
    server: Server
    states: States
    clients: Attempts
    held: list[Tensor] | Tensor
    seconds: float = 0.0
    heard: dict[int, Tensor] = field(default_factory=dict)
    kept: State = field(default_factory=dict)
    known: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    written: int = 0
    ready: dict[tuple[int, int], tuple[State, Tensor]] = field(default_factory=dict)
    again: Counter[int] = field(default_factory=Counter)
    torn: bool = False  # within a step
    lazy: bool = True  # False: one by one, for tests
    calls: int = 0  # of an engine, since the run was begun or resumed
    brought: int = 0  # numbers of messages, by calls since `_make_room`

    @classmethod
    def start(
        cls, fed: Federation, first: State, file: Path | None = None, clients: Attempts | None = None
    ) -> Course:
        """Before the first event: every client is handed the initial model; `clients` on the clock by default."""
        server, clients = Server.start(fed), clients or Attempts.none(fed)
        course = cls(0, server, States.start(first, fed.computing, space=fed.space, file=file), clients, [])
        server.state.update({name: fed.space.housed(value) for name, value in server.state.items()})
        course.held = held(fed, [server.x] * fed.experiment.clients)
        for client in range(fed.experiment.clients):
            clients.begin(client, 0.0, 0, server.x, told=True)
        return course

    @classmethod
    def at(cls, fed: Federation, saved: dict[str, Any], states: States, clients: Attempts) -> Course:
        """At a checkpoint; the clients as before they began."""
        found = to_device(fed, saved)
        models = dict(zip(saved["versions"].tolist(), found["models"], strict=True))
        heard = dict(zip(saved["heard ids"].tolist(), found["heard"], strict=True))
        mine = held(fed, [models[version] for version in saved["clients"]["version"].tolist()])
        clients.over = saved["round"] >= fed.experiment.rounds
        clients.restore(saved["clients"], mine)
        state = found["server"]["state"]
        found["server"]["state"] = {name: fed.space.housed(value) for name, value in state.items()}
        server, seconds, written = (
            Server(**found["server"]),
            saved["simulated_seconds"],
            saved["metrics_bytes"],
        )
        kept, known = found["kept"], saved["known"]
        return cls(saved["round"], server, states, clients, mine, seconds, heard, kept, known, written)

    def dump(self) -> dict[str, Any]:
        """The checkpoint, without the clients' states; what is worked out already is worked out again."""
        now, clients = self.server, self.clients
        models = dict(zip(clients.version.tolist(), self.held, strict=True))
        return {
            "round": self.round,
            "server": {
                "state": now.state,
                "previous": now.previous,
                "memory": now.memory,
                "recall": now.recall,
            },
            "metrics_bytes": self.written,
            "simulated_seconds": self.seconds,
            "clients": clients.dump(),
            "versions": torch.tensor(list(models)),
            "models": list(models.values()),
            "heard ids": torch.tensor(list(self.heard), dtype=torch.int64),
            "heard": list(self.heard.values()),
            "kept": self.kept,
            "known": self.known,
        }

    # ------------------------------------------------------------ what a run asks of it
    def goes_on(self, fed: Federation) -> bool:
        """Whether updates are left to make, and a message comes before the clock's horizon."""
        return self.round < fed.experiment.rounds and self.clients.goes_on

    @property
    def ledger(self) -> Ledger | None:
        return self.clients.ledger

    def x(self, fed: Federation) -> Tensor:
        return self.server.x

    @contextmanager
    def whole(self) -> Iterator[list[bool]]:
        """A step and its line of the record: what an interrupt must not cut in two."""
        with interrupts.held() as stop:
            self.torn = True
            yield stop
            self.torn = False

    def at_line(self, written: int) -> Course:
        """The same with so many bytes of metrics."""
        self.written = written
        return self

    def traffic(self, fed: Federation) -> dict[str, int]:
        """Bits that a client has sent and was sent, on average; messages of all, and how much work was dropped."""
        once, n = fed.bits(1), fed.experiment.clients
        sent, told = self.clients.arrivals, self.clients.told
        return {
            "uplink_bits": round(once["uplink_bits"] * sent / n),
            "downlink_bits": round(once["downlink_bits"] * told / n),
            "arrivals": sent,
            "dropped": self.clients.dropped,
        }

    def promised(self, fed: Federation, stopped: bool) -> Ledger | None:
        """The ledger of what is promised; None where the run chose its end by what it saw: nobody knows what a longer
        one would have cost.
        """
        return None if stopped else self.ledger

    def notes(self, fed: Federation, stopped: Sequence[str] = ()) -> list[str]:
        """What a report says of the run's privacy, the statement first, then warnings; and who stopped."""
        ended, out = [], int(self.clients.spent.sum())
        if stopped:
            ended.append(f"stopped after update {self.round} by {', '.join(stopped)}")
        if stopped and self.ledger:
            ended.append(
                f"no epsilon: what came out chose the end ({self.ledger.epsilon:.4g} was spent until then)"
            )
        if out:
            ended.append(f"{out} clients stopped: one more message would exceed stop_at_epsilon")
        return noted(fed, self.promised(fed, bool(stopped)), ended)

    def advance(self, fed: Federation, ask: Ask, stop: list[bool]) -> tuple[Course, Seen | None]:
        """Events until the model moves; None where the run ends, or is to stop, before."""
        before = self.round
        while self.goes_on(fed) and not stop:
            seen = self._event(fed, ask, stop)
            if self.round > before:
                return self, seen
        return self, None

    # ------------------------------------------------------------ one event
    def _event(self, fed: Federation, ask: Ask, stop: Sequence[bool] = ()) -> Seen | None:
        """The next message, or the next return of a client that had gone away; what the rule saw where it moved."""
        clients, method = self.clients, _method(fed)
        event = clients.pop(stop)
        if event is None:
            return None
        self.seconds, client, arrives = event
        if not arrives:
            self._hand(client)
            return None
        row = self._message(fed, ask, client)
        clients.pay(client)
        attack = fed.experiment.attack
        if client >= fed.experiment.honest and attack is not None and attack.forges:
            row = self._forged(fed, ask, client, row)
        state, due = method.arrive(self.server.state, row, client, self.round - int(clients.version[client]))
        self.server, seen = self._moved(fed, state, due)
        clients.over = self.round >= fed.experiment.rounds
        again = method.restart(self.server.state, client, due is not None)
        for other in again:
            if other == client or clients.interrupt(other, self.seconds):
                self._hand(other)
        if client not in again:
            clients.begin(client, self.seconds, int(clients.version[client]), self.held[client], told=False)
        return seen

    def _hand(self, client: int) -> None:
        """Have a client begin anew at the server's model, which it may have already."""
        self.again[client] = 0
        now = int(self.clients.attempt[client])
        for attempt in range(now, now + AHEAD + 1):
            self.ready.pop((client, attempt), None)
        told = self.round != int(self.clients.version[client])
        self.held[client] = self.server.x
        self.clients.begin(client, self.seconds, self.round, self.server.x, told=told)

    def _message(self, fed: Federation, ask: Ask, client: int) -> Tensor:
        """A client's message, by when its state is that after the step."""
        if client >= fed.computing:
            return fed.x0.new_zeros(fed.width)
        state, row = self.clients.brought(client) or self._worked(fed, ask, client)
        self.ready.pop((client, int(self.clients.attempt[client])), None)
        self.again[client] += 1
        ids = np.array([client])
        self.states = self.states.after(ids, {name: value[None] for name, value in state.items()})
        if client < fed.experiment.honest and _listens(fed):
            self.heard[client] = row.clone()
        return row

    def _worked(self, fed: Federation, ask: Ask, client: int) -> tuple[State, Tensor]:
        """The state after a client's attempt, and its message; worked out now where they are not yet."""
        attempt = client, int(self.clients.attempt[client])
        if attempt not in self.ready:
            self._work(fed, ask, attempt)
        return self.ready[attempt]

    def _work(self, fed: Federation, ask: Ask, due: tuple[int, int]) -> None:
        """Work out an attempt, and with it others that are likely to be needed: see `_likely`."""
        self._make_room()
        attempts = np.array(sorted([due, *(self._likely(fed, due) if self.lazy else [])]))
        ids, attempt = attempts.T
        width = fed.experiment.batches.width(
            fed.choice, attempt, ids, fed.sizes[ids], fed.experiment.method.steps
        )
        model, often = np.unique(self.clients.version[ids], return_inverse=True, return_counts=True)[1:]
        alike = np.where(often[model] >= ALIKE, model, -1)
        # batches of one width: padding would change how sums are added up
        for each in np.unique(np.stack([width, alike], 1), axis=0):
            mine = (width == each[0]) & (alike == each[1])
            some, now = ids[mine], attempt[mine]
            told = {fed.experiment.method.sends: _stacked([self.held[c] for c in some.tolist()])}
            states, messages, _ = ask(fed, self.states.of(some), told, now, some)
            self.calls += 1
            self.brought += messages.rows.numel()
            for j, key in enumerate(zip(some.tolist(), now.tolist(), strict=True)):
                self.ready[key] = {name: v[j] for name, v in states.items()}, messages.rows[j]

    def _make_room(self) -> None:
        """Copy what is left of earlier calls of which most is gone, once they have brought as much as a large one."""
        if self.brought <= AT_ONCE:
            return
        self.brought = 0
        left = {key: row.untyped_storage() for key, (_, row) in self.ready.items()}
        alive = Counter(each.data_ptr() for each in left.values())
        for key, storage in left.items():
            state, row = self.ready[key]
            if row.nbytes < storage.nbytes() >= 2 * alive[storage.data_ptr()] * row.nbytes:
                self.ready[key] = {name: value.clone() for name, value in state.items()}, row.clone()

    def _likely(self, fed: Federation, due: tuple[int, int]) -> list[tuple[int, int]]:
        """Attempts that are not worked out yet, of the clients who come next, as many as fit into a call.

        A client that went on at its model, and keeps nothing, is likely to go on as often again: so many of its next
        attempts are among them. Where it is handed another model after all, they are dropped, and nobody has seen them.
        """
        clients, most = self.clients, max(1, AT_ONCE // max(fed.width, fed.x0.numel()))
        next_ones = clients.at_work(fed.computing)
        order = np.lexsort((next_ones, clients.time[next_ones]))[:most]
        found = [(c, int(clients.attempt[c])) for c in next_ones[order].tolist()]
        if not fed.client_state():
            found += [(c, a + k) for c, a in found for k in range(1, 1 + min(self.again[c], AHEAD))]
        return [each for each in found if each not in self.ready and each != due][: most - 1]

    def _moved(self, fed: Federation, state: State, due: Due | None) -> tuple[Server, Seen | None]:
        """Aggregate what is due, and step."""
        server, experiment = self.server, fed.experiment
        if due is None:
            return Server(state, server.previous, server.memory), None
        rows, ids = _in_order(fed, due)
        generator = Generator(fed.device).manual_seed(fed.rule_seed(self.round))
        aggregate = self._answer(fed, rows, ids, due, generator)
        require(fed.rule, aggregate, tuple(rows.shape[1:]), rows)
        state = experiment.method.step(state, aggregate, AtServer(fed, self.round))
        self.round += 1
        seen = Seen(rows, int((ids < experiment.honest).sum()), aggregate)
        return Server(state, aggregate, server.memory), seen

    def _answer(self, fed: Federation, rows: Tensor, ids: Tensor, due: Due, generator: Generator) -> Tensor:
        """The rule's answer; of a table with what it kept of the last one, where the same clients have a row."""
        f, previous = fed.experiment.f_round, self.server.previous
        if len(due.rows) != fed.experiment.clients:
            return fed.rule(rows, f, previous=previous, generator=generator)
        same = torch.equal(ids.cpu(), self.known)
        changed = None if due.changed is None or not same else ids.tolist().index(due.changed)
        kept = Kept(changed, self.kept)
        answer = fed.rule.of_table(rows, f, kept, previous=previous, generator=generator)
        self.kept, self.known = kept.new, ids.cpu()
        return answer

    def _forged(self, fed: Federation, ask: Ask, client: int, row: Tensor) -> Tensor:
        """What a Byzantine client sends: its row of what all of them would send now, of their work under way."""
        experiment, attack = fed.experiment, fed.experiment.attack
        assert attack is not None
        if "honest" in attack.needs and not self.heard:
            return torch.zeros_like(row)  # nobody has sent anything yet that it could be made of
        f, honest = experiment.byzantine, [self.heard[c] for c in sorted(self.heard)]
        own = row.expand(f, -1).clone()
        for other in range(experiment.honest, fed.computing):
            if other != client and self.clients.attempt[other] >= 0:
                own[other - experiment.honest] = self._worked(fed, ask, other)[1]
        attempt = int(self.clients.attempt[client])
        view = View(
            n=len(honest) + f if honest else experiment.clients,
            f=f,
            round=self.round,
            x=self.server.x,
            generator=fed.keys.generator("attack", attempt, client, device=fed.device),
            own=own if "own" in attack.needs else None,
            honest=torch.stack(honest) if honest else None,
            ids=torch.tensor(sorted(self.heard)) if honest else None,
            numbers=fed.width,
        )
        forged, memory = attack.remember(view, self.server.memory)
        require(attack, forged, (f, fed.width), own)
        self.server = Server(self.server.state, self.server.previous, memory)
        return forged[client - experiment.honest]


def held(fed: Federation, models: list[Tensor]) -> list[Tensor] | Tensor:
    """The model of each client: a table (n, d) in a file where memory is short; otherwise equal ones are one."""
    if not fed.space.crowded or fed.device != "cpu":
        return models
    table = fed.space.empty(models[0], len(models), models[0].numel())
    for row, model in zip(table, models, strict=True):
        row.copy_(model)
    return table


def _stacked(models: list[Tensor]) -> Tensor:
    """Models (d,) one above the other; of one and the same a view, which is read once for all."""
    first = models[0]
    if all(model is first for model in models):
        return first.expand(len(models), -1)
    return torch.stack(models)


def _in_order(fed: Federation, due: Due) -> tuple[Tensor, Tensor]:
    """The rows that are due, and the clients whose they are, in order of these."""
    rows, ids = due.rows, due.ids
    if len(rows) == len(ids) and (len(ids) == 1 or bool((ids[1:] >= ids[:-1]).all())):
        return rows, ids
    order = ids.argsort(stable=True)
    place = ids[order] if len(rows) > len(ids) else order
    out = fed.space.empty(rows, len(ids), rows.shape[1])
    return torch.index_select(rows, 0, place, out=out), ids[order]


def _method(fed: Federation) -> Asynchronous:
    method = fed.experiment.method
    assert isinstance(method, Asynchronous)
    return method


def _listens(fed: Federation) -> bool:
    """Whether the adversary makes its messages of honest ones."""
    return fed.experiment.attack is not None and "honest" in fed.experiment.attack.needs
