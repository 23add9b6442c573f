"""What the link and the deployment say: one JSON object a line on standard error, and counters for Prometheus."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import Counter, Gauge, start_http_server

from fedsim.check import Invalid
from fedsim.link.frame import printable

LOG = logging.getLogger("fedsim.link")

CONNECTIONS = Counter("fedsim_link_connections", "Streams that began.", ["side"])
REFUSED = Counter("fedsim_link_refused", "Streams, frames and questions that were refused.", ["side"])
MESSAGES = Counter("fedsim_link_messages", "Whole frames.", ["side", "way"])
BYTES = Counter("fedsim_link_bytes", "Bytes of whole frames.", ["side", "way"])
ONLINE = Gauge(
    "fedsim_link_online", "Devices that are connected to this server, or whether this device is.", ["side"]
)
NODES = Gauge("fedsim_link_node_online", "Whether the device that is this node is connected.", ["node"])
ROUND = Gauge("fedsim_round", "Rounds that are over.")
ROUNDS = Gauge("fedsim_rounds", "Rounds that the experiment has.")
SET_ASIDE = Counter("fedsim_set_aside", "Answers that did not count, or did not come.", ["node"])


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields."""
    LOG.log(level, event, extra={"fields": fields})


def count(side: str, way: str, size: int) -> None:
    """One more frame of so many bytes."""
    MESSAGES.labels(side, way).inc()
    BYTES.labels(side, way).inc(size)


class JsonLines(logging.Formatter):
    """A record as one line of JSON; long values are cut."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            name: printable(value) if isinstance(value, str) else value
            for name, value in getattr(record, "fields", {}).items()
        }
        line = {
            "time": _stamp(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(line | fields)


class Sparing(logging.Filter):
    """Lets so many warnings of a kind through in a minute, then says how many were left out: no log fills a disk."""

    def __init__(self, most: int = 60) -> None:
        super().__init__()
        self._most, self._seen = most, dict[str, tuple[float, int]]()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        event = str(record.msg)[:40]
        began, count = self._seen.get(event, (0.0, 0))
        if record.created > began + 60:
            if count > self._most:
                record.__dict__["fields"] = {**getattr(record, "fields", {}), "left_out": count - self._most}
            began, count = record.created, 0
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[event] = began, count + 1
        return count < self._most


def to_stderr() -> None:
    """Write what is logged from here on to standard error, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(Sparing())
    for name in (LOG.name, "flwr"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


@contextmanager
def exposed(port: int) -> Iterator[None]:
    """In the body the counters are served as Prometheus reads them, at a port of the loopback address; 0 for none."""
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        raise Invalid(
            f"metrics = {port}: that port cannot be opened ({error.strerror}); allowed is 0 too"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
