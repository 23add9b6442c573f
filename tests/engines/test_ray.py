"""The ray engine is the loop to the bit, on two methods and a weighted mean.

Skipped where Ray is not installed (the extra `ray`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_grid import WEIGHTED, equal
from test_parity import CASES, experiment

from fedsim.runner import run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedsim-robust[ray]'")


@pytest.mark.parametrize("case", ["ByzClip21SGD2M", "Signum", "a weighted mean"])
def test_ray_equals_loop(case: str) -> None:
    few = {"clients": 4, "byzantine": 1}
    e = (
        replace(WEIGHTED, clients=4)
        if case == "a weighted mean"
        else replace(experiment(*CASES[case]), **few)
    )
    equal(run(e, engine="ray", device="cpu"), run(e, engine="loop", device="cpu"))
