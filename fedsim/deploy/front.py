"""A device's process: the link, and beside it the worker that its terms allow. Neither torch nor flwr is loaded."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Literal

from fedsim.check import Invalid
from fedsim.deploy.site import Place
from fedsim.deploy.terms import GIB, Terms
from fedsim.link import journal
from fedsim.link.answering import Installed
from fedsim.link.device import Device, device_credentials
from fedsim.link.frame import Limits
from fedsim.link.worker import Worker

Wish = Literal["stop", "reload"]
PATIENCE = 10.0  # seconds that an answer which has begun gets, where the device is to stop


def serve(folder: Path) -> None:
    """Be the device of a folder until SIGTERM or SIGINT; SIGHUP reads its terms again. Raises `Invalid`."""
    place = Place(folder.resolve())
    uplink, terms, wishes = place.uplink, place.terms, SimpleQueue[Wish]()
    for number, wish in ((signal.SIGTERM, "stop"), (signal.SIGINT, "stop"), (signal.SIGHUP, "reload")):
        signal.signal(number, lambda *_, wish=wish: wishes.put(wish))
    journal.to_stderr()
    with journal.exposed(uplink.metrics):
        while True:
            with _serving(place, uplink.server, terms):
                while (wish := wishes.get()) == "reload" and (new := _read(place)) is None:
                    pass
            if wish == "stop":
                return
            assert new is not None
            terms = new
            journal.say("terms read again")


def _read(place: Place) -> Terms | None:
    """The terms as they are now; None, said in the log, where they cannot be read."""
    try:
        return place.terms
    except Invalid as error:
        journal.say("terms not readable: the old ones stay", logging.ERROR, reason=str(error))
        return None


@contextmanager
def _serving(place: Place, server: str, terms: Terms) -> Iterator[None]:
    limits = Limits(size=terms.bytes)
    installed = Installed(
        terms.app,
        node_config={"partition-id": terms.client, "device": str(place.folder), **terms.node_config},
        run_config=terms.run_config,
        state=place.folder / "state",
        memory=int(terms.memory * GIB),
        limits=limits,
    )
    try:
        credentials = device_credentials(place.key, place.certificate, place.authority)
    except OSError as error:
        raise Invalid(
            f"{error.filename}: cannot be read ({error.strerror}): fedsim deploy check {place.folder}"
        ) from None
    worker = Worker(installed, terms.seconds)
    device = Device(server, credentials, worker, place.folder / "last", limits)
    link = Thread(target=device.forever)
    link.start()
    try:
        yield
    finally:
        device.stop(PATIENCE)
        worker.close()
        link.join()
