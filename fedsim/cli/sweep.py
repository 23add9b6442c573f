"""What the command sweep does."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from fedsim.check import Invalid
from fedsim.cli.board import Board
from fedsim.experiments.load import framed, recorded
from fedsim.experiments.resolve import resolve_study
from fedsim.experiments.sweep.cluster import Cluster
from fedsim.experiments.sweep.run import Outcome, Sweep
from fedsim.experiments.sweep.workers import processes
from fedsim.machine.files import writing

FRAME = "frame.csv"


def sweep_command(
    what: str,
    changes: Sequence[str],
    over: Sequence[str],
    workers: int | None,
    ray_address: str | None,
    engine: str,
    device: str,
    out: Path,
    *,
    reduced: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Run what is missing of a study, and write the frame of all that there is; a summary."""
    study = resolve_study(what, changes, over, reduced)
    folder = out / Path(what.replace(":", "-")).stem
    if reduced:
        folder = folder.with_name(f"{folder.name}-reduced")
    cluster = Cluster(ray_address) if ray_address else None
    with Board(quiet) as board:
        sweep = Sweep(
            folder,
            workers or (cluster.cores if cluster else None),
            engine,
            device,
            _command(what, changes, over, out, reduced),
            cluster or processes,
            board,
        )
        outcome = sweep(study)
    frame = write_frame(folder)
    if not quiet:
        _print(outcome)
    failures = [dataclasses.asdict(failure) for failure in outcome.failures]
    facts = {"cells": outcome.cells, "made": outcome.made, "found": outcome.found, "failures": failures}
    return {"out": str(folder), **facts, "frame": str(frame) if frame else None}


def write_frame(folder: Path) -> Path | None:
    """The frame of a folder's records as CSV, and as Parquet where pandas can; None where there are no records.

    Damaged ones are left out: the sweep has named them.
    """
    try:
        frame = framed(folder, recorded(folder, skip=lambda error: None))
    except Invalid:
        return None
    path = folder / FRAME
    with writing(folder), suppress(ImportError):  # without the extra "parquet": the CSV holds the same
        frame.to_csv(path, index=False)
        _plain(frame).to_parquet(path.with_suffix(".parquet"), index=False)
    return path


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that mix numbers with words (a step size here, a schedule there) as text."""
    mixed = [c for c in frame if frame[c].dtype == object and frame[c].dropna().map(type).nunique() > 1]
    return frame.assign(**{str(c): frame[c].map(str, na_action="ignore") for c in mixed})


def _command(what: str, changes: Sequence[str], over: Sequence[str], out: Path, reduced: bool) -> str:
    words = ["fedsim", "sweep", what]
    words += [word for change in changes for word in ("--set", change)]
    words += [word for axis in over for word in ("--over", axis)]
    words += ["--reduced"] if reduced else []
    words += ["--out", str(out)] if out != Path("sweeps") else []
    return shlex.join(words)


def _print(outcome: Outcome) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for failure in outcome.failures:
        console.print(f"failed   {failure}")
    console.print(
        f"{outcome.cells} cells: {outcome.made} runs made, {outcome.found} there already, "
        f"{len(outcome.failures)} failed\nrecords  {outcome.folder}\nreport   fedsim report {outcome.folder}"
    )
