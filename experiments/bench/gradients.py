"""How fast the gradients of n clients are, over one plain forward and backward pass and beside Opacus."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.check import Invalid, nearest
from fedsim.gradients import ClientGradients, Clip, one_client
from fedsim.gradients.fallback import Vmap
from fedsim.layout import flatten, trained
from fedsim.losses import CROSS_ENTROPY
from fedsim.models import CNN, GPT, LSTM, MLP, Frozen, Logistic
from fedsim.types import Batch, Model


@dataclass(frozen=True)
class Workload:
    """n clients with b images of 28 x 28 pixels, or windows of so many characters, 65 of them.

    clip  bounds examples; `own`: a point for each client
    """

    model: Model
    n: int
    b: int
    clip: float | None = None
    own: bool = False
    window: int = 0

    def data(self) -> tuple[Tensor, Tensor, int]:
        """Inputs (n, b, ...), labels (n, b) or (n, b, window), and the number of classes."""
        generator = torch.Generator().manual_seed(0)
        if self.window:
            text = torch.randint(65, (2, self.n, self.b, self.window), generator=generator)
            return text[0], text[1], 65
        images = torch.randn(self.n, self.b, 1, 28, 28, generator=generator)
        return images, torch.randint(0, 10, (self.n, self.b), generator=generator), 10


WORKLOADS = {
    "W1": Workload(MLP(hidden=100, activation="relu"), 100, 32),
    "W2": Workload(CNN(), 20, 32),
    "W5": Workload(MLP(hidden=100, activation="relu"), 100, 32, own=True),
    "logistic": Workload(Logistic(), 20, 64, clip=1.0),
    "mlp": Workload(MLP(activation="relu"), 20, 64, clip=1.0),
    "cnn": Workload(CNN(), 20, 64, clip=1.0),
    "frozen": Workload(Frozen(CNN(), parts=("0.*", "3.*", "7.*")), 20, 32),
    "lstm": Workload(LSTM(width=128), 8, 10, window=40),
    "lstm-clipped": Workload(LSTM(width=128), 8, 10, clip=1.0, window=40),
    "gpt": Workload(GPT(width=64), 8, 10, window=64),
    "gpt-clipped": Workload(GPT(width=64), 8, 10, clip=1.0, window=64),
}


def bench_gradients(
    name: str, repeats: int = 9, threads: int = 1, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """A line for each way to the gradients: median seconds, and how many floors that is.

    The floor is one plain forward and backward pass over the batches of all clients. All ways take turns, so
    that load on the machine falls on all alike. `error` is the largest difference from the specification,
    relative to its largest number.
    """
    if name not in WORKLOADS:
        raise Invalid(f"workload = {name!r}: unknown; {nearest(name, WORKLOADS)}")
    torch.set_num_threads(threads)
    workload = WORKLOADS[name]
    ways, truth, ours = _ways(workload, device)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
    floor = median(seconds["floor"][1:])
    for way, times in seconds.items():
        middle = median(times[1:])
        line = {"workload": name, "n": workload.n, "b": workload.b, "d": truth.shape[1], "threads": threads}
        line |= {"way": way, "seconds": middle, "over_floor": middle / floor}
        if way == "layers":
            line["error"] = float((ours - truth).abs().max() / truth.abs().max())
        yield line


def _ways(workload: Workload, device: str) -> tuple[dict[str, Callable[[], Any]], Tensor, Tensor]:
    n, b, clip = workload.n, workload.b, workload.clip
    inputs, labels, classes = workload.data()
    batch = Batch(inputs.to(device), labels.to(device), torch.full((n, b), 1 / b, device=device))
    model = workload.model.build(tuple(inputs.shape[2:]), classes).to(device)
    x = flatten(model)
    if workload.own:
        x = x + 0.01 * torch.randn(n, len(x), generator=torch.Generator().manual_seed(1)).to(device)
    rows = x.new_empty(n, x.shape[-1])
    gradients, by_vmap = ClientGradients(model), Vmap(model, CROSS_ENTROPY)

    together = inputs.to(device).flatten(0, 1)

    def floor() -> None:
        torch.autograd.grad(_mean_loss(model(together), batch.y), list(trained(model).values()))

    def loop() -> list[Tensor]:
        return [
            one_client(model, at, one, clip) for at, one in zip(x.expand(n, -1), batch.each(), strict=True)
        ]

    ways: dict[str, Callable[[], Any]] = {"floor": floor}
    ways["layers"] = lambda: gradients.prepare(x, batch, Clip.of(clip)).write(slice(None), rows)
    if clip is None:
        ways["vmap"] = lambda: by_vmap(x, batch, None)
        ways["loop"] = loop
    else:
        ways["opacus hooks"] = _opacus(model, batch, clip, ghost=False)
        if not workload.window:
            ways["opacus ghost"] = _opacus(model, batch, clip, ghost=True)
    return ways, torch.stack(loop()), gradients(x, batch, clip=clip).clone()


def _mean_loss(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


def _opacus(model: nn.Module, batch: Batch, clip: float, ghost: bool) -> Callable[[], None]:
    """Clipped gradients by Opacus, a private model a client; without noise, which costs all alike."""
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    clients = []
    for x, y in zip(batch.x, batch.y, strict=True):
        own = copy.deepcopy(model)
        options = {"noise_multiplier": 0.0, "max_grad_norm": clip, "expected_batch_size": len(y)}
        loss: Callable[..., Any] = _mean_loss
        if ghost:
            private = GradSampleModuleFastGradientClipping(own, max_grad_norm=clip, use_ghost_clipping=True)
            optimiser = DPOptimizerFastGradientClipping(torch.optim.SGD(own.parameters(), lr=0.1), **options)
            loss = DPLossFastGradientClipping(private, optimiser, nn.CrossEntropyLoss(), "mean")
        else:
            private = GradSampleModule(own)
            optimiser = DPOptimizer(torch.optim.SGD(own.parameters(), lr=0.1), **options)
        clients.append((private, optimiser, loss, x, y))

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for private, optimiser, loss, x, y in clients:
                optimiser.zero_grad()
                loss(private(x), y).backward()
                optimiser.pre_step()

    return step
