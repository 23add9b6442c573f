"""Apps in the form of Flower's quickstarts (NumPy, scikit-learn, PyTorch): they run unchanged but for two lines.

Each is a package with a client_app and a server_app, as `flwr new` would lay it out, with data that need no network.
They run in this process, and over the link on devices whose terms name the ClientApp.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from yard import Yard, running, until

from fedsim.flower import InProcessGrid
from fedsim.flower.private import SUPERLINK_NODE_ID
from fedsim.link.answering import Host, Installed

NODES = 3
pytestmark = pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # so few iterations do not
WAS = ("from flwr.serverapp.strategy import FedAvg", "strategy = FedAvg(")
IS = ("from fedsim.strategies.flower import Median", "strategy = Median(f=1, ")
SERVER = """
import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from {name}.task import initial

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    rounds = context.run_config["num-server-rounds"]
    strategy = FedAvg(fraction_evaluate=1.0, min_available_nodes=3)
    result = strategy.start(grid=grid, initial_arrays=initial(), num_rounds=rounds, timeout=60)
    assert len(result.evaluate_metrics_clientapp) == rounds
    np.savez(context.run_config["out"], *[array.numpy() for array in result.arrays.values()])
"""
CLIENT = """
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from {name}.task import evaluate as measured, load, trained

app = ClientApp()

@app.train()
def train(msg: Message, context: Context) -> Message:
    data = load(context.node_config["partition-id"], context.node_config["num-partitions"])
    arrays, loss = trained(msg.content["arrays"], data, context.run_config["local-epochs"])
    metrics = MetricRecord({{"train_loss": loss, "num-examples": len(data[1])}})
    return Message(RecordDict({{"arrays": arrays, "metrics": metrics}}), reply_to=msg)

@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    data = load(context.node_config["partition-id"], context.node_config["num-partitions"])
    metrics = MetricRecord({{"accuracy": measured(msg.content["arrays"], data), "num-examples": len(data[1])}})
    return Message(RecordDict({{"metrics": metrics}}), reply_to=msg)
"""
TASKS = {
    "numpyapp": """
import numpy as np
from flwr.app import ArrayRecord

def initial():
    return ArrayRecord([np.zeros((4, 2)), np.zeros(2)])

def load(i, n):
    rng = np.random.default_rng(i)
    x = rng.normal(size=(40, 4))
    return x, (x[:, 0] > 0).astype(int)

def trained(arrays, data, epochs):
    (w, b), (x, y) = arrays.to_numpy_ndarrays(), data
    w, b = w.copy(), b.copy()
    for _ in range(epochs):
        scores = np.exp(x @ w + b)
        error = scores / scores.sum(1, keepdims=True) - np.eye(2)[y]
        w -= 0.5 * x.T @ error / len(y)
        b -= 0.5 * error.mean(0)
    return ArrayRecord([w, b]), float(np.abs(error).mean())

def evaluate(arrays, data):
    w, b = arrays.to_numpy_ndarrays()
    return float(((data[0] @ w + b).argmax(1) == data[1]).mean())
""",
    "sklearnapp": """
import numpy as np
from flwr.app import ArrayRecord
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

def initial():
    return ArrayRecord([np.zeros((3, 4)), np.zeros(3)])

def load(i, n):
    held = load_iris()
    order = np.random.default_rng(0).permutation(150)[i::n]
    return held.data[order], held.target[order]

def model(arrays, epochs=1):
    made = LogisticRegression(max_iter=epochs, warm_start=True)
    made.classes_ = np.arange(3)
    made.coef_, made.intercept_ = (each.copy() for each in arrays.to_numpy_ndarrays())
    return made

def trained(arrays, data, epochs):
    made = model(arrays, epochs)
    made.fit(*data)
    return ArrayRecord([made.coef_, made.intercept_]), float(1 - made.score(*data))

def evaluate(arrays, data):
    return float(model(arrays).score(*data))
""",
    "torchapp": """
import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from torch import nn

def net():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def initial():
    torch.manual_seed(0)
    return ArrayRecord(net().state_dict())

def load(i, n):
    held = load_digits()
    return torch.tensor(held.data[i::n] / 16, dtype=torch.float32), torch.tensor(held.target[i::n])

def trained(arrays, data, epochs):
    made, (x, y) = net(), data
    made.load_state_dict(arrays.to_torch_state_dict())
    optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(made(x), y)
        loss.backward()
        optimizer.step()
    return ArrayRecord(made.state_dict()), loss.item()

def evaluate(arrays, data):
    made = net()
    made.load_state_dict(arrays.to_torch_state_dict())
    return float((made(data[0]).argmax(1) == data[1]).float().mean())
""",
}


@pytest.fixture(params=TASKS)
def app(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package on the path, whose server's two lines with the strategy are changed, and no other."""
    name = str(request.param)
    (tmp_path / name).mkdir()
    server = SERVER.format(name=name)
    for was, now in zip(WAS, IS, strict=True):
        assert server.count(was) == 1
        server = server.replace(was, now)
    files = {
        "__init__": "",
        "task": TASKS[name],
        "client_app": CLIENT.format(name=name),
        "server_app": server,
    }
    for file, content in files.items():
        (tmp_path / name / f"{file}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    return name


def test_in_this_process_and_on_devices(app: str, tmp_path: Path) -> None:
    """Three rounds: the models are equal to the bit, and not the first one."""
    config: dict[str, Any] = {"num-server-rounds": 3, "local-epochs": 3, "out": str(tmp_path / "here.npz")}
    server = import_module(f"{app}.server_app").app
    here = InProcessGrid(import_module(f"{app}.client_app").app, NODES, run_config=config)
    server(here, here.server_context)

    (tmp_path / "yard").mkdir()
    yard = Yard(tmp_path / "yard", NODES)
    hosts = [
        Host(Installed(f"{app}.client_app:app", {"partition-id": i, "num-partitions": NODES}, config))
        for i in range(NODES)
    ]
    devices = [
        yard.device(i, lambda frame, seconds, host=host: host.answer(bytes(frame)))
        for i, host in enumerate(hosts)
    ]
    there = config | {"out": str(tmp_path / "there.npz")}
    with yard.grid() as grid, running(*devices):
        until(lambda: len(list(grid.get_node_ids())) == NODES)
        server(grid, Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), there))
    a, b = (np.load(tmp_path / name) for name in ("here.npz", "there.npz"))
    assert a.files == b.files
    assert all(np.array_equal(a[name], b[name]) for name in a.files)
    task = import_module(f"{app}.task")
    first = [each.numpy() for each in task.initial().values()]
    assert not all(np.array_equal(a[name], was) for name, was in zip(a.files, first, strict=True))
