"""Anything at all through what reads a frame: a violation, or records, and never another exception.

python tests/link/fuzz.py FOLDER -max_total_time=60        # coverage-guided, where atheris is installed
python tests/link/fuzz.py --store FOLDER                   # what is in FOLDER into corpus.json
"""

from __future__ import annotations

import json
import struct
import sys
from contextlib import suppress
from pathlib import Path

from fedsim.link.frame import Incoming, Limits, Violation, header_of, pieces
from fedsim.link.records import describe, restore

LIMITS = Limits(size=1 << 16, header=1 << 14, brackets=2000)


def one(data: bytes) -> None:
    """A frame whose sizes are made to fit where the first byte says so, piece by piece, and then its records."""
    fit, frame = data[:1], data[1:]
    if fit == b"\x01" and len(frame) > 20:
        head = struct.unpack(">I", frame[6:10])[0] % (len(frame) - 17)
        frame = b"fsim\x00\x01" + struct.pack(">IQ", head, len(frame) - 18 - head) + frame[18:]
    with suppress(Violation):
        incoming, over = Incoming(LIMITS), False
        for piece in pieces([frame]):
            over = incoming.add(piece)
        if over:
            header, body = header_of(incoming.data, LIMITS)
            content = restore(header.get("records"), body)
            described, blobs = describe(content)
            again = restore(json.loads(json.dumps(described)), memoryview(b"".join(blobs)))
            assert list(again) == list(content)


def seeds() -> list[bytes]:
    """A few whole frames to begin with."""
    from yard import numbers

    from fedsim.link.frame import seal

    described, blobs = describe(numbers(2))
    whole = b"".join(seal({"records": described, "to": "x"}, blobs))
    return [b"\x00" + whole, b"\x01" + whole, b"\x01" + b"".join(seal({"error": "x"})), b"\x00GET / HTTP/1.1"]


def store(folder: Path) -> None:
    """The files of a corpus as one file of hexadecimal words."""
    found = sorted({file.read_bytes() for file in folder.iterdir()}, key=lambda data: (len(data), data))
    (Path(__file__).parent / "corpus.json").write_text(
        json.dumps([each.hex() for each in found], indent=0) + "\n"
    )


def main() -> None:
    if sys.argv[1] == "--store":
        store(Path(sys.argv[2]))
        return
    import atheris

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds()):
        (folder / f"seed{i}").write_bytes(seed)
    for module in (sys.modules["fedsim.link.frame"], sys.modules["fedsim.link.records"]):
        for name, value in list(vars(module).items()):
            if (
                callable(value)
                and getattr(value, "__module__", "") == module.__name__
                and hasattr(value, "__code__")
            ):
                setattr(module, name, atheris.instrument_func(value))
    atheris.Setup(sys.argv, atheris.instrument_func(one))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
