"""Clients' states in memory and on disk: what goes in comes out, absent clients cost nothing, a crash loses no row."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_record import PRIVATE, frames_match, stop_at

from fedsim import Invalid, run
from fedsim.machine.mapped import Space
from fedsim.states import RowFile, States
from fedsim.types import State

FIRST: State = {"v": torch.arange(3.0), "on": torch.tensor(True), "k": torch.zeros(2, 2, dtype=torch.int64)}
ROW = 3 * 4 + 1 + 4 * 8  # bytes


def gib(rows: float) -> float:
    return rows * ROW / 2**30


def fresh(seed: int, count: int) -> State:
    g = torch.Generator().manual_seed(seed)
    shapes = {name: (count, *value.shape) for name, value in FIRST.items()}
    return {
        "v": torch.randn(shapes["v"], generator=g),
        "on": torch.rand(shapes["on"], generator=g) < 0.5,
        "k": torch.randint(-9, 9, shapes["k"], generator=g),
    }


def same(ours: State, truth: dict[int, State], ids: np.ndarray) -> None:
    for name, first in FIRST.items():
        expected = torch.stack([truth.get(client, FIRST)[name] for client in ids.tolist()])
        assert ours[name].dtype == first.dtype
        assert torch.equal(ours[name], expected)


IDS = st.sets(st.integers(0, 7), min_size=1).map(lambda ids: np.array(sorted(ids)))
STEPS = st.lists(
    st.tuples(st.sampled_from(["round", "round", "set aside", "save", "crash"]), IDS), min_size=1, max_size=25
)


@given(STEPS, st.sampled_from([0, 2, 5, 100]))
@settings(max_examples=60)
def test_rows_come_back_as_they_went_in_and_a_crash_goes_back_to_the_last_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, np.ndarray]], room: int
) -> None:
    """Beside a plain dict. "crash": all that was written since the checkpoint is on disk already, the table is not."""
    folder = tmp_path_factory.mktemp("states")
    file, count = folder / "a.bin", 0
    states, truth = States.start(FIRST, 8, space=Space(gib(room)), file=file), dict[int, State]()
    table: dict[str, Any] | None = None
    then = dict[int, State]()
    for t, (what, ids) in enumerate(steps):
        if what == "save":
            with states.saving() as rows:
                table, then = rows, dict(truth)
        elif what == "crash":
            states.close()
            count += 1
            if table is not None and file.exists():
                shutil.copy(file, folder / f"{count}.bin")
            file = folder / f"{count}.bin"
            states, truth = States.start(FIRST, 8, space=Space(gib(room)), file=file, saved=table), dict(then)
        else:
            same(states.of(ids), truth, ids)
            if what == "round":
                rows = fresh(t, len(ids))
                states = states.after(ids, rows)
                truth |= {
                    client: {name: value[j] for name, value in rows.items()}
                    for j, client in enumerate(ids.tolist())
                }
    same(states.of(np.arange(8)), truth, np.arange(8))
    states.close()


def test_absent_clients_cost_nothing(tmp_path: Path) -> None:
    """A billion of them: anything that is there for each would not fit, or not end."""
    far = np.array([5, 10**8, 10**9 - 1])
    states = States.start(FIRST, 10**9, space=Space(gib(2)), file=tmp_path / "a.bin")
    for t in range(3):
        states = states.after(far, fresh(t, 3))
        states.of(far[:1])
    with states.saving():
        pass
    truth = {client: {name: v[j] for name, v in fresh(2, 3).items()} for j, client in enumerate(far.tolist())}
    same(states.of(far), truth, far)
    assert (tmp_path / "a.bin").stat().st_size == 3 * ROW
    states.close()


def test_slots_that_no_checkpoint_counts_on_are_used_again(tmp_path: Path) -> None:
    ids, states = np.arange(4), States.start(FIRST, 4, space=Space(0), file=tmp_path / "a.bin")
    for t in range(20):
        states = states.after(ids, fresh(t, 4))
        with states.saving():
            pass
    assert (tmp_path / "a.bin").stat().st_size <= 2 * 4 * ROW
    states.close()


@pytest.mark.parametrize("memory", [0, 1])
def test_nobody_has_no_rows(tmp_path: Path, memory: float) -> None:
    """A cohort may hold no client that computes."""
    states, nobody = (
        States.start(FIRST, 4, space=Space(memory), file=tmp_path / "a.bin"),
        np.zeros(0, np.int64),
    )
    for _ in range(2):
        same_shape = {name: (0, *value.shape) for name, value in FIRST.items()}
        none = states.of(nobody)
        assert {name: tuple(value.shape) for name, value in none.items()} == same_shape
        states = states.after(nobody, none).after(np.arange(2), fresh(0, 2))
    states.close()


def test_without_a_state_there_is_no_file(tmp_path: Path) -> None:
    states = States.start({}, 5, space=Space(0), file=tmp_path / "a.bin").after(np.arange(3), {})
    assert states.of(np.arange(5)) == {}
    with states.saving() as table:
        assert len(table["ids"]) == 0
    assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("damage", ["gone", "short", "other"])
def test_a_file_that_lacks_rows_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.bin"
    states = States.start(FIRST, 4, space=Space(0), file=file).after(np.arange(4), fresh(0, 4))
    with states.saving() as table:
        pass
    states.close()
    if damage == "gone":
        file.unlink()
    if damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    first = {"v": torch.zeros(5)} if damage == "other" else FIRST
    with pytest.raises(Invalid, match=r"a\.bin: does not hold the clients' states"):
        States.start(first, 4, file=file, saved=table)


# ---------------------------------------------------------------- in a run
@pytest.mark.parametrize("engine", ["loop", "vector"])
@pytest.mark.parametrize("memory", [0.0, 1e-6])
def test_where_the_states_lie_changes_nothing(engine: str, memory: float) -> None:
    """At 1e-6 GiB some rows are in memory and some in the file."""
    whole, spilled = run(PRIVATE, engine=engine), run(PRIVATE, engine=engine, memory=memory)
    frames_match(whole.frame, spilled.frame)
    assert all(torch.equal(value, spilled.model[name]) for name, value in whole.model.items())


@pytest.mark.parametrize("memory", [0.0, 1e-6])
def test_a_spilled_run_that_was_stopped_twice_resumes_to_the_bit(tmp_path: Path, memory: float) -> None:
    whole = run(PRIVATE)
    for at in (4, 9):
        with pytest.raises(KeyboardInterrupt):
            run(PRIVATE, out=tmp_path, resume=True, progress=stop_at(at), memory=memory)
    assert (tmp_path / "clients.bin").stat().st_size > 0
    rest = run(PRIVATE, out=tmp_path, resume=True, memory=memory)
    frames_match(whole.frame, rest.frame)
    assert all(torch.equal(value, rest.model[name]) for name, value in whole.model.items())
    assert (tmp_path / "clients.bin").exists()  # a longer run may go on from them


def test_a_full_disk_is_told_and_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(PRIVATE, out=tmp_path, progress=stop_at(6), memory=0)
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("os.pwritev", full)
        with pytest.raises(Invalid, match="No space left on device"):
            run(PRIVATE, out=tmp_path, resume=True, memory=0)
        patch.setattr("os.pwritev", lambda *_: 1)  # the first byte of a row still went in
        with pytest.raises(Invalid, match="no space left for clients' states"):
            run(PRIVATE, out=tmp_path, resume=True, memory=0)
    frames_match(run(PRIVATE).frame, run(PRIVATE, out=tmp_path, resume=True, memory=0).frame)


def test_a_row_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "a.bin", 4, None)
    file.claim(3)
    file.write(3, [torch.ones(1)])
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(Invalid, match="ends before the state of client 3"):
        file.read(3, [torch.empty(1)])
    file.close()


def test_a_manifest_does_not_say_where_states_lay(tmp_path: Path) -> None:
    """Memory is the machine's business, not the experiment's: the record is the same."""
    run(PRIVATE, out=tmp_path / "a", memory=0)
    run(PRIVATE, out=tmp_path / "b")
    a, b = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert a == b
