"""What ByzFL 0.0.11 sends on the same honest rows; ../shared/reference, or skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.attacks import ALIE, IPM, Adaptive, Inf, Mimic
from fedsim.attacks.objective import Aim
from fedsim.strategies import NNM, RFA, Chain, Clipping, Krum, Mean, Median, TrimmedMean
from fedsim.types import Attack, Rule, Target, View

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "reference"
OURS = {
    "SignFlipping": lambda p: IPM(1.0),
    "InnerProductManipulation": lambda p: IPM(p["tau"]),
    "ALittleIsEnough": lambda p: ALIE(p["tau"], std="sample", side="+"),
    "Mimic": lambda p: Mimic(victim=p["epsilon"]),
    "Inf": lambda p: Inf(),
}
SEARCHED: dict[str, Attack] = {
    "Optimal_ALittleIsEnough": ALIE(std="sample", side="+"),
    "Optimal_InnerProductManipulation": IPM(),
}
TARGETS = {
    "Average": lambda p: Chain(Clipping(2.0), Mean()),
    "Median": lambda p: Median(),
    "GeometricMedian": lambda p: RFA(p["nu"], p["T"], "origin"),
    "TrMean": lambda p: Chain(NNM(), TrimmedMean()),
    "Krum": lambda p: Krum("n-f-1"),
}


@pytest.fixture(scope="module")
def vectors() -> tuple[list[dict[str, Any]], Any]:
    if not FOLDER.is_dir():
        pytest.skip("no ../shared/reference")
    records = json.loads((FOLDER / "byzfl_vectors.json").read_text())["records"]
    return [record for record in records if record["family"] == "attack"], np.load(
        FOLDER / "byzfl_vectors.npz"
    )


def view_of(record: dict[str, Any], rows: np.ndarray, rule: Rule | None = None) -> View:
    h, f = record["honest_rows"], record["f"]
    honest = torch.from_numpy(rows[:h]).float()
    target = rule and Target(rule, f, None, lambda last: torch.cat([honest, last]), 0, h)
    return View(h + f, f, 0, torch.zeros(rows.shape[1]), torch.Generator(), honest=honest, target=target)


@pytest.mark.parametrize("op", OURS)
def test_agrees_with_byzfl(op: str, vectors: tuple[list[dict[str, Any]], Any]) -> None:
    records, arrays = vectors
    compared = [record for record in records if record["op"] == op]
    assert len(compared) >= 12
    for record in compared:
        sent = OURS[op](record["params"]).forge(view_of(record, arrays[record["input"]]))
        want = torch.from_numpy(np.atleast_2d(arrays[record["output"]]))[0].float()
        torch.testing.assert_close(sent[0], want, rtol=2e-5, atol=2e-5, msg=str(record))


@pytest.mark.parametrize("op", SEARCHED)
def test_does_at_least_the_damage_of_byzfls_search(
    op: str, vectors: tuple[list[dict[str, Any]], Any]
) -> None:
    """Within the bound; ByzFL's own factor runs to millions where the damage has long stopped growing."""
    records, arrays = vectors
    ratios = []
    for record in (r for r in records if r["op"] == op and r["backend"] == "numpy"):
        aim = record["target"]["agg"]
        view = view_of(record, arrays[record["input"]], TARGETS[aim["op"]](aim["params"]))
        theirs = torch.from_numpy(np.atleast_2d(arrays[record["output"]]))[0].float().expand(view.f, -1)
        mine = Adaptive(SEARCHED[op], bound=1000.0).forge(view)
        harm = Aim(view.honest.mean(0), against=False)
        ratios.append(float(harm(view.target(mine)) / harm(view.target(theirs))))
    assert len(ratios) == 60
    assert min(ratios) > 0.99
    assert np.median(ratios) > 1.02
