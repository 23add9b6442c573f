"""The report: what it says is what the records say, and the page works in a browser without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html import escape
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_sweep import SMALL, inline
from typer.testing import CliRunner

from fedsim.check import Invalid
from fedsim.cli.app import app
from fedsim.clock import Clock, Constant
from fedsim.datasets.split import Dirichlet
from fedsim.experiments.load import load
from fedsim.experiments.report.plots import over_rounds
from fedsim.experiments.report.report import MAIN, report
from fedsim.experiments.report.results import Results
from fedsim.experiments.report.sections import (
    ALL,
    Figure,
    bits,
    megabytes,
    robustness,
    seconds,
    surface,
)
from fedsim.experiments.report.sections import work as work_done
from fedsim.experiments.study import Score, Study, axes
from fedsim.experiments.sweep.run import Sweep
from fedsim.experiments.sweep.workers import Job, work
from fedsim.federation import Federation
from fedsim.messages import TopK
from fedsim.privacy import ExampleDP, MessageDP
from fedsim.runner import run
from fedsim.spec import Experiment
from fedsim.strategies import EF21, NNA, ByzClip21SGD2M, HeavyBall, Krum, Mean, MoNNA, SignSGD
from fedsim.strategies.methods.estimators import HM, LastGradient

TABLE = {
    "rule": ["Median", "Mean"],
    "attack": {"weak": "IPM(0.1)", "strong & loud": "IPM(10)"},
    "split.alpha": [0.1, 10],
    "byzantine": [1, 2],
    "seed": [0, 1],
}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--virtual-time-budget=4000",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
# Clicks on one control of each kind; what changed stands in the title of the page.
PROBE = """<script>
const said = [], all = q => [...document.querySelectorAll(q)];
const choice = all("select")[0], panels = [...choice.closest("figure").querySelectorAll("[data-panel]")];
choice.selectedIndex = 1; choice.dispatchEvent(new Event("change"));
said.push(panels.map(p => +!p.classList.contains("off")).join(""));
const key = all(".keys button")[0], line = document.getElementById(key.dataset.line);
key.click(); said.push(getComputedStyle(line).display);
const before = getComputedStyle(document.body).backgroundColor;
document.getElementById("theme").click(); said.push(before !== getComputedStyle(document.body).backgroundColor);
const head = all("th").findIndex(h => h.textContent === "accuracy");
all("th")[head].click(); const column = all("tbody tr").map(r => +r.cells[head].dataset.v);
said.push(column.every((v, k) => !k || v >= column[k - 1]));
said.push(document.documentElement.scrollWidth <= innerWidth);
said.push(performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length);
document.title = "probe " + said.join(" ");
</script></body>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with all that a report can show."""
    place = tmp_path_factory.mktemp("report") / "study"
    base = replace(SMALL, split=Dirichlet(1.0))
    reported = (
        {
            "rule": "Median",
            "attack": "weak",
            "split.alpha": "10",
            "byzantine": "2",
            "accuracy": 0.5,
        },
    )
    study = Study(base, axes(TABLE), reported=reported, notes=("A note & more.",))
    assert not Sweep(place, crew=inline, command="fedsim sweep study.toml")(study).failures
    report(place)
    return place


def test_the_table_is_the_mean_over_seeds(folder: Path) -> None:
    table = pd.read_csv(folder / "report" / "table.csv")
    assert len(table) == 16
    frame = load(folder)
    last = frame[frame["round"] == SMALL.rounds]
    wanted = {"rule": "Median", "attack": "weak", "split.alpha": 10.0, "byzantine": 2}
    runs = last[(last[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert len(runs) == 2
    row = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)].iloc[0]
    assert row["accuracy"] == pytest.approx(100 * runs["accuracy"].mean())
    assert row["std"] == pytest.approx(100 * runs["accuracy"].std())
    assert row["difference"] == pytest.approx(row["accuracy"] - 50)
    assert table["reported"].notna().sum() == 1
    tex = (folder / "report" / "table.tex").read_text()
    assert r"strong \& loud" in tex
    assert tex.count(r"\\") == 17


PAPER = (
    {"rule": "Median", "attack": "weak", "split.alpha": "0.10", "accuracy": 0.5},
    {"rule": "Median", "attack": "loud", "split.alpha": "0.10", "accuracy": 0.4},
    {"rule": "Mean", "attack": "weak", "split.alpha": "0.10", "accuracy": 0.3},
    {"rule": "Mean", "attack": "loud", "split.alpha": "0.10", "accuracy": 0.2},
)


@pytest.mark.parametrize(
    ("along", "expected"),
    [
        ({"rule": ["Median", "Mean"], "attack": {"weak": "IPM(0.1)"}, "split.alpha": [0.1]}, [50, 30]),
        ({"rule": ["Median"], "attack": {"weak": "IPM(0.1)"}, "split.alpha": [0.1, 10]}, [50, nan]),
        ({"rule": ["Median", "Mean"], "attack": {"weak": "IPM(0.1)"}, "split.alpha": [10]}, [nan, nan]),
        ({"rule": ["Median"], "attack": {"weak": "IPM(0.1)"}, "split.alpha": [0.1]}, [50]),
        ({"rule": ["Median"], "attack": {"strange": "IPM(0.1)"}, "split.alpha": [0.1]}, [nan]),
        ({"rule": ["Median", "Mean"], "split.alpha": [0.1]}, [nan, nan]),
    ],
)
def test_a_published_number_stands_beside_its_own_setting_alone(
    along: dict[str, Any], expected: list[float], tmp_path: Path
) -> None:
    """Also where an axis has one value left, by choice or because a sweep is under way."""
    base = replace(SMALL, split=Dirichlet(0.1))
    Sweep(tmp_path, crew=inline)(Study(base, axes(along), reported=PAPER))
    table = Results.of(tmp_path).table()
    assert table["reported"].tolist() == pytest.approx(expected, nan_ok=True)
    assert (table["accuracy"] - table["difference"]).tolist() == pytest.approx(expected, nan_ok=True)


def test_two_published_numbers_for_one_setting_are_none(tmp_path: Path) -> None:
    lines = ({"rule": "Median", "accuracy": 0.5}, {"rule": "Median", "accuracy": 0.6})
    Sweep(tmp_path, crew=inline)(Study(SMALL, axes({"rule": ["Median", "Mean"]}), reported=lines))
    assert Results.of(tmp_path).table()["reported"].isna().all()


def test_the_worst_case_is_over_attacks(folder: Path) -> None:
    """The map f x heterogeneity holds, for each cell, the lower of its two attacks."""
    page = (folder / "report" / "index.html").read_text()
    for title in ("rule by attack", "byzantine by split.alpha, worst case over attack",
                  "Inside the rounds", "Accuracy against cost", "Examples by client and class"):  # fmt: skip
        assert title in page
    final = Results.of(folder).final
    part = final[final["rule"] == "Median"]
    worst = (
        part.groupby(["byzantine", "split.alpha", "attack"])["accuracy"].mean().groupby(level=[0, 1]).min()
    )
    svg = (folder / "report" / "f-split-0.svg").read_text()
    shown = re.findall(r">(\d+\.\d)</text>", svg)
    assert sorted(shown[-4:]) == sorted(f"{100 * value:.1f}" for value in worst)


def printed(figure: Figure) -> Counter[tuple[str, str]]:
    """The numbers on the maps of a figure, with the part that each is in."""
    parts = ((name, axes) for name, plot in figure.plots.items() for axes in plot.figure.axes)
    return Counter((name, text.get_text()) for name, axes in parts for text in axes.texts)


def test_no_worst_case_where_a_run_is_missing(folder: Path, tmp_path: Path) -> None:
    """On either map the cell stays empty, whether the lost run was the worst or not."""
    whole = robustness(Results.of(folder))
    final = Results.of(folder).final
    here = final[(final["byzantine"] == 2) & (final["split.alpha"] == 0.1) & (final["rule"] == "Median")]
    for attack, runs in here.groupby("attack"):
        copy = tmp_path / str(attack)
        shutil.copytree(folder, copy)
        for name in runs["experiment"]:
            shutil.rmtree(copy / name)
        section = robustness(Results.of(copy))
        assert whole is not None
        assert section is not None
        for before, after, lost in zip(whole.figures, section.figures, (2, 1), strict=True):
            assert (printed(before) - printed(after)).total() == lost
            assert not printed(after) - printed(before)


def test_every_figure_names_its_experiments_and_its_command(folder: Path) -> None:
    page = (folder / "report" / "index.html").read_text()
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.S)
    assert len(figures) >= 6
    for figure in figures:
        assert "fedsim sweep study.toml" in figure
        assert f"fedsim report {folder}" in figure
        assert re.search(r"<code>[0-9a-f]{16}", figure)
    assert "A note &amp; more." in page
    for name in re.findall(r'href="([^"]+\.(?:svg|csv|tex))"', page):
        assert (folder / "report" / name).stat().st_size > 0


def test_the_page_asks_for_nothing_from_outside(folder: Path) -> None:
    page = (folder / "report" / "index.html").read_text()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert all(link.startswith(("#", "data:")) or re.fullmatch(r"[\w.-]+", link) for link in links)
    assert "<script src" not in page
    ids = re.findall(r' id="(s-[^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_works_in_a_browser(folder: Path, tmp_path: Path, width: int) -> None:
    page = (folder / "report" / "index.html").read_text()
    (tmp_path / "probed.html").write_text(page.replace("</body>", PROBE))
    done = subprocess.run(
        [str(BROWSER), *FLAGS, f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--dump-dom", f"file://{tmp_path / 'probed.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    shown = html.unescape(title[1]).split()
    assert shown[0] == "probe", done.stderr
    panels, line, theme, sort, fits, requests = shown[1:]
    assert panels.count("1") == 1
    assert panels[1] == "1"
    assert (line, theme, sort, fits, requests) == ("none", "true", "true", "true", "0")
    assert "CONSOLE" not in done.stderr


def test_privacy_and_utility_with_the_nominal_epsilon_above(tmp_path: Path) -> None:
    method = ByzClip21SGD2M(lr=0.5, tau=1.0)
    base = replace(SMALL, method=method, privacy=MessageDP(epsilon=1.0, delta=1e-3, calibration="paper"))
    Sweep(tmp_path, crew=inline)(Study(base, axes({"privacy.epsilon": [1, 100]})))
    assert "Accuracy against epsilon" in report(tmp_path).read_text()
    table = pd.read_csv(tmp_path / "report" / "table.csv")
    assert list(table["privacy.epsilon"]) == [1, 100]
    spent = load(tmp_path).groupby("privacy.epsilon")["epsilon"].last()
    assert list(table["accounted epsilon"]) == pytest.approx(list(spent))
    assert table["accounted epsilon"][0] > 2  # the nominal 1 is not what the accountant stands behind
    svg = (tmp_path / "report" / "privacy-0.svg").read_text()
    for text in ("nominal epsilon", "accounted epsilon", ">100<", f">{spent[1]:.3g}<"):
        assert text in svg


def test_privacy_robustness_and_heterogeneity_in_one_figure(tmp_path: Path) -> None:
    """Each cell of a map is the worst of two attacks at that budget."""
    table = {
        "attack": ["IPM(0.1)", "IPM(10)"],
        "byzantine": [1, 2],
        "split.alpha": [0.1, 10],
        "privacy.epsilon": [1, 100],
    }
    base = replace(SMALL, split=Dirichlet(1.0), privacy=ExampleDP(clip=1.0, epsilon=1.0, delta=1e-3))
    Sweep(tmp_path, crew=inline)(Study(base, axes(table)))
    assert "What holds under all at once" in report(tmp_path, small=True).read_text()
    final = Results.of(tmp_path).final
    worst = 100 * final.groupby(["privacy.epsilon", "byzantine", "split.alpha"])["accuracy"].min()
    shown = re.findall(r">(\d+)</text>", (tmp_path / "report" / "surface.svg").read_text())
    values = [f"{value:.0f}" for value in worst]
    assert all(shown.count(value) >= values.count(value) for value in values)
    whole = surface(Results.of(tmp_path))
    shutil.rmtree(tmp_path / final["experiment"].iloc[0])
    short = surface(Results.of(tmp_path))
    assert whole is not None
    assert short is not None
    before, after = printed(whole.figures[0]), printed(short.figures[0])
    assert (before.total(), after.total()) == (len(values), len(values) - 1)
    assert not after - before


def singly(folder: Path, *experiments: Experiment) -> None:
    """Records of runs that no sweep made."""
    for experiment in experiments:
        work(Job(experiment, folder / experiment.fingerprint), lambda word: None)


def test_the_page_says_what_is_private_and_what_all_runs_share(tmp_path: Path) -> None:
    """Epsilon, delta, unit, adjacency, accountant, sampling; and the fixed settings, above all figures."""
    privacy = (ExampleDP(clip=1.0, epsilon=epsilon, delta=1e-4) for epsilon in (2.0, 4.0))
    singly(tmp_path, *(replace(SMALL, privacy=each) for each in privacy))
    top = report(tmp_path).read_text().partition("<section")[0]
    for part in (
        "epsilon = ",
        "at delta = 0.0001",
        "unit: one example",
        "batches ",
        "outside of the guarantee",
    ):
        assert part in top.replace("Outside", "outside"), part
    for name in load(tmp_path)["experiment"].unique():
        assert escape(json.loads((tmp_path / name / "notes.json").read_text())[0]) in top
    assert "In all runs: data" in top
    assert "clients <code>" in top


def test_the_page_says_where_nothing_is_private(folder: Path) -> None:
    assert "Privacy: none" in report(folder).read_text()


def test_a_report_on_single_runs(tmp_path: Path) -> None:
    singly(tmp_path, *(replace(SMALL, method=replace(SMALL.method, lr=lr)) for lr in (0.1, 0.2)))
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert "HeavyBall(lr=0.2)" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("dealt", ("all", "honest")),
        ("attacked", ("message", "memory")),
        ("knowledge", (("own", "honest"), ("own", "honest", "rule"))),
        ("evaluate_every", (2, 4)),
    ],
)
def test_single_runs_that_differ_in_more_than_their_seed_are_not_averaged(
    field: str, values: tuple[Any, Any], tmp_path: Path
) -> None:
    base = replace(SMALL, method=ByzClip21SGD2M(lr=0.5, tau=1.0))
    singly(tmp_path, *(replace(base, **{field: value, "seed": seed}) for value in values for seed in (0, 1)))
    results = Results.of(tmp_path)
    assert results.axes == (field,)
    assert results.table()["seeds"].tolist() == [2, 2]


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    Sweep(tmp_path / "sweep", crew=inline)(Study(SMALL, axes({"rule": ["Median"], "seed": [0, 1, 2]})))
    singly(tmp_path / "single", *(replace(SMALL, seed=seed) for seed in (0, 1, 2)))
    for folder in (tmp_path / "sweep", tmp_path / "single"):
        last = Results.of(folder).final["accuracy"]
        (row,) = Results.of(folder).table().to_dict("records")
        assert (row["accuracy"], row["std"]) == pytest.approx((100 * last.mean(), 100 * last.std()))
        assert row["seeds"] == 3
        report(folder)
        assert len(pd.read_csv(folder / "report" / "table.csv")) == 1


def test_seeds_are_counted_not_runs(tmp_path: Path) -> None:
    Sweep(tmp_path, crew=inline)(Study(SMALL, axes({"rule": ["Mean", "Median"], "seed": [0, 1]})))
    results = Results.of(tmp_path)
    again = results.frame.assign(experiment=results.frame["experiment"] + "again")
    twice = replace(results, runs=(), frame=pd.concat([results.frame, again], ignore_index=True))
    assert twice.table()["seeds"].tolist() == [2, 2]


def test_figures_over_seconds_hold_what_was_measured_before(tmp_path: Path) -> None:
    """On a clock of constant paces the accuracy at a time is that of the last evaluation; the band is of the seeds."""
    timed = replace(SMALL, clock=Clock(Constant(2.0)), rounds=4, evaluate_every=2)
    for seed in (0, 1, 2):
        run(replace(timed, seed=seed), out=tmp_path / str(seed))
    results = Results.of(tmp_path)
    section = seconds(results)
    assert section is not None
    (curve,) = section.figures[0].plots.values()
    line = next(part for part in curve.figure.axes[0].get_lines())
    at, shown = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert at.min() >= 4.0
    assert at.max() == 8.0
    first = results.frame[results.frame["round"] == 2]["accuracy"].median()
    assert shown[(at >= 4.0) & (at < 8.0)] == pytest.approx(100 * first)
    assert shown[-1] == pytest.approx(100 * results.final["accuracy"].median())
    assert seconds in ALL


def test_figures_against_bits_hold_what_was_counted(tmp_path: Path) -> None:
    """Both ways is uplink and downlink; without runs that differ in bits there is no figure."""
    plain = replace(SMALL, method=HeavyBall(lr=0.1), privacy=None, rounds=4, evaluate_every=2)
    run(plain, out=tmp_path / "plain")
    assert bits(Results.of(tmp_path)) is None
    run(replace(plain, method=EF21(down=TopK(0.1))), out=tmp_path / "compressed")
    results = Results.of(tmp_path)
    section = bits(results)
    assert section is not None
    assert bits in ALL
    (plot,) = section.figures[0].plots.values()
    for panel, names in zip(
        plot.figure.axes, (["uplink_bits"], ["uplink_bits", "downlink_bits"]), strict=True
    ):
        drawn = sorted(tuple(map(tuple, line.get_xydata())) for line in panel.get_lines())
        runs = [frame for _, frame in results.frame.groupby("experiment")]
        assert drawn == sorted(tuple(zip(f[names].sum(axis=1), f["loss"], strict=True)) for f in runs)


def test_both_models_are_drawn_where_clients_hold_another(tmp_path: Path) -> None:
    """EF21-P's w lags behind x; where the broadcast is whole they are one, and one line is enough."""
    base = replace(SMALL, privacy=None, rounds=4, evaluate_every=2)
    run(replace(base, method=EF21(up=TopK(0.1))), out=tmp_path / "up")
    run(replace(base, method=EF21(up=TopK(0.2))), out=tmp_path / "more")
    section = bits(Results.of(tmp_path))
    assert section is not None
    assert not [figure for figure in section.figures if "clients hold" in figure.title]
    record = run(replace(base, method=EF21(up=TopK(0.1), down=TopK(0.1))), out=tmp_path / "both").frame
    section = bits(Results.of(tmp_path))
    assert section is not None
    (figure,) = [figure for figure in section.figures if "clients hold" in figure.title]
    (plot,) = figure.plots.values()
    drawn = sorted(tuple(line.get_ydata()) for line in plot.figure.axes[0].get_lines())
    assert drawn == sorted(tuple(record[name]) for name in ("loss", "w_loss"))
    assert drawn[0] != drawn[1]


