"""`fedsim deploy`: real devices. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from fedsim.check import Invalid
from fedsim.cli.guard import guarded

if TYPE_CHECKING:
    from fedsim.flower.payload import Payload as Number

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

Folder = Annotated[Path, typer.Argument(help="The deployment's folder.")]
Either = Annotated[Path, typer.Argument(help="A deployment's folder, or a device's.")]
RedTeam = Annotated[bool, typer.Option("--red-team", help="Allow an experiment with an attack.")]
TestMode = Annotated[
    bool,
    typer.Option(
        "--test-mode", help="Noise derived from the seed: equal to the loop engine, and no epsilon."
    ),
]
Payload = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Timeout = Annotated[float, typer.Option(help="Seconds that a round waits for answers.")]
Json = Annotated[bool, typer.Option("--json", help="Print one last line of JSON.")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, as in method.tau=0.1; repeat."),
]


@app.callback()
def deploy() -> None:
    """Real devices by gRPC, each known by its certificate."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)


def _stop(*_: object) -> NoReturn:
    """End as with Ctrl-C, so that all that was started ends too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is being stopped is stopped whole
    raise KeyboardInterrupt


@app.command()
@guarded
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    host: Annotated[
        str, typer.Option(help="The name or address under which devices reach the server.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port for devices.")] = 9092,
    invitation: Annotated[
        Path | None,
        typer.Option("--join", help="Make a device's folder, for the deployment of this invitation.toml."),
    ] = None,
    client: Annotated[int, typer.Option(min=0, help="Device: its id in every experiment.")] = 0,
    data: Annotated[
        str, typer.Option(help='Device: a file, module:function, or "partition" for a trial.')
    ] = "partition",
    epsilon: Annotated[
        str | None, typer.Option(help='Device: its privacy budget over all runs, or "none".')
    ] = None,
    delta: Annotated[str | None, typer.Option(help="Device: the delta of its budget.")] = None,
    metrics: Annotated[
        int | None,
        typer.Option(
            help="The port of the loopback address that Prometheus and `status` read, 0: none. 9464 for a server, none "
            "for a device."
        ),
    ] = None,
) -> None:
    """Make a deployment's folder, or with --join a device's, with a key of its own and a request for a certificate."""
    from fedsim.deploy import enrol
    from fedsim.deploy.site import Link
    from fedsim.deploy.terms import Terms

    if invitation is None:
        read = {} if metrics is None else {"metrics": metrics}
        site = enrol.init(folder, Link(host=host, port=port, **read))
        typer.echo((site.folder / "README.md").read_text())
        return
    if epsilon is None:
        epsilon = typer.prompt(
            'Privacy budget epsilon, over all runs ("none": none)', default="", show_default=False
        )
    if delta is None and epsilon != "none":
        delta = typer.prompt("delta, the experiments' own", default="", show_default=False)
    if Path(data).is_file():  # where the command is given; otherwise from the device's folder on
        data = str(Path(data).resolve())
    budget = {"epsilon": _number("epsilon", epsilon), "delta": _number("delta", delta or "none")}
    key = enrol.join(folder, invitation, Terms(client=client, data=data, **budget), metrics or 0)  # type: ignore[arg-type]
    typer.echo(f"{folder / 'request.csr'} goes to whoever runs the server, who must see this key:\n{key}")


def _number(name: str, text: str | None) -> float | None:
    try:
        return None if text == "none" else float(text or "")
    except ValueError:
        raise Invalid(f"{name} = {text!r}: must be a number, or none") from None


@app.command()
@guarded
def add(folder: Folder, request: Annotated[Path, typer.Argument(help="A device's request.csr.")]) -> None:
    """Let a device in: sign its request, and have the server know its key."""
    from fedsim.deploy import enrol
    from fedsim.deploy.site import Site

    client, key, certificate = enrol.add(Site(folder.resolve()), request)
    typer.echo(f"client {client}, with this key; its owner must have read out the same:\n{key}")
    typer.echo(f"{certificate} goes to the device, as device.crt")


@app.command()
@guarded
def revoke(
    folder: Folder, client: Annotated[int, typer.Argument(help="The client whose device goes.")]
) -> None:
    """Shut a device out, now and for good: a server that runs ends its stream within a second."""
    from fedsim.deploy.site import Site

    typer.echo(f"client {client}: revoked {Site(folder.resolve()).registry.revoke(client)}")


@app.command()
@guarded
def renew(
    folder: Either,
    client: Annotated[
        int | None, typer.Argument(help="Of this client's device; of the server without.")
    ] = None,
) -> None:
    """A new certificate: for a device, for the server, or, in a device's folder, a new key and a request for one."""
    from fedsim.deploy import enrol
    from fedsim.deploy.site import Place, Site

    if (folder / "uplink.toml").exists():
        place = Place(folder.resolve())
        place.key.unlink(missing_ok=True)
        key = enrol.ask(place, place.terms.client)
        typer.echo(f"a new key; have the old one revoked, and then {place.request} signed:\n{key}")
        return
    path = enrol.renew(Site(folder.resolve()), client)
    typer.echo(
        f"{path}" + ("; start the server again" if client is None else " goes to the device, as device.crt")
    )


