"""What the commands run, list and show do."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from fedsim.callbacks import Callback
from fedsim.check import Component, Invalid, nearest
from fedsim.config import catalog, codec
from fedsim.dealing import deal
from fedsim.experiments import recipes
from fedsim.experiments.resolve import resolve
from fedsim.keys import Keys
from fedsim.progress import Live
from fedsim.prolong import shorter
from fedsim.record import Record, read_manifest
from fedsim.result import Result
from fedsim.runner import run
from fedsim.spec import Experiment


def run_command(
    what: str,
    changes: Sequence[str],
    seed: int | None,
    engine: str,
    device: str,
    out: Path,
    *,
    resume: bool,
    force: bool,
    memory: float,
    alone: bool,
    quiet: bool,
    logs: Mapping[str, str],
) -> dict[str, Any]:
    """Run the experiment, and what its recipe shows beside it; the summary of the experiment itself.

    logs  of tensorboard, wandb and mlflow those that are told, with the name of the project
    """
    if resume and force:
        raise Invalid("--resume goes on and --force begins anew: give one of the two")
    comparison = resolve(what, changes, seed)
    chosen = comparison.experiments()
    if alone:
        chosen = {comparison.label: comparison.main}
    if not quiet and not alone and (words := comparison.before(comparison.main)):
        typer.echo(f"{words}\n")
    name = Path(what.replace(":", "-")).stem
    width = max(map(len, chosen))
    results: dict[str, Result] = {}
    for label, experiment in chosen.items():
        own = name if label == comparison.label else f"{name}-{_slug(label)}"
        folder = out / f"{own}-{experiment.fingerprint}"
        tell = f"{label:{width}}: " if len(chosen) > 1 else ""
        goes_on, start = _found(experiment, folder, list(out.glob(f"{own}-*")), resume, force, tell)
        with Live(f"{label:{width}}", experiment.rounds, quiet) as progress:
            results[label] = run(
                experiment,
                engine=engine,
                device=device,
                out=folder,
                resume=goes_on,
                memory=memory,
                progress=progress,
                callbacks=_told(logs, folder),
                start=start,
            )
    from fedsim.experiments.report import figures  # slow to import, and of no use before

    main = results[comparison.label]
    picture = Path(main.summary["out"]) / "picture.png"
    seeded = ["--seed", str(seed)] if seed is not None else []
    command = ["fedsim", "run", what, *(word for text in changes for word in ("--set", text)), *seeded]
    figures.curves(results, picture, title=textwrap.fill(shlex.join(command), 80))
    summary = main.summary | {"picture": str(picture)}
    if not quiet:
        _print(results, summary)
        if not alone and (said := comparison.after(comparison.main)):
            typer.echo(said)
    return summary


def _told(logs: Mapping[str, str], folder: Path) -> list[Callback]:
    """The tools that are told of a run as it goes."""
    if not any(logs.values()):
        return []
    from fedsim.experiments import logs as tools

    make: dict[str, Callable[[str], Callback]] = {
        "tensorboard": lambda _: tools.TensorBoard(folder / "tensorboard"),
        "wandb": tools.WandB,
        "mlflow": tools.MLflow,
    }
    return [make[name](project) for name, project in logs.items() if project]


def _found(
    experiment: Experiment, folder: Path, others: list[Path], resume: bool, force: bool, tell: str
) -> tuple[bool, Path | None]:
    """Whether to go on with the record in the folder, and a shorter run's to go on from; says what it found.

    Raises `Invalid` where half a run is there and it was not said what to do with it.
    """

    def say(words: str) -> None:
        typer.echo(f"fedsim: {tell}{words}", err=True)

    record = Record(folder, experiment.fingerprint)
    manifest = read_manifest(folder)
    if force or (manifest is not None and manifest["fingerprint"] != experiment.fingerprint):
        return False, None  # the run itself says what is wrong
    if manifest is not None and record.finished and not record.stopped:
        say(f"finished before, and kept: {folder} (--force overwrites it)")
        return True, None
    if manifest is not None and not resume and (folder / "checkpoint.pt").exists():
        raise Invalid(f"out = {folder}: holds half a run; --resume goes on, --force begins anew")
    before = shorter(experiment, others) if resume and not (folder / "checkpoint.pt").exists() else None
    if before is None:
        return resume, None
    try:
        before.require(experiment)
    except Invalid as reason:
        say(f"begins anew: {reason}")
        return resume, None
    say(f"goes on from round {before.rounds}: {before.record.folder}")
    return resume, before.record.folder


def _slug(label: str) -> str:
    """A label as part of a folder's name."""
    return "-".join(re.findall(r"[a-z0-9]+", label.lower()))


