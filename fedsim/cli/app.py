"""The command line. Nothing heavy is imported before a command needs it: `fedsim --help` answers at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
import typer.core

import fedsim
from fedsim.cli.guard import guarded
from fedsim.deploy.cli import app as deploy
from fedsim.experiments.bench.cli import app as bench
from fedsim.machine.malloc import MEMORY, uncollected

typer.core.HAS_RICH = (
    False  # plain help throughout: with it, brackets are escaped for a renderer that is not in use
)
app = typer.Typer(
    help="Federated learning that survives malicious participants and keeps data private.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(deploy, name="deploy")
app.add_typer(bench, name="bench")

DIVERGED = 3  # exit code of a run whose model is of no use

Set = Annotated[
    list[str],
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, as in method.tau=0.1; repeat."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one last line of JSON.")]
Seed = Annotated[int | None, typer.Option(help="The experiment's seed.")]
What = Annotated[str, typer.Argument(metavar="RECIPE|FILE.toml|module:function", help="The experiment.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedsim {fedsim.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@guarded
def run(
    what: What,
    changes: Set = [],
    engine: Annotated[
        str, typer.Option(help="loop (the specification) or vector; grid or ray through Flower.")
    ] = "vector",
    ray_address: Annotated[
        str | None, typer.Option(help="With --engine ray: join this Ray cluster, as in auto or HOST:6379.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Seed = None,
    out: Annotated[Path, typer.Option(help="Where records go, a folder for each experiment.")] = Path("runs"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the last checkpoint, or from a finished run of fewer rounds."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew where a run is there already, and overwrite it.")
    ] = False,
    memory: Annotated[
        float,
        typer.Option(
            min=0, help="GiB that clients' states and a round's rows may take; beyond that they lie in files."
        ),
    ] = MEMORY,
    alone: Annotated[
        bool, typer.Option("--alone", help="Leave out what a recipe shows beside its experiment.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write event files, into the record's folder.")
    ] = False,
    wandb: Annotated[
        str, typer.Option(metavar="PROJECT", help="Also tell Weights & Biases, in this project.")
    ] = "",
    mlflow: Annotated[
        str, typer.Option(metavar="EXPERIMENT", help="Also tell MLflow, in its experiment of this name.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Run an experiment and leave its record, with a picture, in OUT; exit code 3 where it diverged."""
    if ray_address is not None and engine != "ray":
        from fedsim.check import Invalid

        raise Invalid(
            f"ray_address = {ray_address!r} with engine = {engine!r}: allowed only with engine = 'ray'"
        )
    if ray_address is not None:
        os.environ["RAY_ADDRESS"] = ray_address
    from fedsim.cli.run import run_command

    summary = run_command(
        what,
        changes,
        seed,
        engine,
        device,
        out,
        resume=resume,
        force=force,
        memory=memory,
        alone=alone,
        quiet=as_json,
        logs={"tensorboard": "yes" if tensorboard else "", "wandb": wandb, "mlflow": mlflow},
    )
    if as_json:
        typer.echo(json.dumps(summary))
    if summary["diverged"]:
        raise typer.Exit(DIVERGED)


@app.command()
@guarded
def sweep(
    what: Annotated[
        str, typer.Argument(metavar="STUDY|RECIPE|FILE.toml|module:function", help="The study, or its base.")
    ],
    changes: Set = [],
    over: Annotated[
        list[str],
        typer.Option(metavar="PATH=V;V", help="One more axis, as in 'rule=Median;Krum'; repeat."),
    ] = [],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at once (default: one a core, one on a GPU).")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Run on this Ray cluster, as in auto or ray://HOST:10001.")
    ] = None,
    engine: Annotated[str, typer.Option(help="loop (the specification) or vector.")] = "vector",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Where sweeps go, a folder for each study.")] = Path("sweeps"),
    reduced: Annotated[bool, typer.Option("--reduced", help="The study's own smaller setting.")] = False,
    as_json: Json = False,
) -> None:
    """Run all experiments of a study, many at once; the same command again does only what is missing."""
    from fedsim.cli.sweep import sweep_command

    summary = sweep_command(
        what, changes, over, workers, ray_address, engine, device, out, reduced=reduced, quiet=as_json
    )
    if as_json:
        typer.echo(json.dumps(summary))
    if summary["failures"]:
        raise typer.Exit(1)


@app.command()
@guarded
def report(
    folder: Annotated[Path, typer.Argument(help="A folder of records, of fedsim sweep or fedsim run.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it; by default FOLDER/report.")] = None,
    small: Annotated[bool, typer.Option(help="The page, the table and a few figures.")] = False,
    png: Annotated[bool, typer.Option(help="Each figure as PNG beside its SVG.")] = False,
) -> None:
    """Write a report: one page that needs nothing else, the figures as files, the table as CSV and LaTeX."""
    with uncollected():
        from fedsim.experiments.report.report import report

        page = report(folder, out, small, png, tell=lambda line: typer.echo(f"fedsim: {line}", err=True))
    typer.echo(f"page     {page}")


@app.command(name="list")
@guarded
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="rules, mixers, attacks, methods, splits, datasets, models, …")
    ] = None,
) -> None:
    """What there is, by kind, each with its first line."""
    from fedsim.cli.run import list_command

    typer.echo(list_command(kind))


@app.command()
@guarded
def show(
    what: Annotated[
        str, typer.Argument(help="An experiment as for run, a component's name, or the word split.")
    ],
    of: Annotated[
        str | None, typer.Argument(metavar="[EXPERIMENT]", help="After split: whose split.")
    ] = None,
    changes: Set = [],
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Write the picture of a split to this file.")] = None,
) -> None:
    """An experiment's definition as TOML, a component's documentation, or a split as a table and a picture."""
    from fedsim.cli.run import show_command

    typer.echo(show_command(what, of, changes, seed, out))


@app.command()
@guarded
def audit(
    what: What,
    changes: Set = [],
    seed: Seed = None,
    runs: Annotated[int, typer.Option(min=100, help="Runs to tell apart.")] = 2000,
    true_noise_factor: Annotated[
        float,
        typer.Option(
            min=0, help="Draw this times the noise that the ledger believes in: a negative control."
        ),
    ] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Try to break a recipe's privacy (or that of "quick"); exit code 1 where a fault is seen."""
    from dataclasses import asdict

    from fedsim.experiments.audit.command import audit_command

    verdict = audit_command(what, changes, seed, runs, true_noise_factor, device)
    typer.echo(json.dumps(asdict(verdict)) if as_json else verdict)
    if not verdict.passed:
        raise typer.Exit(1)
