"""Matrices of a round in files: the same numbers, memory that stays small, a disk that may be full."""

from __future__ import annotations

import errno
import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_record import PRIVATE, frames_match

from fedsim import Invalid, run
from fedsim.federation import Federation
from fedsim.machine.mapped import Space, _files, ahead
from fedsim.strategies import NNM, Chain, Median

NONE = torch.empty(0)


def test_a_round_that_fits_leaves_the_rest_and_one_that_does_not_leaves_all() -> None:
    space = Space(2.0)
    assert space.beside(2**29).left == 1.5
    assert space.beside(3 * 2**30).left == 2.0
    space.beside(2**29).empty(NONE, 3, 5)
    assert not _files


def test_matrices_of_a_crowded_round_lie_in_files_and_are_gone_with_their_last_view(tmp_path: Path) -> None:
    space = Space(0.0, tmp_path)
    rows = space.empty(NONE, 3, 5)
    assert len(_files) == 1
    view = rows.normal_()[1:]
    expected = view.clone()
    del rows
    assert torch.equal(view, expected)
    assert space.empty(torch.tensor([True]), 4).dtype == torch.bool
    assert space.empty(NONE, 0, 5).shape == (0, 5)
    del view
    gc.collect()
    assert not _files
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [1, 7, 40])
def test_rules_read_ahead_in_files_and_answer_the_same(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.machine.mapped.AHEAD", 2**14)
    rows = torch.randn(n, 50_001, generator=torch.Generator().manual_seed(0))
    filed = Space(0.0).empty(NONE, *rows.shape).copy_(rows)
    blocks = [slice(start, min(start + 999, 50_001)) for start in range(0, 50_001, 999)]
    assert list(ahead(filed[n // 2 :], blocks)) == blocks
    assert list(ahead(filed[:1].expand(5, -1), blocks)) == blocks
    for rule in (Median(), Chain(NNM(), Median())):
        assert torch.equal(rule(filed, n // 5), rule(rows, n // 5))


@pytest.mark.parametrize("engine", ["loop", "vector"])
def test_where_matrices_lie_changes_no_bit(engine: str, tmp_path: Path) -> None:
    here, there = run(PRIVATE, engine=engine), run(PRIVATE, engine=engine, memory=0, out=tmp_path)
    frames_match(here.frame, there.frame)
    assert all(torch.equal(value, there.model[name]) for name, value in here.model.items())
    assert Federation(PRIVATE).space.taken > 0


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(Invalid, match=rf"{tmp_path}: no room for 0\.0 GiB of clients' rows .*No space left"):
        Space(0.0, tmp_path).empty(NONE, 5)


MEASURED = """
import json
from fedsim.machine.mapped import Space
from fedsim.strategies import Median
import torch

def taken():
    status = open("/proc/self/status").read().split()
    return int(status[status.index("RssAnon:") + 1]) / 1024

before, most = taken(), 0
rows = Space(0.1).empty(torch.empty(0), 2000, 60_000)  # 458 MB
for part in rows.split(20):
    part.normal_()
    most = max(most, taken())
answer = Median()(rows, 100)
print(json.dumps({"taken": max(most, taken()) - before, "median": float(answer.abs().mean())}))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not say what memory is taken"
)
def test_rows_beyond_the_budget_take_no_memory_of_the_process() -> None:
    out = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True).stdout
    line = json.loads(out)
    assert line["taken"] < 100
    assert 0.02 < line["median"] < 0.025  # of 2,000 normal numbers: 1.2533 / 2000^0.5 * (2 / pi)^0.5 = 0.0224