def test_figures_against_work_count_backward_passes(tmp_path: Path) -> None:
    """A gradient and a Hessian product a round are two, and three where the Hessian is at another point."""
    base = replace(SMALL, privacy=None, rounds=4, evaluate_every=2)
    for estimator in (LastGradient(), HM(), HM(random=True)):
        run(replace(base, method=EF21(estimator)), out=tmp_path / repr(estimator))
    section = work_done(results := Results.of(tmp_path))
    assert section is not None
    assert work_done in ALL
    (plot,) = section.figures[0].plots.values()
    ends = {tuple(line.get_xdata()) for line in plot.figure.axes[0].get_lines()}
    assert ends == {(2, 4), (4, 8), (6, 12)}
    plain = replace(results, runs=results.runs[:1])
    assert work_done(plain) is None


def test_a_report_names_damaged_records_and_leaves_them_out(tmp_path: Path) -> None:
    Sweep(tmp_path, crew=inline)(Study(SMALL, axes({"rule": ["Mean", "Median", "Krum"]})))
    lines = tmp_path / replace(SMALL, rule=Krum()).fingerprint / "metrics.jsonl"
    text = tmp_path / SMALL.fingerprint / "manifest.json"
    model = tmp_path / replace(SMALL, rule=Mean()).fingerprint / "model.pt"
    for damaged in (lines, text, model):
        damaged.write_text("garbage\n")
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    for damaged in (lines, text):
        assert f"left out: {damaged}" in done.stderr
        assert f"left out: {damaged}" in page
    assert len(pd.read_csv(tmp_path / "report" / "table.csv")) == 1
    shutil.rmtree(model.parent)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    (tmp_path / "study.json").write_text("garbage\n")
    assert "study.json: not the description" in CliRunner().invoke(app, ["report", str(tmp_path)]).stderr


