"""A run that goes on for more rounds than it was begun with: from the checkpoint at the end of the shorter one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from fedsim.check import Invalid
from fedsim.machine.files import write_whole, writing
from fedsim.record import Record, read_manifest
from fedsim.spec import Experiment


@dataclass(frozen=True)
class Shorter:
    """The finished run, in a folder, of an experiment that differs in `rounds` alone."""

    record: Record
    rounds: int

    @classmethod
    def of(cls, experiment: Experiment, folder: Path) -> Shorter:
        """Raises `Invalid` where the folder holds no such run."""
        manifest = read_manifest(folder)
        if manifest is None:
            raise Invalid(f"{folder}: holds no record of a run")
        theirs, ours = dict(manifest["experiment"]), json.loads(experiment.to_json())
        rounds = theirs.pop("rounds", None)
        if ours.pop("rounds") <= (rounds or 0) or theirs != ours:
            raise Invalid(f"{folder}: is not the record of this experiment with fewer rounds")
        attack = experiment.attack
        if attack is not None and attack.rehearse(0, experiment.rounds) is not None:
            raise Invalid(
                f"attack = {type(attack).__name__}: its pilot runs go by how many rounds there are, so a longer run "
                "must begin anew"
            )
        record = Record(folder, manifest["fingerprint"])
        if not record.finished:
            raise Invalid(f"{folder}: that run has not come to its end yet; resume it first")
        return cls(record, rounds)

    def require(self, experiment: Experiment) -> None:
        """Raise `Invalid` where going on would come to something else than a run of all rounds from the start."""
        privacy = experiment.privacy
        if privacy is not None and privacy.epsilon is not None:
            raise Invalid(
                f"{self.record.folder}: its noise was calibrated for {self.rounds} rounds at epsilon = "
                f"{privacy.epsilon:g}, and {experiment.rounds} rounds need more of it: this run must begin anew"
            )
        if not self.record.kept:
            raise Invalid(
                f"{self.record.folder}: the clients' states at its end were not kept: this run must begin anew"
            )

    def hand_over(self, to: Record, evaluate_every: int) -> None:
        """Have the longer run's record begin with what this one holds, which stays as it is."""
        saved = self.record.checkpoint() or {}
        lines = self.record.metrics()
        if lines[-1]["round"] == self.rounds and self.rounds % evaluate_every:
            lines = lines[:-1]  # of the end, which is none any more
        text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        with writing(to.folder):
            write_whole(to.folder / "metrics.jsonl", text)
            if self.record.states.exists():
                shutil.copyfile(self.record.states, to.states)
        to.save({**saved, "metrics_bytes": len(text)})


def shorter(experiment: Experiment, folders: list[Path]) -> Shorter | None:
    """The longest of the runs in these folders that the experiment may go on from; None where none is."""
    found = []
    for folder in folders:
        try:
            found.append(Shorter.of(experiment, folder))
        except Invalid:
            continue
    return max(found, key=lambda each: each.rounds, default=None)
