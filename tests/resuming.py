"""A run that is interrupted and goes on, beside the same run without an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsim.result import Result
from fedsim.runner import run
from fedsim.spec import Experiment


def resumed_to_the_bit(e: Experiment, folder: Path, after: int = 3) -> tuple[Result, Result]:
    """The whole run; and one interrupted after that round and resumed, which ends at its model, to the bit."""
    whole = run(e)

    def stop(round: int, metrics: dict[str, object]) -> None:
        if round == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(e, out=folder, progress=stop)
    again = run(e, out=folder, resume=True)
    assert all(torch.equal(again.model[name], whole.model[name]) for name in whole.model)
    return whole, again
