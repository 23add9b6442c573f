"""Measurements that need a process of their own, and what the kernel says of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

from fedsim.check import Invalid

MIB = 2**20
CLEAR = Path("/proc/self/clear_refs")  # 5 written there starts this process's high-water mark anew


def in_fresh_process(module: str, *words: object, threads: int | None, what: str) -> dict[str, Any]:
    """The line of JSON that `python -m module words` prints last; raises `Invalid`, naming `what`, where it fails."""
    use = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **use}, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"]
        raise Invalid(f"{what}: it failed: {said[-1]}")
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def proc_bytes(what: str, file: str = "/proc/self/status") -> float:
    """An entry of a file of the kernel's; infinity where there is none."""
    with suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) * 1024
    return inf