def _print(results: dict[str, Result], summary: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for label, result in results.items():
        console.print(f"{label:{max(map(len, results))}}  {_ended(result)}")
    notes: dict[str, list[str]] = {}
    for label, result in results.items():
        for note in result.notes:
            notes.setdefault(note, []).append(label)
    for note, labels in notes.items():
        console.print(f"{labels[0]}: {note}" if note.startswith("diverged") and len(results) > 1 else note)
    console.print(f"record   {summary['out']}\npicture  {summary['picture']}")


def _ended(result: Result) -> str:
    """What a run came to, in words."""
    summary = result.summary
    words = f"accuracy {summary['accuracy']:.1%}" if summary["accuracy"] is not None else "no accuracy"
    if summary["accuracy"] is None and summary["loss"] is not None:
        words = f"loss {summary['loss']:.4g}"
    return words + (", diverged" if summary["diverged"] else "")


def list_command(kind: str | None) -> str:
    """Names and first lines of the components of a kind, or of all kinds, and of the recipes."""
    kinds = [*catalog.KINDS, "recipes"]
    if kind is not None and kind not in kinds:
        raise Invalid(f"kind = {kind!r}: unknown; {nearest(kind, kinds)}")
    blocks = []
    for each in [kind] if kind else kinds:
        members: dict[str, Any] = _recipes() if each == "recipes" else dict(catalog.names(each))
        width = max(map(len, members), default=0)
        blocks.append(
            "\n".join([each, *(f"  {name:{width}}  {_first_line(m)}" for name, m in members.items())])
        )
    return "\n\n".join(blocks)


def show_command(
    what: str, of: str | None, changes: Sequence[str], seed: int | None, out: Path | None
) -> str:
    if what == "split":
        if of is None:
            raise Invalid("show split: whose? name an experiment, as in fedsim show split mnist_robust")
        return _show_split(of, changes, seed, out)
    by_lower = {name.lower(): component for name, component in catalog.everything().items()}
    if what.lower() in by_lower:
        return _show_component(by_lower[what.lower()])
    if what in _recipes() or ":" in what or what.endswith(".toml"):
        experiment = resolve(what, changes, seed).main
        return f"# {what}, fingerprint {experiment.fingerprint}\n{experiment.to_toml()}"
    hint = nearest(what, [*_recipes(), *catalog.everything(), "split"])
    hint = "fedsim list shows all names" if hint.startswith("allowed") else hint
    raise Invalid(f"show {what!r}: unknown; {hint}")


def _show_split(of: str, changes: Sequence[str], seed: int | None, out: Path | None) -> str:
    from fedsim.datasets.describe import heterogeneity, table
    from fedsim.experiments.report import figures

    experiment = resolve(of, changes, seed).main
    dataset = experiment.task.data.load()
    shards = deal(experiment, dataset, Keys(experiment.seed, experiment.clients))
    labels = dataset.train.y.numpy()
    counts = table(labels, shards, dataset.classes)
    path = out or Path(f"split-{experiment.fingerprint}.png")
    figures.split(counts.drop(columns="examples"), path, title=f"fedsim show split {of}")
    measured = heterogeneity(labels, shards, dataset.classes)
    if measured.entropy.max() == 0 and counts.shape[1] == 2:  # no classes, of one example each
        return f"{counts.to_string()}\nimbalance of sizes {measured.imbalance:.3f}\npicture  {path}"
    return (
        f"{counts.to_string()}\n"
        f"entropy of labels {measured.entropy.mean():.3f} bits a client (of {math.log2(dataset.classes):.3f}), "
        f"pairwise variation {measured.variation:.3f}, divergence {measured.divergence:.3f} bits, "
        f"imbalance of sizes {measured.imbalance:.3f}\npicture  {path}"
    )


def _show_component(component: type[Component]) -> str:
    fields = [f"  {f.name}: {f.type}" + _default(f) for f in dataclasses.fields(component)]
    return "\n".join(
        [
            component.__name__,
            inspect.getdoc(component) or "",
            "",
            "fields" if fields else "no fields",
            *fields,
        ]
    )


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else f" = {codec.encode(field.default)!r}"


def _recipes() -> dict[str, Any]:
    return {name: getattr(recipes, name) for name in sorted(recipes.__all__)}


def _first_line(member: Any) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0]
