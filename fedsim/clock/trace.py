"""Devices as they were measured: speed, bandwidth and hours of use from a file of FedScale's kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

from fedsim.check import Count, File, Invalid
from fedsim.clock.draws import uniform
from fedsim.clock.networks import Network
from fedsim.clock.paces import Pace
from fedsim.clock.presence import NEVER, Presence
from fedsim.keys import Keys

TIMES = ("active", "inactive", "finish_time")


@dataclass(frozen=True)
class Trace(Pace, Network, Presence):
    """Each client is one of the devices of a JSON file, drawn once for a run: pace, network and presence in one.

    The file holds for each device, by name, what FedScale's traces (arXiv:2105.11367) say of it: {"computation":
    milliseconds of an example's forward pass, "communication": kilobits a second, "active": [..], "inactive": [..],
    "finish_time": seconds}. The last three may be left out: the device is always there; otherwise it is there from
    active[k] to inactive[k], again and again with period finish_time. A gradient takes 3 x `batch` x computation, as
    there. Raises `Invalid` for a file that is not of this form.
    """

    file: File
    batch: Count = 32

    def gradient_seconds(self, keys: Keys, client: int, gradient: int, now: float) -> float:
        return float(3 * self.batch * self._device(keys, client)["computation"] / 1000)

    def message_seconds(self, keys: Keys, client: int, message: int, bits: int, *, up: bool) -> float:
        return float(bits / (1000 * self._device(keys, client)["communication"]))

    def absence(self, keys: Keys, client: int, since: float, until: float) -> tuple[float, float]:
        device = self._device(keys, client)
        if "active" not in device:
            return NEVER
        period, active, inactive = (device[name] for name in ("finish_time", "active", "inactive"))
        gaps = list(
            zip(inactive, [*active[1:], active[0] + period], strict=True)
        )  # the last one is around its end
        starts = [turn * period for turn in range(int(since // period) - 1, int(until // period) + 1)]
        found = ((start + left, start + back) for start in starts for left, back in gaps if left < back)
        first = next(((left, back) for left, back in found if back > since and left <= until), NEVER)
        return max(0.0, first[0]), first[1]

    def _device(self, keys: Keys, client: int) -> dict[str, Any]:
        devices = _devices(self.file)
        return devices[int(uniform(keys, "device", client) * len(devices))]


@lru_cache(maxsize=4)
def _devices(file: str) -> list[dict[str, Any]]:
    """The devices of a trace, by order of their names."""
    try:
        table = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise Invalid(f"Trace.file = {file}: cannot be read as JSON ({error})") from None
    if not isinstance(table, dict) or not table:
        raise Invalid(f"Trace.file = {file}: must be a table of devices by name, at least one")
    for name, device in table.items():
        if why := _wrong(device):
            raise Invalid(f"Trace.file = {file}: device {name}: {why}")
    return [table[name] for name in sorted(table)]


def _wrong(device: Any) -> str:
    """What is wrong with a device; nothing where it is as it must be."""
    if not isinstance(device, dict):
        return "must be a table"
    for name in ("computation", "communication"):
        if not (_number(device.get(name)) and device[name] > 0):
            return f"{name} = {device.get(name)!r}: must be a number above 0"
    given = [name for name in TIMES if name in device]
    if not given:
        return ""
    if len(given) < len(TIMES):
        return f"has {given[0]}, and not all of {', '.join(TIMES)}"
    active, inactive, period = (device[name] for name in TIMES)
    times = [t for pair in zip(active, inactive, strict=False) for t in pair]
    fine = len(active) == len(inactive) > 0 and all(map(_number, [*times, period])) and times == sorted(times)
    if not fine or times[0] < 0 or times[-1] > period or not period > 0:
        return "active and inactive must alternate and grow from 0 to finish_time"
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
