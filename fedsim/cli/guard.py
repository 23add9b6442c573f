"""What every command of the command line does with bad input, and with a user who stops it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Bad input: one sentence and exit code 2. Stopped by the user: exit code 130."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from fedsim.check import Invalid

        try:
            command(*args, **kwargs)
        except Invalid as error:
            typer.echo(f"fedsim: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("fedsim: stopped; the same command goes on from here (run: with --resume)", err=True)
            raise typer.Exit(130) from None

    return run
