"""What is said to a newcomer's slips: the field, the value, and what is allowed there."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedsim.batches import Full
from fedsim.cli.app import app
from fedsim.privacy import CentralDP, ExampleDP, MessageDP, Privacy
from fedsim.privacy.plan import Plan
from fedsim.progress import lasting

SLIPS = {
    ("show", "nothing"): ("unknown; fedsim list shows all names", "did you mean"),
    ("run", "nothing"): ("allowed: baselines, batch_budget", "did you mean"),
    ("run", "quikstart"): ("did you mean quickstart?", "allowed"),
    ("run", "quickstart", "--set", "privacy.clip=none"): ("allowed is a number, or", "unknown"),
    ("run", "quickstart", "--set", "attack=IPM(strength=10)"): ("allowed: factor", "needs"),
    ("run", "quickstart", "--set", "rule="): ("allowed are names such as Bulyan", "ALIE"),
}


@pytest.mark.parametrize("words", SLIPS, ids=" ".join)
def test_a_slip_is_answered_by_what_is_allowed(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, list(words))
    said, unsaid = SLIPS[words]
    assert done.exit_code == 2
    assert said in done.stderr
    assert unsaid not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["run"], ["sweep"], ["deploy", "init"], ["bench", "compare"]])
def test_help_has_no_escapes(words: list[str]) -> None:
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0
    assert "[required]" in done.stdout
    assert "\\" not in done.stdout


def test_the_time_left_is_short() -> None:
    assert [lasting(s) for s in (0.2, 99, 100, 5999, 6000, 1e6)] == [
        "0 s", "99 s", "2 min", "100 min", "1.7 h", "277.8 h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        (ExampleDP(clip=1.0, epsilon=1000.0, delta=1e-5), "promises next to nothing"),
        (ExampleDP(clip=1.0, noise=0.001, delta=1e-5), "hides nothing"),
        (MessageDP(epsilon=1000.0, delta=1e-5), "promises next to nothing"),
        (CentralDP(noise=0.001, delta=1e-5), "hides nothing"),
        (ExampleDP(clip=1.0, epsilon=1.0, delta=0.002), "is above 1/(10 m)"),
        (ExampleDP(clip=1.0, epsilon=8.0, delta=1e-4), None),
    ],
    ids=repr,
)
def test_privacy_in_name_only_is_called_so(privacy: Privacy, said: str | None) -> None:
    plan = Plan(frozenset({(0, 1, 2)}), 1, Full(), 100, 20, 1.0, 10)
    warned = " ".join(privacy.warnings(plan))
    assert said in warned if said else "nothing" not in warned and "1/(10 m)" not in warned
