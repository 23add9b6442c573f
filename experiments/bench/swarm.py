"""Many light devices in one process, for `fedsim bench devices`: fronts as threads, which send back what they get.

python -m fedsim.experiments.bench.swarm FOLDER COUNT
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from fedsim.deploy.site import Place
from fedsim.link.device import Device, device_credentials
from fedsim.link.frame import Limits, header_of, seal


def echo(frame: bytearray, seconds: float) -> bytes:
    """The arrays that came."""
    header, body = header_of(frame, Limits())
    return b"".join(seal({"records": header["records"]}, [body]))


def main(folder: Path, n: int) -> None:
    """Be n devices of a deployment on this machine, once a line came, until the end of the standard input."""
    threading.stack_size(1 << 19)
    devices = []
    for i in range(n):
        place = Place(folder / "devices" / str(i))
        secret = device_credentials(place.key, place.certificate, place.authority)
        devices.append(Device(place.uplink.server, secret, echo, place.folder / "last"))
    print("ready", flush=True)
    sys.stdin.readline()
    for device in devices:
        threading.Thread(target=device.forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
