"""The matrix of versions goes on where it was stopped: what was run is not run again, what was not is tried anew."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import matrix
import pytest


def test_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[str, str]] = []

    def tested(binary: Path, flower: str, tests: list[str]) -> str:
        ran.append((str(binary), flower))
        return "3 passed in 1.0s"

    monkeypatch.setattr(matrix, "newest", {"flwr": "1.42.0", "torch": "2.15.0"}.get)
    monkeypatch.setattr(matrix, "interpreter", lambda version: None if version == "3.13" else "python")
    monkeypatch.setattr(matrix, "no_build", lambda python, torch: "" if torch == "2.13.0" else "no build")
    monkeypatch.setattr(matrix, "environment", Path)
    monkeypatch.setattr(matrix, "tested", tested)
    first = list(matrix.cells(["a"], {}))
    assert len(first) == 27
    assert len(ran) == 6  # two Pythons, one torch, three Flowers
    assert not any(row.failed for row in first)
    done = [row for row in first if "passed" in row.result][:4]
    file = tmp_path / "done"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in (matrix._head(["a"]), *map(asdict, done))))
    assert matrix.kept(file, ["other"]) == {}
    assert matrix.kept(tmp_path / "missing", ["a"]) == {}
    ran.clear()
    assert list(matrix.cells(["a"], matrix.kept(file, ["a"]))) == first
    assert [flower for _, flower in ran] == ["1.39.0", "1.42.0"]


def test_a_failure_is_told_from_what_was_not_run() -> None:
    for result, failed in (("3 passed", False), ("1 failed, 3 passed", True), ("error: exit code 4", True)):
        assert matrix.Cell("3.11", "1.39.0", "2.13.0", result).failed is failed
    assert not matrix.Cell("3.11", "1.39.0", "2.13.0", "not run: no build").failed
