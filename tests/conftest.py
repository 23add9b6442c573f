"""Real data for the tests: FEDSIM_DATA, or a folder shared/data beside the checkout; without it they skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from rounding import Rounding

beside = Path(__file__).resolve().parents[2] / "shared" / "data"
if "FEDSIM_DATA" not in os.environ and beside.is_dir():
    os.environ["FEDSIM_DATA"] = str(beside)

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))  # small tensors: a second one waits more than it works
torch.set_num_threads(THREADS)
# The same examples on every run, so that a red build means a change; FEDSIM_EXPLORE=1 tries new ones.
explore = "FEDSIM_EXPLORE" in os.environ
settings.register_profile("fedsim", deadline=None, max_examples=40, derandomize=not explore)
settings.load_profile("fedsim")


@pytest.fixture(autouse=True)
def as_on_this_machine() -> Iterator[None]:
    """Each test starts with the number of threads that was asked for, and with products of the kind that was."""
    torch.set_num_threads(THREADS)
    with Rounding() if "FEDSIM_ROUNDING" in os.environ else nullcontext():
        yield


@pytest.fixture
def data_folder() -> Path:
    """The folder of the real data sets."""
    folder = os.environ.get("FEDSIM_DATA")
    if folder is None:
        pytest.skip("no real data: FEDSIM_DATA is not set and there is no ../shared/data")
    return Path(folder)
