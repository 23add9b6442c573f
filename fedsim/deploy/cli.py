"""`fedsim deploy`: init, check, link, device, run, up. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from fedsim.cli.guard import guarded

if TYPE_CHECKING:
    from fedsim.flower.payload import Payload as Number

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

ENDING = (signal.SIGTERM, signal.SIGHUP)

Folder = Annotated[Path, typer.Argument(help="The deployment's folder.")]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="Look for messages every 0.1 s, not every 3: changes a fixed wait inside Flower's SuperNode.",
    ),
]
RedTeam = Annotated[bool, typer.Option("--red-team", help="Allow an experiment with an attack.")]
TestMode = Annotated[
    bool,
    typer.Option(
        "--test-mode", help="Noise derived from the seed: equal to the loop engine, and no epsilon."
    ),
]
Payload = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Timeout = Annotated[float, typer.Option(help="Seconds that a round waits for answers.")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, as in method.tau=0.1; repeat."),
]
NoTls = Annotated[
    bool, typer.Option("--no-tls", help="No encryption: everybody on the way reads and changes messages.")
]
NoKeys = Annotated[
    bool, typer.Option("--no-keys", help="No device keys: whoever reaches the port can be any device.")
]


@app.callback()
def deploy() -> None:
    """Real devices over gRPC, with TLS and keys."""
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has one ignored
            signal.signal(number, _stop)


def _stop(*_: object) -> NoReturn:
    """End as with Ctrl-C, so that all that was started ends too: an owner who kills a device wants it to be gone."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # what is being stopped is stopped whole
    raise KeyboardInterrupt


@app.command()
@guarded
def init(
    folder: Folder,
    devices: Annotated[int, typer.Option(min=1, help="How many devices.")] = 5,
    host: Annotated[
        str, typer.Option(help="The name or address under which devices reach the server.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The port for devices (gRPC); the next one is for control.")
    ] = 9092,
    no_tls: NoTls = False,
    no_keys: NoKeys = False,
) -> None:
    """Make a deployment's folder: authority, server certificate, a key for each device, a Flower app, instructions."""
    from fedsim.deploy.site import Link
    from fedsim.deploy.site import init as make

    _warn(no_tls, no_keys)
    link = Link(
        host=host, port=port, control=port + 1, devices=devices, tls=not no_tls, keys=not (no_keys or no_tls)
    )
    site = make(folder, link)
    typer.echo((site.folder / "README.md").read_text())


@app.command()
@guarded
def check(
    folder: Folder, offline: Annotated[bool, typer.Option("--offline", help="Try no port.")] = False
) -> None:
    """Say what is wrong with a device's or a server's folder; exit code 2 where something is."""
    from fedsim.deploy.check import check as look

    findings = look(folder, reach=not offline)
    typer.echo("\n".join(map(str, findings)))
    if any(finding.wrong for finding in findings):
        raise typer.Exit(2)


@app.command()
@guarded
def link(folder: Folder) -> None:
    """The server: a SuperLink that devices reach by gRPC; its control port is for this machine alone."""
    from fedsim.deploy import roles
    from fedsim.deploy.site import Site

    site = Site(folder.resolve())
    command = roles.link(site)
    typer.echo(f"{command}\nregister each device once: fedsim deploy register {folder}", err=True)
    raise typer.Exit(roles.finish(command.start()))


@app.command()
@guarded
def register(folder: Folder) -> None:
    """Tell the running server the keys of its devices, and keep which node each one is."""
    from fedsim.deploy import roles
    from fedsim.deploy.site import Site

    site = Site(folder.resolve())
    nodes = roles.register_all(site)
    typer.echo("\n".join(f"device {i} is node {node}" for i, node in nodes.items()))


@app.command()
@guarded
def device(
    folder: Annotated[Path, typer.Argument(help="The device's folder.")],
    fast: Fast = False,
    no_fork_server: Annotated[
        bool, typer.Option("--no-fork-server", help="A new Python for every message, as Flower does.")
    ] = False,
) -> None:
    """A device: a SuperNode on its folder, with a fork server for its messages."""
    from contextlib import nullcontext

    from fedsim.deploy import roles

    command = roles.node(folder.resolve(), fast)
    typer.echo(str(command), err=True)
    with nullcontext(command) if no_fork_server else roles.forking(command) as ready:
        raise typer.Exit(roles.finish(ready.start()))


@app.command()
@guarded
def run(
    folder: Folder,
    what: Annotated[str, typer.Argument(metavar="RECIPE|FILE.toml|module:function", help="The experiment.")],
    changes: Set = [],
    out: Annotated[Path, typer.Option(help="Where the record goes.")] = Path("deployed"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the record's last checkpoint.")
    ] = False,
    test_mode: TestMode = False,
    red_team: RedTeam = False,
    payload: Payload = "float32",
    timeout: Timeout = 120.0,
    fast: Fast = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one last line of JSON.")] = False,
) -> None:
    """Run an experiment on the deployment whose server runs on this machine."""
    from fedsim.deploy import local
    from fedsim.deploy.site import Site
    from fedsim.deploy.trial import Trial
    from fedsim.experiments.resolve import resolve

    trial = Trial(test_mode, red_team, cast("Number", payload), timeout, fast)
    summary = local.run_there(Site(folder.resolve()), resolve(what, changes).main, trial, out, resume)
    _tell(summary, as_json)


@app.command()
@guarded
def up(
    devices: Annotated[
        int, typer.Option("--local", min=1, help="So many devices, as processes of this machine.")
    ],
    recipe: Annotated[
        str | None, typer.Option(help="Run this experiment, with as many clients, and stop.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="So many rounds.")] = None,
    changes: Set = [],
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Keep the deployment in this new folder.")
    ] = None,
    test_mode: TestMode = False,
    red_team: Annotated[bool, typer.Option(help="Run the recipe's attack, by the last client.")] = True,
    payload: Payload = "float32",
    timeout: Timeout = 60.0,
    fast: Fast = False,
    no_tls: NoTls = False,
    no_keys: NoKeys = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one last line of JSON.")] = False,
) -> None:
    """A whole deployment on this machine, for a trial: a SuperLink and N SuperNodes, stopped cleanly at the end."""
    from tempfile import TemporaryDirectory

    from fedsim.deploy import local
    from fedsim.deploy.trial import Trial

    _warn(no_tls, no_keys)
    trial = Trial(test_mode, red_team, cast("Number", payload), timeout, fast)
    with TemporaryDirectory(prefix="fedsim-") as place:
        site = local.site(
            folder or Path(place) / "site", devices, trial, tls=not no_tls, keys=not (no_keys or no_tls)
        )
        if recipe is None:
            with local.running(site, fast) as now:
                typer.echo(f"{devices} devices are up, in {site.folder}; stop with Ctrl-C")
                now.link.wait()
        else:
            from fedsim.experiments.resolve import change, resolve

            experiment = change(local.fitted(resolve(recipe).main, devices, rounds), changes)
            summary = local.try_out(site, experiment, trial)
            _tell(summary if folder else summary | {"out": None}, as_json)


def _tell(summary: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        typer.echo("\n".join(f"{name:30} {value}" for name, value in summary.items()))


def _warn(no_tls: bool, no_keys: bool) -> None:
    if no_tls:
        typer.echo(
            "fedsim: without TLS everybody on the way reads and changes all messages; keys need TLS too",
            err=True,
        )
    if no_tls or no_keys:
        typer.echo("fedsim: without keys whoever reaches the port can be any device", err=True)
