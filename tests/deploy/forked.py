"""Processes of a deployment that are forks of one which has imported all that they need, and die where they are told.

python forked.py: each line of JSON on the standard input starts one, or waits for one; each is answered by a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

LATE = (
    "fedsim.deploy.app",
    "fedsim.link.records",
    "opacus.grad_sample.functorch",
    "scipy.optimize",
    "scipy.special",
    "torch._dynamo",
)
TOUCHED = {"open", "os.rename", "os.remove"}  # os.replace is a rename; the folder is opened for its own fsync


def die_at(step: int, folder: Path) -> None:
    """SIGKILL for this process when it is about to touch a file in the folder for the step-th time."""
    left, place = step, str(folder)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in TOUCHED and str(arguments[0]).startswith(place):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def import_late() -> None:
    """What an order has imported and read, seconds of a processor, ahead of the fork."""
    for name in LATE:
        import_module(name)
    from fedsim.datasets.load import Digits

    Digits().load()


class Forks:
    """The process that forks, and what it started, all of which ends with the block."""

    def __enter__(self) -> Forks:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._pids: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._pids):
            self.end(pid)
        self._process.kill()
        self._process.communicate()

    def start(self, role: str, folder: Path, die: int = 0, **more: Any) -> int:
        """The id of a new device or server, which dies at its `die`-th touch of a file."""
        pid = int(self._ask({"role": role, "folder": str(folder), "die": die, **more}))
        self._pids.add(pid)
        return pid

    def over(self, pid: int, wait: bool = False) -> int | None:
        """The exit code of one that is over, negative for a signal; None while it lives."""
        code = self._ask({"over": pid, "wait": wait})
        if code is not None:
            self._pids.discard(pid)
        return None if code is None else int(code)

    def end(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.over(pid, wait=True)

    def _ask(self, said: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(said), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def device(folder: Path) -> None:
    """`fedsim deploy device`, whose app answers in this process."""
    from fedsim.deploy import front
    from fedsim.link import device as link
    from fedsim.link.answering import Host, Installed

    link.LAST = link.FIRST  # dials on and on, since servers come and go

    class Here:
        def __init__(self, installed: Installed, seconds: float) -> None:
            self._host = Host(installed)

        def __call__(self, frame: bytearray, seconds: float) -> bytes:
            return self._host.answer(bytes(frame))

        def close(self) -> None: ...

    front.Worker = Here  # type: ignore[misc,assignment]
    front.serve(folder)


def server(folder: Path, site: str, experiment: str) -> None:
    """`fedsim deploy run --resume`, its record in `folder`."""
    from fedsim.deploy.server import run_there
    from fedsim.deploy.site import Site
    from fedsim.deploy.trial import Trial
    from fedsim.spec import Experiment

    run_there(Site(Path(site)), Experiment.from_json(experiment), Trial(timeout=60.0), folder, resume=True)


def main() -> None:
    for name in ("fedsim.deploy.front", "fedsim.deploy.server"):
        import_module(name)
    import_late()
    print_to = os.dup(1)
    for line in sys.stdin:
        said = json.loads(line)
        if pid := said.get("over"):
            found, status = os.waitpid(pid, 0 if said["wait"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            answer = os.fork()
            if not answer:
                begin(**said)
        os.write(print_to, (json.dumps(answer) + "\n").encode())


def begin(role: str, folder: str, die: int, **more: Any) -> None:
    """Be this process, and end."""
    code = 1
    try:
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((null, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        if die:
            die_at(die, Path(folder))
        {"device": device, "server": server}[role](Path(folder), **more)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
