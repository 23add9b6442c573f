"""What is counted is what travels by gRPC, for every compressor and both ways, but for headers that do not grow."""

from __future__ import annotations

import re
from dataclasses import replace

from fedsim import messages
from fedsim.datasets.load import Blobs
from fedsim.experiments.bench.bits import BASE, COMPRESSORS, bench_bits
from fedsim.federation import Federation
from fedsim.models import MLP
from fedsim.task import Task

SMALL = replace(BASE, task=Task(data=Blobs(), model=MLP(hidden=6)), rounds=2)


def test_bits_counted_are_bytes_sent_over_the_link() -> None:
    lines, layout = list(bench_bits(base=SMALL)), Federation(SMALL).layout
    assert set(messages.__all__) - {"Coder", "Compressor"} <= set(re.findall(r"\w+", repr(COMPRESSORS)))
    assert len(lines) == len(COMPRESSORS)
    for by, line in zip(COMPRESSORS, lines, strict=True):
        assert line["up_bits"] == by.bits(layout)
        assert line["up_bytes"] == -(-line["up_bits"] // 8)
        assert line["down_bits"] == min(by.bits(layout), 32 * layout.width)
        assert line["down_bytes"] == -(-line["down_bits"] // 8)
        assert 300 < line["up_header"] < 400
        assert 1000 < line["down_header"] < 2200  # the experiment, as JSON
