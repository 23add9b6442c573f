"""The worker of a device: a ClientApp that is installed there, in a process with limits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from yard import Yard, message, running, until

from fedsim.flower.private import identify
from fedsim.link.answering import Installed
from fedsim.link.frame import Limits, header_of, seal
from fedsim.link.records import describe, restore
from fedsim.link.worker import Worker


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(
        "worker_app:app",
        node_config={"partition-id": 4},
        run_config={"lr": 0.5},
        state=tmp_path_factory.mktemp("worker") / "state",
        memory=4 << 30,
        limits=Limits(size=1 << 20),
    )


@pytest.fixture(scope="module")
def worker(installed: Installed) -> Iterator[Worker]:
    made = Worker(installed, 60.0)
    yield made
    made.close()


def ask(worker: Worker, what: str, run: int = 7, seconds: float = 60.0) -> tuple[dict[str, Any], Any]:
    described, blobs = describe(RecordDict({"config": ConfigRecord({"do": what})}))
    header = {
        "id": "1",
        "node": 3,
        "type": "train",
        "group": "",
        "run": run,
        "ttl": 60.0,
        "records": described,
    }
    said, body = header_of(worker(b"".join(seal(header, blobs)), seconds))
    return said, None if "error" in said else restore(said["records"], body)


def test_an_app_answers_with_its_context(worker: Worker) -> None:
    _, content = ask(worker, "say")
    assert dict(content["said"]) == {"count": 1, "node": 3, "run": 7, "partition-id": 4, "lr": 0.5}
    assert ask(worker, "say")[1]["said"]["count"] == 2
    assert ask(worker, "say", run=8)[1]["said"]["count"] == 1  # another run of the server's, another state


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("hang", "no answer in 2 s"),
        ("die", "the process of the ClientApp died"),
        ("eat", "MemoryError in this device's app; its own log says more"),
        ("swell", "a reply of more than 1048576 bytes"),
        ("refuse", "round 3: no"),
        ("leak", "ValueError in this device's app; its own log says more"),
    ],
)
def test_what_an_app_does_stays_there(worker: Worker, what: str, reason: str) -> None:
    """And the next message is answered, by a new process where it has to be; the state is on disk."""
    assert ask(worker, "say", run=9)[1]["said"]["count"] >= 1
    before = ask(worker, "say", run=9)[1]["said"]["count"]
    began = time.monotonic()
    assert ask(worker, what, run=9, seconds=2.0 if what == "hang" else 60.0)[0] == {"error": reason}
    assert time.monotonic() - began < 50
    after = ask(worker, "say", run=9)[1]["said"]["count"]
    assert after >= before + 1


HERE = """
from flwr.app import Message, RecordDict, ConfigRecord
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    from beside import WORD
    return Message(RecordDict({"said": ConfigRecord({"word": WORD})}), reply_to=message)
"""


def test_an_app_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `fedsim deploy check` finds it, and what it imports late, however the device was started."""
    (tmp_path / "app_that_lies_here.py").write_text(HERE)
    (tmp_path / "beside.py").write_text("WORD = 'here'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if Path(each).is_absolute()])
    worker = Worker(Installed("app_that_lies_here:app"), 60.0)
    try:
        assert dict(ask(worker, "say")[1]["said"]) == {"word": "here"}
    finally:
        worker.close()


def test_no_worker_outlives_its_device(tmp_path: Path) -> None:
    """Killed with SIGKILL in the middle of an answer."""
    code = """
import sys
from fedsim.link.answering import Installed
from fedsim.link.worker import Worker
if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    worker = Worker(Installed("worker_app:app"), 600)
    print(worker._process.pid, flush=True)
    sys.stdin.read()
"""
    (tmp_path / "front.py").write_text(code)
    words = [sys.executable, str(tmp_path / "front.py"), str(Path(__file__).parent)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        time.sleep(1)
        front.kill()
    until(
        lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    )


def test_a_device_s_front_is_light() -> None:
    """Neither torch nor flwr, and so 45 MB: what they are needed for is in the worker, which may be killed."""
    code = "import sys\nimport fedsim.link.device, fedsim.link.worker\nprint(*sys.modules)\n"
    code += "print(next(line.split()[1] for line in open('/proc/self/status') if 'VmRSS' in line))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, kilobytes = done.stdout.splitlines()
    assert not {"torch", "flwr", "numpy", "cryptography"} & set(modules.split())
    assert int(kilobytes) < 80_000


def test_over_the_link(tmp_path: Path, installed: Installed) -> None:
    """Grid, stream, front, worker, app: all of it."""
    yard = Yard(tmp_path, 1)
    worker = Worker(installed, 10.0)
    with yard.grid() as grid, running(yard.device(0, worker)):
        until(lambda: len(grid.get_node_ids()) == 1)
        config = RecordDict({"config": ConfigRecord({"do": "say"})})
        (reply,) = grid.send_and_receive([message(yard.nodes[0], config)], timeout=30)
        assert reply.content["said"]["node"] == yard.nodes[0]
        (reply,) = grid.send_and_receive([message(yard.nodes[0], config, kind="query")], timeout=30)
        assert "in this device's app" in reply.error.reason
    worker.close()


@pytest.fixture(autouse=True)
def _as_a_server() -> None:
    identify(1)


def test_what_is_closed_in_an_answer_stays_closed(worker: Worker) -> None:
    """No process that nobody ends: the interpreter would wait for it, and SIGTERM with it."""
    said: list[Any] = []
    asking = threading.Thread(target=lambda: said.append(ask(worker, "hang")))
    asking.start()
    until(lambda: worker._ready)
    time.sleep(0.2)
    worker.close()
    asking.join(20)
    assert said == [({"error": "the process of the ClientApp died"}, None)]
    assert not [each for each in active_children() if each.is_alive()]
    worker.close()  # again
