"""What goes wrong around a device: lost files, deaths in between, servers that ask again; in this process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from time import sleep
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from test_device import Site, asking, same, terms
from test_messages import small

from fedsim.check import Invalid
from fedsim.deploy import device
from fedsim.deploy.spent import Spent
from fedsim.flower.memory import Memory, Pending
from fedsim.flower.order import Order
from fedsim.runner import run


def test_a_device_of_which_nothing_came_is_in_the_notes_once(tmp_path: Path) -> None:
    site, e = Site(tmp_path), small()
    for i in (1, 2):
        terms(i, min_noise=9.0).save(site.folder(i) / "device.toml")
    terms(3, max_rounds=2).save(site.folder(3) / "device.toml")  # answers twice
    result, aside = site.run(e, **{"test-mode": False})
    assert len(aside) == 4 + 4 + 2
    (note,) = [note for note in result.notes if "set aside" in note]
    assert "device 1, 2: " in note
    assert "noise multiplier 0.3 in round 0: this device asks for 9" in note


def test_a_damaged_ledger_answers_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (site.folder(2) / "ledger.json").write_text("{ half")
    _, aside = site.run(small())
    assert "ledger is not readable (JSONDecodeError), so nothing more is answered" in aside[0]
    assert str(tmp_path) not in aside[0]


def test_a_ledger_that_is_gone_answers_nothing(tmp_path: Path) -> None:
    """A file system that lost it: what the device has spent is not known, though a new ledger would have room."""
    site, e = Site(tmp_path, clients=1, test_mode=False, epsilon=50.0, delta=1e-4), small(clients=1, f=0)
    ask = asking(site, e)
    assert len(ask(0, -1)[0]) == 1
    (site.folder(0) / "ledger.json").unlink()
    for _ in range(2):
        rows, refused = ask(1, -1)
        assert (len(rows), "privacy ledger is gone" in refused[0]) == (0, True)
    assert not (site.folder(0) / "ledger.json").exists()


def test_of_runs_at_once_each_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose answers are written down at the same moment: none overwrites what another has paid."""
    site, real, e = Site(tmp_path, clients=1, epsilon=50.0, delta=1e-4), Spent.load, small()
    host, all_here = device.Device(site.folder(0)), Barrier(4)

    def pay(run: str) -> None:
        order = Order(
            experiment=e.to_json(),
            fingerprint=e.fingerprint,
            run=run,
            client=0,
            round=0,
            accepted=-1,
            derived=False,
        )
        memory = Memory(secret=1)
        fed = host.federation(order, memory)
        all_here.wait()
        host.keep(order, fed, memory, Context(0, 0, {}, RecordDict(), {}))

    def slow(path: Path) -> Spent:
        found = real(path)
        sleep(0.05)
        return found

    monkeypatch.setattr(device.Spent, "load", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(pay, ["a", "b", "c", "d"]))
    assert site.spent(0).rounds == 4


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_device_that_dies_at_a_write_gives_its_answer_when_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Before its empty ledger, its memory, the entry, or after all: one message in all, and it is booked once."""
    site = Site(tmp_path, clients=1, test_mode=False)
    ask = asking(site, small(clients=1, f=0))
    seen, kept = [], []

    def until_killed(write: Any) -> Any:
        def replaced(*arguments: Any) -> None:
            if len(seen) == writes:
                raise OSError("killed")
            seen.append(1)
            write(*arguments)

        return replaced

    with monkeypatch.context() as patch:
        patch.setattr(device, "write_whole", until_killed(device.write_whole))
        patch.setattr(Spent, "save", until_killed(Spent.save))
        patch.setattr(device.Device, "_forget", until_killed(lambda _: None))
        assert "killed" in ask(0, -1)[1][0]
    path = site.folder(0) / "memory-again.pt"
    assert path.exists() == (writes > 1)
    if path.exists():
        pending = Memory.load(path.read_bytes()).pending
        assert pending is not None
        kept.append(pending.row)
    assert site.spent(0).rounds == (writes > 2)
    (row,), _ = ask(0, -1)
    assert all(torch.equal(row, each) for each in kept)
    assert torch.equal(ask(0, -1)[0][0], row)
    assert site.spent(0).rounds == 1


def test_an_answer_that_waits_unbooked_is_given_by_one_process(tmp_path: Path) -> None:
    """Of two processes one has what a dead one kept, and the other a message of its own: one of them goes out."""
    e, site = small(), Site(tmp_path, test_mode=False)
    host = device.Device(site.folder(0))
    order = Order(
        experiment=e.to_json(),
        fingerprint=e.fingerprint,
        run="a",
        client=0,
        round=0,
        accepted=-1,
        derived=False,
    )
    context = Context(0, 0, {}, RecordDict(), {})
    fed = host.federation(order, Memory(secret=1))
    kept, other = (
        Memory(secret=1, pending=Pending(0, "q", {}, torch.full((3,), value))) for value in (1.0, 2.0)
    )
    Spent().save(site.folder(0) / "ledger.json")
    device.write_whole(host._memory(order), kept.dump())
    host.keep(order, fed, other, context)
    with pytest.raises(Invalid, match="booked in run a already"):
        host.keep(order, fed, kept, context)
    host.keep(order, fed, other, context)
    assert site.spent(0).rounds == 1


class Killed(BaseException):
    """The end of a server's process."""


