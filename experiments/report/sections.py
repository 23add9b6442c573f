"""What a report shows of results: each section where the runs have what it takes, with its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import pandas as pd
from pandas.api.types import is_numeric_dtype

from fedsim.check import Invalid
from fedsim.datasets.describe import table
from fedsim.dealing import deal
from fedsim.experiments.load import expression
from fedsim.experiments.report import plots
from fedsim.experiments.report.canvas import Plot
from fedsim.experiments.report.results import MANY, Results
from fedsim.keys import Keys
from fedsim.types import Data, Dataset

SPLITS = 6  # at most so many splits are drawn

Drawn = Callable[[str, list[tuple[str, pd.DataFrame]], str, str], Plot]


@dataclass(frozen=True)
class Figure:
    """One figure; where it has several parts a reader chooses among them by name."""

    title: str
    caption: str
    plots: Mapping[str, Plot]
    experiments: Sequence[str]


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    figures: Sequence[Figure]


def missing(results: Results) -> int:
    """Cells of a sweep without a finished run."""
    cells = [cell["experiment"] for cell in results.study.get("cells", [])]
    return sum(not (results.folder / name / "model.pt").exists() for name in cells)


def rounds(results: Results) -> Section:
    figures = []
    if results.of_classes:
        figures.append(over_rounds(results, "accuracy", "test accuracy, %", "Accuracy"))
    if results.frame["loss"].notna().any():
        figures.append(over_rounds(results, "loss", "test loss", "Loss"))
    return Section("Over rounds", "Each line is the mean over seeds.", figures)


def seconds(results: Results) -> Section | None:
    """What is reached when, on the clock of the experiments that have one."""
    if "simulated_seconds" not in results.frame or results.frame["simulated_seconds"].isna().all():
        return None
    shown = {"accuracy": ("test accuracy, %", "Accuracy"), "loss": ("test loss", "Loss")}
    shown["gradient_norm"] = ("‖∇f‖²", "Squared norm of the gradient of the training loss")
    known = {m: words for m, words in shown.items() if m in results.frame and results.frame[m].notna().any()}
    figures = [
        _over(results, metric, f"{metric}-seconds", label, f"{title} over seconds", plots.over_seconds)
        for metric, (label, title) in known.items()
    ]
    return Section(
        "Over simulated seconds",
        "Each line is the median over seeds, in a band of the middle half; seconds are those of the clock.",
        figures,
    )


def bits(results: Results) -> Section | None:
    """Loss and accuracy against bits, where runs differ in how many they send."""
    if "uplink_bits" not in results.frame:
        return None
    known = results.frame[results.frame["uplink_bits"].notna()]
    if known.empty or known.groupby("round")["uplink_bits"].nunique().max() < 2:
        return None
    figures = [_over(results, "loss", "loss-bits", "test loss", "Loss against bits", plots.over_bits)]
    if results.of_classes:
        title = "Accuracy against bits"
        figures.append(
            _over(results, "accuracy", "accuracy-bits", "test accuracy, %", title, plots.over_bits)
        )
    held = _held(results)
    if held is not None:
        title = "Loss of the server's model and of the one that clients hold, against bits"
        figures.append(_over(held, "loss", "loss-held", "test loss", title, plots.over_bits))
    text = "Each line is the mean over seeds; bits are those of a client so far, counted, headers aside."
    return Section("Against bits", text, figures)


def _held(results: Results) -> Results | None:
    """Runs whose broadcast is not the model that is evaluated, twice: with the loss of x, and of what clients hold."""
    frames = []
    for run in results.runs:
        sent, frame = run.experiment.method.sends, results.frame
        mine = frame[frame["experiment"] == run.record.fingerprint]
        if f"{sent}_loss" in mine and not mine[f"{sent}_loss"].equals(mine["loss"].rename(f"{sent}_loss")):
            frames += [mine.assign(held="x"), mine.assign(held=sent, loss=mine[f"{sent}_loss"])]
    if not frames:
        return None
    return replace(results, frame=pd.concat(frames, ignore_index=True), axes=(*results.axes, "held"))


def work(results: Results) -> Section | None:
    """Loss and accuracy against backward passes, where runs differ in how many a round takes."""
    each = {run.record.fingerprint: run.experiment.method.backprops for run in results.runs}
    if len(set(each.values())) < 2:
        return None
    passes = results.frame["round"] * results.frame["experiment"].map(each)
    counted = replace(results, frame=results.frame.assign(backprops=passes))
    draw = partial(plots.over_rounds, along="backprops")
    figures = [_over(counted, "loss", "loss-backprops", "test loss", "Loss against backprops", draw)]
    if results.of_classes:
        title = "Accuracy against backprops"
        figures.append(_over(counted, "accuracy", "accuracy-backprops", "test accuracy, %", title, draw))
    return Section(
        "Against work", "Each line is the mean over seeds; backward passes of a client so far.", figures
    )


def diagnostics(results: Results) -> Section | None:
    """How the rule fares against the adversary, round by round."""
    metrics = {
        "deviation": ("‖aggregate - honest mean‖", "Distance of the aggregate to the honest mean"),
        "byzantine_weight": ("weight", "Weight of the Byzantine rows in the aggregate"),
        "honest_norm": ("‖honest mean‖", "Length of the honest mean"),
    }
    known = {
        m: words for m, words in metrics.items() if m in results.frame and results.frame[m].notna().any()
    }
    if not known:
        return None
    figures = [over_rounds(results, metric, label, title) for metric, (label, title) in known.items()]
    if "weights" in results.frame and results.frame["weights"].notna().any():
        figures.append(_weights(results))
    return Section(
        "Inside the rounds", "What the rule saw and made of it, in the rounds that were evaluated.", figures
    )


def privacy(results: Results) -> Section | None:
    """Accuracy against epsilon, where runs differ in it."""
    axis = next((a for a in results.axes if _decides(results, a, "privacy.epsilon")), None)
    if (
        not results.of_classes
        or axis is None
        or "epsilon" not in results.final
        or results.final["epsilon"].isna().all()
    ):
        return None
    line = next((a for a in (results.line_axis, *results.axes) if a and a != axis), None)
    parts = dict[str, Plot]()
    for number, (name, last) in enumerate(results.panels((axis, line), results.final)):
        parts[name] = plots.privacy_utility(f"privacy-{number}", list(results.lines(last, line)))
    caption = (
        f"Accuracy is {results.scored}. Epsilon is what the accountant stands behind, at the delta of the run; bars: "
        "lowest to highest seed."
    )
    shown = Figure("Accuracy against epsilon", caption, parts, list(results.final["experiment"]))
    return Section("Privacy and utility", "What a budget buys.", [shown])


def surface(results: Results) -> Section | None:
    """Privacy, robustness and heterogeneity in one figure, in the worst case over attacks."""
    f, split = results.axis("byzantine", "f"), results.axis("split")
    epsilon = next((a for a in results.axes if _decides(results, a, "privacy.epsilon")), None)
    if not results.of_classes or f is None or split is None or epsilon is None:
        return None
    down = next((a for a in (results.axis("method"), results.axis("rule")) if a), None)
    over = [axis for axis in results.axes if axis not in (down, f, split, epsilon)]
    values = {axis: results.final[axis].unique() for axis in (f, split, epsilon)}
    tables = dict[tuple[str, str], pd.DataFrame]()
    for title, part in results.lines(results.final, down):
        cells = _worst(part, [epsilon, f, split], over).unstack(split)
        for value in values[epsilon]:
            rows = pd.MultiIndex.from_product([[value], values[f]], names=[epsilon, f])
            shown = cells.reindex(index=rows, columns=values[split])
            tables[title, f"epsilon {value}"] = shown.droplevel(epsilon)
    figure = Figure(
        f"{f} by {split} by {epsilon}",
        f"Test accuracy in %, {results.scored}, in the worst case over all other axes.",
        {"": plots.surface("surface", tables)},
        list(results.final["experiment"]),
    )
    return Section("Privacy, robustness and heterogeneity", "What holds under all at once.", [figure])


def robustness(results: Results) -> Section | None:
    """Heat maps: attack x rule, and f x heterogeneity in the worst case over attacks."""
    attack, rule = results.axis("attack"), results.axis("rule")
    f, split = results.axis("byzantine", "f"), results.axis("split")
    figures = []
    if not results.of_classes:
        return None
    if attack and (rule or results.axis("method")):
        rows = rule or results.axis("method")
        figures.append(_heat(results, "attack-rule", rows, attack, None))
    if f and split:
        figures.append(_heat(results, "f-split", f, split, attack))
    return Section("Robustness", "Mean accuracy in %, over seeds.", figures) if figures else None


def cost(results: Results) -> Section | None:
    """Accuracy against seconds and the bytes of all messages, as they were counted."""
    if not results.of_classes or "uplink_bits" not in results.final:
        return None
    final = results.final.assign(megabytes=megabytes(results))
    plot = plots.cost("cost", list(results.lines(final, results.line_axis)))
    caption = (
        "One point a run. Bytes are those of all clients, both ways, of messages as they are compressed; among peers "
        "of each message to every other one. Without headers. Seconds are those of this machine."
    )
    return Section(
        "Cost",
        "What an accuracy costs.",
        [Figure("Accuracy against cost", caption, {"": plot}, list(final["experiment"]))],
    )


def splits(results: Results) -> Section | None:
    """Who holds what, as far as the data are at hand."""
    parts, prints = dict[str, Plot](), []
    for run in results.runs:
        experiment = run.experiment
        label = f"{expression(experiment.split)}, {experiment.clients} clients, seed {experiment.seed}"
        if label in parts or len(parts) == SPLITS:
            continue
        try:
            dataset = _dataset(experiment.task.data)
            shards = deal(experiment, dataset, Keys(experiment.seed, experiment.clients))
        except Invalid:
            continue
        counts = table(dataset.train.y.numpy(), shards, dataset.classes).drop(columns="examples")
        parts[label] = plots.split(f"split-{len(parts)}", counts)
        prints.append(run.record.fingerprint)
    if not parts:
        return None
    caption = "Clients without examples are Byzantine ones who need none."
    return Section(
        "Data",
        "How the training examples are dealt.",
        [Figure("Examples by client and class", caption, parts, prints)],
    )


ALL: tuple[Callable[[Results], Section | None], ...] = (
    surface,
    privacy,
    robustness,
    rounds,
    seconds,
    bits,
    work,
    diagnostics,
    cost,
    splits,
)


# ---------------------------------------------------------------- parts
def over_rounds(results: Results, metric: str, label: str, title: str, log: bool = True) -> Figure:
    """A metric over rounds."""
    return _over(results, metric, metric, label, title, partial(plots.over_rounds, log=log))


def _over(results: Results, metric: str, name: str, label: str, title: str, plot: Drawn) -> Figure:
    """A metric over an axis; all cells in one figure where they are few, otherwise a part for each setting."""
    known = results.frame[results.frame[metric].notna()]
    if plot is plots.over_seconds:
        known = known[known["simulated_seconds"].notna()]
    if plot is plots.over_bits:
        known = known[known["uplink_bits"].notna()]
    cells = list(known.groupby(list(results.axes), sort=False)) if results.axes else []
    parts = dict[str, Plot]()
    if 0 < len(cells) <= MANY:
        lines = [(", ".join(map(str, values)), runs) for values, runs in cells]
        parts[""] = plot(name, lines, metric, label)
    else:
        for number, (part_name, part) in enumerate(results.panels((results.line_axis,), known)):
            if len(part):
                lines = list(results.lines(part, results.line_axis))
                parts[part_name] = plot(f"{name}-{number}", lines, metric, label)
    return Figure(title, "", parts, list(known["experiment"].unique()))


def _weights(results: Results) -> Figure:
    """Who was filtered: the weight of each client, a mean over the evaluated rounds and the seeds."""
    known = results.frame[results.frame["weights"].notna()]
    counts = {run.record.fingerprint: run.experiment.honest for run in results.runs}
    parts = dict[str, Plot]()
    for number, (name, part) in enumerate(results.panels((results.line_axis,))):
        if len(part := part[part.index.isin(known.index)]):
            groups = list(results.lines(part, results.line_axis))
            rows = {title: pd.DataFrame(runs["weights"].tolist()).mean() for title, runs in groups}
            table = pd.DataFrame(rows).T.rename_axis(results.line_axis)
            honest = [counts[runs["experiment"].iloc[0]] for _, runs in groups]
            parts[name] = plots.weights(f"weights-{number}", table, honest)
    caption = (
        "The mean over the evaluated rounds and the seeds, times n: 1 as in the plain mean, 0 filtered out."
    )
    return Figure(
        "Weight of each client in the aggregate", caption, parts, list(known["experiment"].unique())
    )


def _heat(results: Results, name: str, rows: str | None, columns: str, worst: str | None) -> Figure:
    """Accuracy by two axes, one part for each setting of the others; `worst` is an axis of which the worst counts."""
    assert rows is not None
    parts = dict[str, Plot]()
    for number, (part_name, last) in enumerate(results.panels((rows, columns, worst), results.final)):
        values = _worst(last, [rows, columns], [worst] if worst else []).unstack(columns)
        values = values.reindex(list(dict.fromkeys(last[rows])))[list(dict.fromkeys(last[columns]))]
        if columns.partition(".")[0] == "attack":
            values["worst"] = values.min(axis=1, skipna=False)
        label = f"worst case over {worst}" if worst else ""
        parts[part_name] = plots.heat(f"{name}-{number}", values, rows, columns, label)
    title = f"{rows} by {columns}" + (f", worst case over {worst}" if worst else "")
    return Figure(title, f"Test accuracy in %, {results.scored}.", parts, list(results.final["experiment"]))


def _worst(runs: pd.DataFrame, keys: list[str], over: list[str]) -> pd.Series:
    """Accuracy in %, the worst case over some axes; nan where a setting of theirs is missing that these runs have."""
    means = 100 * runs.groupby([*keys, *over], sort=False)["accuracy"].mean()
    return means.unstack(over).min(axis=1, skipna=False) if over else means


def _decides(results: Results, axis: str, field: str) -> bool:
    """Whether the axis sets a field to several values, one for each of its own."""
    frame = results.frame
    if field not in frame or not is_numeric_dtype(frame[field]) or frame[field].nunique() < 2:
        return False
    values = frame.groupby(axis)[field]
    return bool((values.nunique() == 1).all() and values.first().nunique() > 1)


def megabytes(results: Results) -> pd.Series:
    """Of all clients of each run, both ways: what one of those who take part in a round sends and is told, times k."""
    final, runs = results.final, {run.record.fingerprint: run.experiment for run in results.runs}
    up, down = (final[name].astype(float) for name in ("uplink_bits", "downlink_bits"))
    k = final["experiment"].map(lambda run: runs[run].active)
    among_peers = final["experiment"].map(lambda run: runs[run].method.peer)
    return (k * up * (k - 1)).where(among_peers, k * (up + down)) / 8e6


@lru_cache(maxsize=1)
def _dataset(data: Data) -> Dataset:
    return data.load()
