"""The ray engine is the loop to the bit, on two methods. Skipped where Ray is not installed (the extra `ray`)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_grid import equal
from test_parity import CASES, experiment

from fedsim.runner import run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedsim-robust[ray]'")


@pytest.mark.parametrize("case", ["ByzClip21SGD2M", "Signum"])
def test_ray_equals_loop(case: str) -> None:
    e = replace(experiment(*CASES[case]), clients=4, byzantine=1)
    equal(run(e, engine="ray", device="cpu"), run(e, engine="loop", device="cpu"))
