"""`fedsim bench`: how fast, and how robust, measured. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.cli.guard import guarded

app = typer.Typer(
    help="Measure speed and robustness on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
Json = Annotated[bool, typer.Option("--json", help="One line of JSON for each measurement.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads that torch may use.")]


@app.command()
@guarded
def rounds(
    workload: Annotated[
        list[str], typer.Option(help="W1 to W8; repeat, or with commas (default: all).")
    ] = [],
    count: Annotated[int, typer.Option(min=1, help="Rounds to time.")] = 20,
    threads: Threads = None,
    device: Device = "auto",
    against: Annotated[
        list[str],
        typer.Option(help="Peers beside fedsim: pfl, flower, byzfl, opacus; repeat, or with commas."),
    ] = [],
    peers: Annotated[Path, typer.Option(help="Where `fedsim bench peers` put them.")] = Path("peers"),
    limit: Annotated[
        float, typer.Option(min=1, help="Seconds for a peer and workload; then it has fewer rounds.")
    ] = 900,
    as_json: Json = False,
) -> None:
    """Seconds per round of each engine and peer, over one plain forward and backward pass."""
    from fedsim.experiments.bench.rounds import WORKLOADS, bench_rounds

    _print(
        bench_rounds(
            _split(workload) or list(WORKLOADS),
            rounds=count,
            threads=threads,
            device=device,
            against=_split(against),
            peers=peers,
            limit=limit,
        ),
        as_json,
    )


@app.command()
@guarded
def peers(
    names: Annotated[list[str], typer.Argument(help="pfl, flower, byzfl, opacus, nvflare, flgo.")],
    into: Annotated[Path, typer.Option(help="A folder; each peer gets an environment there.")] = Path(
        "peers"
    ),
) -> None:
    """Install other simulators for `bench rounds`, `devices` and `events`, each in a virtual environment of its own."""
    from fedsim.experiments.bench.against import install

    for name in names:
        install(name, into)
        typer.echo(f"{name:<10}{into / name}")


@app.command()
@guarded
def compare(
    old: Annotated[Path, typer.Argument(help="What `fedsim bench rounds --json` printed before.")],
    new: Annotated[Path, typer.Argument(help="And now.")],
    margin: Annotated[float, typer.Option(min=0, help="A change of this share does not matter.")] = 0.05,
    as_json: Json = False,
) -> None:
    """What became slower or faster, with intervals; exit code 1 where an engine of fedsim became slower."""
    from fedsim.experiments.bench.compare import bench_compare

    lines = _print(bench_compare(old, new, margin), as_json)
    if any(line["verdict"] == "slower" and line["system"].startswith("fedsim") for line in lines):
        raise typer.Exit(1)


@app.command()
@guarded
def growth(
    n: Annotated[list[int], typer.Option(min=1, help="Clients; repeat.")] = [10, 100, 1000, 10_000],
    d: Annotated[list[int], typer.Option(min=805, help="Parameters, about; repeat.")] = [
        10_000,
        100_000,
        1_000_000,
        10_000_000,
    ],
    count: Annotated[int, typer.Option(min=1, help="Rounds to time.")] = 5,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option(help="Write growth.csv and growth.svg into this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Seconds per round and peak memory as clients or parameters grow, each in a process of its own."""
    from fedsim.experiments.bench.growth import bench_growth, save_growth

    lines = _print(bench_growth(n, d, count, threads), as_json)
    if out is not None:
        save_growth(lines, out)


@app.command()
@guarded
def events(
    clients: Annotated[list[int], typer.Option(min=2, help="Clients; repeat.")] = [100, 10_000],
    count: Annotated[int, typer.Option(min=1, help="Messages in a turn.")] = 1000,
    turns: Annotated[int, typer.Option(min=1, help="Turns, the best of which counts.")] = 5,
    against: Annotated[list[str], typer.Option(help="flgo: its FedAsync on its virtual clock.")] = [],
    peers: Annotated[Path, typer.Option(help="Where `fedsim bench peers` put flgo.")] = Path("peers"),
    as_json: Json = False,
) -> None:
    """Messages a second of asynchronous methods, beside gradients worked out one by one."""
    from fedsim.experiments.bench.events import bench_events

    _print(bench_events(clients, count, turns, _split(against), peers), as_json)