@app.command()
@guarded
def check(
    folder: Either, offline: Annotated[bool, typer.Option("--offline", help="Try no port.")] = False
) -> None:
    """Say what is wrong with a device's or a server's folder; exit code 2 where something is."""
    from fedsim.deploy.check import check as look

    findings = look(folder, reach=not offline)
    typer.echo("\n".join(map(str, findings)))
    if any(finding.wrong for finding in findings):
        raise typer.Exit(2)


@app.command()
@guarded
def status(folder: Either) -> None:
    """How the server and its devices are, or a device and its budget."""
    from fedsim.deploy.status import status as look

    typer.echo("\n".join(look(folder)))


@app.command()
@guarded
def device(folder: Annotated[Path, typer.Argument(help="The device's folder.")]) -> None:
    """Be a device, until SIGTERM or Ctrl-C; SIGHUP reads its terms again."""
    from fedsim.deploy.front import serve

    serve(folder)


@app.command()
@guarded
def run(
    folder: Folder,
    what: Annotated[
        str,
        typer.Argument(metavar="RECIPE|FILE.toml|module:name", help="The experiment, or a Flower ServerApp."),
    ],
    changes: Set = [],
    out: Annotated[Path, typer.Option(help="Where the record goes.")] = Path("deployed"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the record's last checkpoint.")
    ] = False,
    test_mode: TestMode = False,
    red_team: RedTeam = False,
    payload: Payload = "float32",
    timeout: Timeout = 120.0,
    devices: Annotated[int, typer.Option(min=1, help="ServerApp: begin once so many devices are there.")] = 2,
    as_json: Json = False,
) -> None:
    """Serve the deployment's devices, run an experiment on them, and end."""
    from fedsim.deploy.server import run_what
    from fedsim.deploy.site import Site
    from fedsim.deploy.trial import Trial

    trial = Trial(test_mode, red_team, cast("Number", payload), timeout)
    summary = run_what(Site(folder.resolve()), what, changes, trial, out, resume, devices)
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
    as_json: Json = False,
) -> None:
    """A whole deployment on this machine, for a trial: a server and N devices, stopped cleanly at the end."""
    from tempfile import TemporaryDirectory

    from fedsim.deploy import local
    from fedsim.deploy.trial import Trial

    trial = Trial(test_mode, red_team, cast("Number", payload), timeout)
    with TemporaryDirectory(prefix="fedsim-") as place:
        yard = local.prepare(folder or Path(place) / "site", devices, trial=trial)
        if recipe is None:
            with local.running(yard):
                typer.echo(
                    f"{devices} devices are up: fedsim deploy run {yard.site.folder} ...; stop with Ctrl-C"
                )
                signal.pause()
        else:
            from fedsim.experiments.resolve import change, resolve

            experiment = change(local.fitted(resolve(recipe).main, devices, rounds), changes)
            summary = local.try_out(yard, experiment, trial)
            _tell(summary if folder else summary | {"out": None}, as_json)


def _tell(summary: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        typer.echo("\n".join(f"{name:30} {value}" for name, value in summary.items()))
