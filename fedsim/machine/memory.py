"""How much memory may still be had."""

from __future__ import annotations

import os
from pathlib import Path


def available() -> int:
    """Bytes that a process may still take: what the system offers without swapping, within its control group."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):  # another system: what there is in all
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # "max", or no such group
        return free
    return min(free, limit - used)