@app.command()
@guarded
def absent(
    registered: Annotated[list[int], typer.Option(min=100, help="Registered clients; repeat.")] = [
        1_000,
        100_000,
    ],
    count: Annotated[int, typer.Option(min=1, help="Rounds to time.")] = 20,
    memory: Annotated[float, typer.Option(min=0, help="GiB of clients' states before they spill.")] = 1.0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Seconds per round and peak memory as more clients are registered and as many take part."""
    from fedsim.experiments.bench.absent import bench_absent

    _print(bench_absent(registered, count, memory, threads), as_json)


@app.command()
@guarded
def devices(
    n: Annotated[list[int], typer.Option(min=1, help="Devices; repeat.")] = [2, 20, 200],
    d: Annotated[list[int], typer.Option(min=1, help="Parameters; repeat.")] = [
        100_000,
        1_000_000,
        10_000_000,
    ],
    count: Annotated[int, typer.Option(min=1, help="Rounds to time.")] = 5,
    against: Annotated[
        list[str],
        typer.Option(
            help="flower: its SuperLink and SuperNodes; nvflare: its simulator; repeat, or with commas."
        ),
    ] = [],
    peers: Annotated[Path, typer.Option(help="Where `fedsim bench peers` put nvflare.")] = Path("peers"),
    memory: Annotated[float, typer.Option(min=0, help="GiB; what would take more is left out.")] = 8.0,
    as_json: Json = False,
) -> None:
    """Seconds a round of messages to devices and back, over the link of `fedsim deploy`."""
    from fedsim.experiments.bench.devices import bench_devices

    _print(bench_devices(n, d, count, _split(against), peers, memory), as_json)


@app.command()
@guarded
def bits(as_json: Json = False) -> None:
    """Bits that are counted for each compressor, and bytes that travel between a server and two devices."""
    from fedsim.experiments.bench.bits import bench_bits

    _print(bench_bits(), as_json)


@app.command()
@guarded
def rules(
    n: Annotated[list[int], typer.Option(min=1, help="Rows; repeat.")] = [10, 50, 200],
    d: Annotated[list[int], typer.Option(min=1, help="Columns; repeat.")] = [100_000, 1_000_000],
    against: Annotated[str | None, typer.Option(help="byzfl, where it is installed.")] = None,
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Seconds and extra memory of every rule, mixer and the chains behind NNM, with f = n / 5."""
    from fedsim.experiments.bench.rules import bench_rules

    _print(bench_rules(n, d, against, threads=threads or 1, device=device), as_json)


@app.command()
@guarded
def gradients(
    workload: Annotated[
        list[str],
        typer.Option(
            help="W1, W2, W5, logistic, mlp, cnn, frozen, lstm, gpt, lstm-clipped, gpt-clipped; repeat."
        ),
    ] = [
        "W1",
        "mlp",
    ],
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """All clients' gradients, plain and clipped per example, beside a loop, vmap and Opacus."""
    from fedsim.experiments.bench.gradients import bench_gradients

    _print(
        (
            line
            for name in _split(workload)
            for line in bench_gradients(name, threads=threads or 1, device=device)
        ),
        as_json,
    )


@app.command()
@guarded
def layers(
    model: Annotated[list[str], typer.Option(help="mlp, cnn; repeat, or with commas.")] = ["mlp", "cnn"],
    rule: Annotated[list[str], typer.Option(help="mean, robust (NNM and trimmed mean).")] = [
        "mean",
        "robust",
    ],
    batch: Annotated[list[int], typer.Option(min=1, help="Examples of a client; repeat.")] = [32, 128],
    method: Annotated[list[str], typer.Option(help="Muon, ClientMuon, Scion; repeat, or with commas.")] = [
        "Muon",
        "ClientMuon",
        "Scion",
    ],
    clients: Annotated[int, typer.Option(min=2, help="Clients.")] = 25,
    count: Annotated[int, typer.Option(min=1, help="Rounds to time.")] = 8,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Milliseconds and flops of a round of Muon and Scion, beside the same gradients without an oracle."""
    from fedsim.experiments.bench.layers import bench_layers

    lines = bench_layers(
        _split(model), batch, _split(rule), _split(method), clients=clients, rounds=count, threads=threads
    )
    _print(lines, as_json)


@app.command()
@guarded
def kappa(
    n: Annotated[int, typer.Option(min=3, help="Rows.")] = 20,
    d: Annotated[int, typer.Option(min=1, help="Columns.")] = 30,
    f: Annotated[
        list[int] | None, typer.Option(min=1, help="Byzantine rows; repeat (default: all below n/2).")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the table over f into this file.")] = None,
    as_json: Json = False,
) -> None:
    """The worst deviation that any attack found for each rule as f grows, beside the proven bound."""
    from fedsim.experiments.bench.kappa import bench_kappa, kappa_figure

    lines = _print(bench_kappa(n, d, f), as_json)
    if picture is not None:
        from fedsim.machine.files import writing

        with writing(picture.parent):
            kappa_figure(lines).savefig(picture, dpi=150)


def _split(words: list[str]) -> list[str]:
    """Options that were repeated, or written with commas."""
    return [part for word in words for part in word.split(",")]


def _print(lines: Iterable[dict[str, Any]], as_json: bool) -> list[dict[str, Any]]:
    """All lines, each printed as it comes: JSON, or its plain values under a header where the columns change."""
    done: list[dict[str, Any]] = []
    names: list[str] = []
    for line in lines:
        if as_json:
            typer.echo(json.dumps(line))
        else:
            shown = {name: value for name, value in line.items() if not isinstance(value, list | dict)}
            if list(shown) != names:
                names = list(shown)
                typer.echo("  ".join(f"{name:>18}" for name in names))
            typer.echo("  ".join(f"{_short(value):>18}" for value in shown.values()))
        done.append(line)
    return done


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
