"""Rounds of methods by layer: a line for each, its ratio to the method beside it, and flops as counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedsim.check import Invalid
from fedsim.datasets.load import Blobs
from fedsim.experiments.bench import layers
from fedsim.models import MLP
from fedsim.task import Task


def test_ratios_and_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, classes, clients, size = 12, 3, 4, 5
    base = layers.W1
    monkeypatch.setattr(layers, "W1", replace(base, task=Task(Blobs(), MLP(hidden))))
    monkeypatch.setitem(layers.MODELS, "mlp", MLP(hidden, "relu"))
    lines = list(
        layers.bench_layers(
            ["mlp"], [size], ["mean"], ["Muon", "ClientMuon"], clients=clients, rounds=2, threads=1
        )
    )
    assert [line["method"] for line in lines] == ["FedSGD", "Muon", "ClientMuon"]
    plain, server, client = lines
    assert plain["ratio"] == plain["flops_ratio"] == 1
    assert server["ratio"] == pytest.approx(server["least_ms"] / plain["least_ms"])
    inputs = Blobs().load().train.x.shape[1]
    short, long = sorted((hidden, inputs))
    assert 2 * short > long  # five steps: two products with the matrix, one of its short side with itself
    polar = 5 * (2 * 2 * short**2 * long + 2 * short**3)
    extra = [1e9 * (line["gflops"] - plain["gflops"]) for line in (server, client)]
    assert extra == pytest.approx([polar, clients * polar])
    assert 1e9 * plain["gflops"] >= 2 * 2 * clients * size * (inputs * hidden + hidden * classes)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(Invalid, match="method = 'Muom': unknown; did you mean Muon"):
        next(layers.bench_layers(methods=["Muom"]))