@pytest.mark.parametrize("before_saving", [False, True])
def test_a_server_that_is_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_saving: bool
) -> None:
    """After its checkpoint, or with the devices' answers not yet in it: the same model as undisturbed."""
    e, site = small(rounds=6), Site(tmp_path)
    from fedsim.record import Record

    real, saves = Record.save, []

    def save(self: Record, checkpoint: dict[str, Any]) -> None:
        saves.append(1)
        if len(saves) == 3 and before_saving:
            raise Killed
        real(self, checkpoint)
        if len(saves) == 3:
            raise Killed

    monkeypatch.setattr(Record, "save", save)
    with pytest.raises(Killed):
        site.run(e)
    monkeypatch.setattr(Record, "save", real)
    result, aside = site.run(e, resume=True)
    assert not aside
    assert same(result, run(e, engine="loop", device="cpu"))
    assert len(result.frame) == 6
    assert site.spent(0).rounds == 6


def test_asked_again_a_device_sends_the_same_noise(tmp_path: Path) -> None:
    """In normal mode a second draw would cost privacy; what was sent once is sent again."""
    site = Site(tmp_path)
    ask = asking(site, small())
    assert torch.equal(ask(0, -1)[0], ask(0, -1)[0])
    assert site.spent(0).rounds == 1


def test_a_round_is_answered_once_whatever_the_server_says_it_took_in(tmp_path: Path) -> None:
    """Fresh noise for a round that was answered could be averaged away, and was paid for once."""
    site = Site(tmp_path, clients=1)
    ask = asking(site, small(clients=1, f=0))
    first, _ = ask(0, -1)
    for _ in range(3):
        rows, refused = ask(0, 0)
        assert (len(rows), "answers a round once" in refused[0]) == (0, True)
    assert torch.equal(ask(0, -1)[0], first)  # nothing was taken in after all: what was sent is sent again
    assert len(ask(1, 0)[0]) == 1
    assert "answers a round once" in ask(0, 1)[1][0]
    assert site.spent(0).rounds == 2


def test_a_round_that_is_booked_is_not_answered_anew(tmp_path: Path) -> None:
    """A device whose memory is gone, or that is asked twice at a time, still has its ledger."""
    site = Site(tmp_path, clients=1)
    ask = asking(site, small(clients=1, f=0))
    ask(0, -1)
    (site.folder(0) / "memory-again.pt").unlink()
    before = site.spent(0)
    assert "booked in run again already" in ask(0, -1)[1][0]
    assert site.spent(0) == before
    assert len(ask(1, -1)[0]) == 1


def test_a_round_that_the_experiment_does_not_have_bars_none_that_it_has(tmp_path: Path) -> None:
    site = Site(tmp_path, clients=1)
    ask = asking(site, small(clients=1, f=0))
    assert "the experiment has rounds 0 to 3" in ask(4, -1)[1][0]
    assert len(ask(0, -1)[0]) == 1


def test_a_memory_that_is_lost_takes_no_secret_with_it(tmp_path: Path) -> None:
    """A new one would let an example come twice in an epoch, which the ledger counts once."""
    e, site = small(), Site(tmp_path, test_mode=False)
    host = device.Device(site.folder(0))

    def asked(round: int) -> Order:
        return Order(
            experiment=e.to_json(),
            fingerprint=e.fingerprint,
            run="a",
            client=0,
            round=round,
            accepted=-1,
            derived=False,
        )

    context = Context(0, 0, {}, RecordDict(), {})
    memory = host.recall(asked(0), context)
    host.keep(asked(0), host.federation(asked(0), memory), memory, context)
    (site.folder(0) / "memory-a.pt").unlink()
    assert host.recall(asked(1), context).secret == memory.secret