def test_a_report_on_nothing(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no records"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("score", "expected", "words"),
    [
        ("final", 0.5, "that at the end of a run"),
        ("best", 0.9, "the best of a run"),
        ("last 5", 0.64, "the mean of a run&#x27;s last five evaluations"),
    ],
)
def test_a_study_says_which_accuracy_counts(
    score: Score, expected: float, words: str, tmp_path: Path
) -> None:
    """In the frame, in the table and on the map; and the page says so above both."""
    Sweep(tmp_path, crew=inline)(
        Study(SMALL, axes({"rule": ["Mean", "Krum"], "attack": ["ALIE", "IPM(10)"]}), score=score)
    )
    lines = [
        {"round": t, "accuracy": a, "loss": 1.0, "seconds": 1.0}
        for t, a in enumerate([0.1, 0.9, 0.7, 0.6, 0.5, 0.5])
    ]
    for metrics in tmp_path.glob("*/metrics.jsonl"):
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = Results.of(tmp_path)
    assert list(results.final["accuracy"]) == pytest.approx([expected] * 4)
    assert list(results.table()["accuracy"]) == pytest.approx([100 * expected] * 4)
    section = robustness(results)
    assert section is not None
    (shown,) = section.figures[0].plots.values()
    assert {text.get_text() for text in shown.figure.axes[0].texts} == {f"{100 * expected:.1f}"}
    page = report(tmp_path).read_text()
    assert f"<p>In %, {words}: mean" in page
    assert f"Test accuracy in %, {words}." in page


