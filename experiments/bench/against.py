"""Other simulators beside fedsim: an environment for each, and a process that runs rounds when told to."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Invalid, nearest
from fedsim.federation import Federation
from fedsim.types import single

Pins = tuple[str, ...]
SCRIPTS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Peer:
    """`pins`: what its environment holds beside this one's torch; where there is none it runs in this environment."""

    pins: Pins
    modes: tuple[str, ...] = ("",)


PEERS = {
    "pfl": Peer(("pfl==0.6.0",)),
    "flower": Peer(("flwr[simulation]==1.41.0", "opacus==1.6.0")),
    "byzfl": Peer(("byzfl==0.0.11",)),
    "opacus": Peer((), ("hooks", "ghost")),
}
LINKS = {
    "nvflare": Peer(("nvflare==2.9.0",))
}  # for `fedsim bench devices`: they send messages, and do not train
CLOCKS = {"flgo": Peer(("flgo==0.4.4",))}  # for `fedsim bench events`: they have a virtual clock
ALL = ChainMap(PEERS, LINKS, CLOCKS)


def known(name: str, among: Mapping[str, Peer] = PEERS) -> Peer:
    """The peer of that name; raises `Invalid`."""
    if name not in among:
        raise Invalid(f"peer = {name!r}: unknown; {nearest(name, among)}")
    return among[name]


def install(name: str, folder: Path) -> None:
    """Make the environment of a peer, folder/name, by pip, with this environment's version of torch."""
    if not (pins := known(name, ALL).pins):
        return
    place = folder / name
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    wanted = (f"torch=={version('torch')}", *pins)
    if subprocess.run([_python(place), *pip, *wanted], check=False).returncode:
        raise Invalid(f"peer = {name!r}: pip could not install {', '.join(pins)} into {place}")


def python(name: str, folder: Path, among: Mapping[str, Peer] = ALL) -> Path:
    """The interpreter that runs a peer; raises `Invalid` where its environment has not been made."""
    path = _python(folder / name) if known(name, among).pins else Path(sys.executable)
    if not path.exists():
        raise Invalid(
            f"against = {name!r}: not installed in {folder}; `fedsim bench peers {name} --into {folder}`"
        )
    return path


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def hand_over(fed: Federation, rounds: int, folder: Path) -> None:
    """Write what a peer needs to run the first `rounds` rounds: experiment, data, batches, network."""
    experiment, steps = fed.experiment, fed.experiment.method.steps
    chosen = []
    for round in range(rounds):
        ids = fed.cohort(round)
        ids = ids[ids < fed.computing]
        index, weight = experiment.batches.draw(fed.choice, round, ids, fed.sizes[ids], steps)
        if not (weight == weight[0, 0]).all():
            raise Invalid(
                "against: peers need batches of one size; choose Fixed, and clients with enough data"
            )
        chosen.append(fed.starts[ids, None] + index)
    np.save(folder / "batches.npy", np.stack(chosen))
    np.save(folder / "x.npy", single(fed.train.x, "against").cpu().numpy())
    np.save(folder / "y.npy", fed.train.y.cpu().numpy())
    torch.save(fed.model.cpu(), folder / "model.pt")
    fed.model.to(fed.device)
    facts = {
        "experiment": json.loads(experiment.to_json()),
        "level": experiment.privacy and experiment.privacy.level,
        "deviation": _deviation(fed),
        "steps": steps,
        "kept": list(fed.client_state()),
        "threads": torch.get_num_threads(),
        "device": fed.device,
    }
    (folder / "task.json").write_text(json.dumps(facts))


def _deviation(fed: Federation) -> float:
    """Standard deviation of the noise on a number that a client sends; 0 without privacy."""
    if fed.experiment.privacy is None:
        return 0.0
    own = float(fed.deviation(0, np.zeros(1, np.int64))[0])
    return own * fed.example_privacy.bound(0) if fed.example_privacy else own


class Process:
    """A peer's script at work; `left_out` says why there is nothing to measure.

    It is told `folder`, `system` and `words`. It may take `limit` seconds in all: then it is asked for no more rounds,
    and `cut` says so.
    """

    def __init__(
        self,
        script: Path,
        interpreter: Path,
        folder: Path,
        system: str,
        limit: float = inf,
        pins: Pins = (),
        words: Sequence[str] = (),
    ) -> None:
        self.system, self.folder, self.left_out = system, folder, ""
        self.limit, self.left, self.pins, self.cut = limit, limit, pins, False
        threads = str(torch.get_num_threads())
        own = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}  # set by fedsim
        self.log = folder / f"{system}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [interpreter, script, folder, system, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={**own, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                start_new_session=True,
            )

    def turn(self, rounds: int) -> list[tuple[float, float]]:
        """Run so many rounds: the seconds of each, and of the floor right after it; none where it is left out."""
        assert self.process.stdin is not None
        done: list[tuple[float, float]] = []
        for _ in range(rounds):  # one at a time, so that what a slow peer has done counts
            if self.left_out or self.cut:
                break
            with suppress(BrokenPipeError):  # what it said before it ended is still to be read
                print(1, file=self.process.stdin, flush=True)
            done += [(seconds, floor) for seconds, floor in self._answer().get("rounds", ())]
        return done

    def finish(self) -> tuple[dict[str, Any], Tensor | None]:
        """After the last round: what the peer says about itself, and its parameters (d,).

        None where it is left out, or has not come to the last round.
        """
        facts = {} if self.left_out or self.cut else self._answer()
        if self.left_out:
            return {"left_out": self.left_out}, None
        if self.cut:
            pins = (pin.split("==") for pin in self.pins)
            versions = {name.partition("[")[0]: number for name, number in pins}
            return {"versions": versions, "cut": f"it had {self.limit:g} s"}, None
        return facts, torch.from_numpy(np.load(self.folder / f"{self.system}.npy"))

    def close(self) -> None:
        """End it, with all the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(BrokenPipeError):
            self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        began = time.perf_counter()
        ready = select.select(
            [self.process.stdout], [], [], None if self.left == inf else max(0.0, self.left)
        )[0]
        self.left -= time.perf_counter() - began
        self.cut = not ready or self.left <= 0
        if not ready:
            return {}
        text = self.process.stdout.readline()
        answer: dict[str, Any] = (
            json.loads(text) if text else {"left_out": f"it failed: {self._last_words()}"}
        )
        self.left_out = answer.get("left_out", "")
        return answer

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "it said nothing")


def start(names: Sequence[str], environments: Path, folder: Path, limit: float = inf) -> list[Process]:
    """A process for each peer and mode, on the task that was handed over in `folder`; each may take `limit` seconds."""
    return [
        Process(
            SCRIPTS / f"{name}_peer.py",
            python(name, environments),
            folder,
            f"{name} {mode}".strip(),
            limit,
            peer.pins,
        )
        for name in names
        for peer in [known(name)]
        for mode in peer.modes
    ]
