"""Rounds over NVFlare's simulator on this machine; prints the seconds of each as JSON.

python nvflare_peer.py DEVICES PARAMETERS ROUNDS
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

APP = """
import json, time
import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.apis.executor import Executor
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController


class Echo(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        return from_shareable(shareable).to_shareable()


class Rounds(ModelController):
    def __init__(self, devices, parameters, rounds, out):
        super().__init__()
        self.devices, self.parameters, self.rounds, self.out = devices, parameters, rounds, out

    def run(self):
        times, x = [], np.arange(self.parameters, dtype=np.float32)
        for _ in range(self.rounds):
            began = time.perf_counter()
            clients = self.sample_clients(self.devices)
            replies = self.send_model_and_wait(targets=clients, data=FLModel(params={"x": x}))
            assert len(replies) == self.devices
            assert all(float(reply.params["x"][-1]) == self.parameters - 1 for reply in replies)
            times.append(time.perf_counter() - began)
        with open(self.out, "w") as file:
            json.dump(times, file)
"""


def main(devices: int, parameters: int, rounds: int) -> None:
    with TemporaryDirectory(prefix="nvflare-") as folder:
        place = Path(folder)
        (place / "echo_rounds.py").write_text(APP)
        sys.path.insert(0, folder)
        import echo_rounds
        from nvflare.job_config.api import FedJob

        out = place / "times.json"
        with redirect_stdout(sys.stderr):
            job = FedJob(name="echo")
            job.to_server(echo_rounds.Rounds(devices, parameters, rounds, str(out)))
            job.to_clients(echo_rounds.Echo())
            job.simulator_run(str(place / "work"), n_clients=devices, threads=devices)
        print(json.dumps(json.loads(out.read_text())))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