def test_a_run_under_way_is_in_no_table(tmp_path: Path) -> None:
    Sweep(tmp_path, crew=inline)(Study(SMALL, axes({"rule": ["Mean", "Krum"], "seed": [0, 1, 2]})))
    (tmp_path / replace(SMALL, rule=Krum(), seed=2).fingerprint / "model.pt").unlink()
    results = Results.of(tmp_path)
    assert results.table()["seeds"].tolist() == [3, 2]
    assert results.frame["experiment"].nunique() == 6


def test_the_weight_of_byzantine_rows(tmp_path: Path) -> None:
    """Their share for the mean, none where Krum picks an honest row, some for an attack that hides."""
    table = {"rule": ["Mean", "Krum", "Chain(NNM, Median)"], "attack": ["IPM(100)", "ALIE"]}
    Sweep(tmp_path, crew=inline)(Study(SMALL, axes(table)))
    weight = load(tmp_path).groupby(["rule", "attack"])["byzantine_weight"].mean()
    assert weight["Mean", "IPM(100)"] == pytest.approx(1 / 8)
    assert weight["Krum", "IPM(100)"] == weight["Chain(NNM, Median)", "IPM(100)"] == 0
    assert weight["Chain(NNM, Median)", "ALIE"] > 0
    weights = np.array(load(tmp_path)["weights"].tolist())
    assert weights.shape[1] == 8
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-3)
    np.testing.assert_allclose(weights[:, 7], load(tmp_path)["byzantine_weight"], atol=1e-4)
    page = report(tmp_path).read_text()
    assert "Weight of the Byzantine rows" in page
    assert "Weight of each client" in page


