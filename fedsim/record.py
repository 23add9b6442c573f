"""What a run leaves behind: a folder with manifest.json, metrics.jsonl, checkpoint.pt and, at the end, model.pt.

Until the end the clients' states lie beside them, in clients.bin. Whatever is replaced is replaced whole (written
beside, flushed, renamed), so a run killed at any moment can go on.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fedsim.check import Invalid
from fedsim.machine.files import write_whole, writing
from fedsim.spec import Experiment
from fedsim.version import __version__

Metrics = dict[str, Any]
MEASURED = {"round", "loss", "seconds"}  # in every line of metrics
KEPT = "clients.kept"  # says that clients.bin, where clients keep anything, holds their states at the end
NOTES = "notes.json"
RESULT = "result.json"  # what the run came to, and what its network takes and gives
ANEW = "where its folder is removed, the run begins anew"


@dataclass(frozen=True)
class Record:
    """The folder of one run of the experiment with this fingerprint."""

    folder: Path
    fingerprint: str

    @classmethod
    def open(cls, experiment: Experiment, folder: Path, resume: bool) -> Record:
        """The record of an experiment, begun where there is none; a finished or half-done one needs `resume`.

        Raises `Invalid` where the folder holds another experiment's record, or cannot be written.
        """
        record, manifest = cls(folder, experiment.fingerprint), read_manifest(folder)
        if manifest is not None and manifest["fingerprint"] != experiment.fingerprint:
            raise Invalid(
                f"out = {folder}: holds the record of experiment {manifest['fingerprint']}, not of "
                f"{experiment.fingerprint}; allowed is a new folder, or resuming the same experiment"
            )
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if manifest is None or not resume:
                for name in (
                    "checkpoint.pt",
                    "metrics.jsonl",
                    "model.pt",
                    "clients.bin",
                    KEPT,
                    NOTES,
                    RESULT,
                ):
                    (folder / name).unlink(missing_ok=True)
            if manifest is None:
                write_whole(folder / "manifest.json", json.dumps(_describe(experiment), indent=2).encode())
        return record

    @property
    def states(self) -> Path:
        """Where the clients' states lie, as the checkpoint says."""
        return self.folder / "clients.bin"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: its model is written last."""
        return self.model.exists()

    @property
    def kept(self) -> bool:
        """Whether the clients' states at the end are there, so that a longer run may go on from them."""
        return (self.folder / KEPT).exists()

    @property
    def model(self) -> Path:
        return self.folder / "model.pt"

    def checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, and the metrics cut back to it; without one the run begins anew."""
        path, metrics = self.folder / "checkpoint.pt", self.folder / "metrics.jsonl"
        if not path.exists():
            self.metrics()  # where they are damaged, that is said, and nothing removed
            for stale in (self.model, metrics):
                stale.unlink(missing_ok=True)
            return None
        try:
            saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            fingerprint, size = saved["fingerprint"], saved["metrics_bytes"]
        except Exception as error:
            why = str(error).partition(". ")[0]  # torch goes on with advice that is unsafe to follow
            raise Invalid(f"{path}: not a readable checkpoint ({why}); {ANEW}") from None
        if fingerprint != self.fingerprint:
            raise Invalid(f"{path}: a checkpoint of experiment {fingerprint}, not of {self.fingerprint}")
        with writing(self.folder):
            held = metrics.read_bytes() if metrics.exists() else b""
            if len(held) < size:
                raise Invalid(
                    f"{metrics}: holds {len(held)} of the {size} bytes that the checkpoint beside it counts on; {ANEW}"
                )
            write_whole(metrics, held[:size])
        return saved

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Replace the checkpoint; the first `metrics_bytes` of the metrics belong to it."""
        with writing(self.folder):
            _flush(self.folder / "metrics.jsonl")
            self._save_torch("checkpoint.pt", {**checkpoint, "fingerprint": self.fingerprint})

    def append(self, line: Metrics) -> int:
        """One more line of metrics; returns their bytes with it."""
        with writing(self.folder), (self.folder / "metrics.jsonl").open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            return file.tell()

    def save_notes(self, notes: list[str]) -> None:
        """What is to be said of the run: its privacy first."""
        with writing(self.folder):
            write_whole(self.folder / NOTES, json.dumps(notes, indent=1).encode())

    @property
    def notes(self) -> list[str]:
        """What was said at the end of the run; nothing where it has not come there."""
        try:
            found = json.loads((self.folder / NOTES).read_text())
        except (OSError, ValueError):
            return []
        return [str(note) for note in found] if isinstance(found, list) else []

    def save_result(self, summary: dict[str, Any], signature: dict[str, Any]) -> None:
        """What the run came to, and what its network takes and gives."""
        with writing(self.folder):
            text = json.dumps({"summary": summary, "signature": signature}, indent=1)
            write_whole(self.folder / RESULT, text.encode())

    def result(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same again; raises `Invalid` where it is not there, as in records of earlier versions."""
        path = self.folder / RESULT
        try:
            found = json.loads(path.read_text())
            summary, signature = dict(found["summary"]), dict(found["signature"])
            if not signature.keys() >= {"shape", "dtype", "outputs"}:
                raise KeyError("signature")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Invalid(f"{path}: not the result of a run ({error}); {ANEW}") from None
        return summary, signature

    @property
    def stopped(self) -> bool:
        """Whether a callback ended the run before its last round."""
        return (self.folder / RESULT).exists() and bool(self.result()[0].get("stopped"))

    def reopen(self) -> None:
        """The run goes on from its end: it is at none."""
        with writing(self.folder):
            for path in (self.model, self.folder / RESULT):
                path.unlink(missing_ok=True)

    def load_model(self) -> dict[str, torch.Tensor]:
        """The model at the end; raises `Invalid` where it cannot be read."""
        try:
            found: dict[str, torch.Tensor] = torch.load(self.model, map_location="cpu", weights_only=True)
        except Exception as error:
            why = str(error).partition(". ")[0]
            raise Invalid(f"{self.model}: not a readable model ({why}); {ANEW}") from None
        return found

    def save_model(self, state_dict: dict[str, torch.Tensor], keep: bool = False) -> None:
        """The model at the end; unless a longer run may go on from here (`keep`), clients' states go."""
        with writing(self.folder):
            if keep:
                write_whole(self.folder / KEPT, b"")
            self._save_torch("model.pt", state_dict)
            if not keep:
                self.states.unlink(missing_ok=True)

    def metrics(self) -> list[Metrics]:
        """The lines that are whole; raises `Invalid` where they are no metrics, or a finished run has none."""
        path = self.folder / "metrics.jsonl"
        try:
            text = path.read_text() if path.exists() else ""
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
            if not all(isinstance(line, dict) and line.keys() >= MEASURED for line in lines):
                raise ValueError(f"each line must have {', '.join(sorted(MEASURED))}")
            if self.finished and not lines:
                raise ValueError("no line, and the run is over")
        except (OSError, ValueError) as error:
            raise Invalid(f"{path}: not the metrics of a run ({error}); {ANEW}") from None
        return lines

    def _save_torch(self, name: str, value: object) -> None:
        buffer = BytesIO()
        torch.save(value, buffer)
        write_whole(self.folder / name, buffer.getvalue())


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a record's folder says of its run; None where it holds no record, `Invalid` where that is damaged."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if not (isinstance(manifest["fingerprint"], str) and isinstance(manifest["experiment"], dict)):
            raise TypeError("fingerprint and experiment must be text and a table")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{path}: not the manifest of a run ({error}); {ANEW}") from None
    return manifest


def _flush(path: Path) -> None:
    """Have a file on disk, where there is one."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _describe(experiment: Experiment) -> dict[str, Any]:
    return {
        "format": 1,
        "fingerprint": experiment.fingerprint,
        "experiment": json.loads(experiment.to_json()),
        "versions": {"python": platform.python_version()}
        | {"fedsim": __version__}
        | {name: _version(name) for name in ("torch", "numpy", "opacus", "flwr")},
        "machine": {"system": platform.platform(terse=True), "cores": os.cpu_count()},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