def test_a_small_report_links_to_what_is_there(folder: Path, tmp_path: Path) -> None:
    page = report(folder, tmp_path, small=True).read_text()
    links = set(re.findall(r'href="([\w.-]+)"', page))
    assert links == {path.name for path in tmp_path.iterdir()} - {"index.html"}
    assert len(list(tmp_path.glob("*.svg"))) == MAIN
    assert page.count("<figure>") == (folder / "report" / "index.html").read_text().count("<figure>")


def test_a_figure_in_a_file_names_its_lines(folder: Path) -> None:
    assert ">Median</text>" in (folder / "report" / "accuracy-0.svg").read_text()
    page = (folder / "report" / "index.html").read_text()
    curves = next(figure for figure in page.split("<figure>") if "<h3>Accuracy</h3>" in figure)
    assert ">Median</text>" not in curves  # there it is a button
    assert "Median</button>" in curves


def test_what_messages_weigh(tmp_path: Path) -> None:
    """By hand: four bytes a coordinate down; four, 1.6 bits or one bit up; among peers each message to every other."""
    base = replace(SMALL, privacy=None, rounds=3, evaluate_every=3)
    d, n = Federation(base).width, base.clients
    up = (
        (HeavyBall(lr=0.1), 32 * d),
        (SignSGD(lr=0.1), 8 * (d // 5) + 2 * (d % 5)),
        (SignSGD(lr=0.1, zeros="coin"), d),
        (EF21(up=TopK(0.1)), TopK(0.1).bits(Federation(base).layout)),
    )
    want = {}
    for method, sent in up:
        e = replace(base, method=method)
        run(e, out=tmp_path / e.fingerprint)
        want[e.fingerprint] = 3 * n * (32 * d + sent) / 8e6
    peers = replace(base, method=MoNNA(lr=0.1), rule=NNA())
    run(peers, out=tmp_path / peers.fingerprint)
    want[peers.fingerprint] = 3 * n * (n - 1) * 4 * d / 1e6
    results = Results.of(tmp_path)
    found = dict(zip(results.final["experiment"], megabytes(results), strict=True))
    assert found == pytest.approx(want, rel=1e-12)


def test_a_curve_of_runs_that_all_diverged_is_drawn() -> None:
    """A record has null for what is not finite; where a run has nothing else the column is of objects."""
    runs = pd.DataFrame({"round": [1, 2], "loss": pd.Series([None, None], dtype=object)})
    svg = over_rounds("loss", [("diverged", runs)], "loss", "test loss").svg()
    assert "test loss" in svg
