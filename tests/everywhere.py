"""The numerical tests as on other processors: `python tests/everywhere.py [setting ...]`; all settings without a name.

Each setting is a process with other kernels for the same arithmetic, as far as this processor has them, or with another
number of threads; names joined by + hold at once (`aten-default+threads-3`). Products are compared with those as
installed, since a setting that changes no bit tests nothing new here. With --whole all tests run, not only the
numerical ones. The exit code is 1 where a test failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMERICAL = [
    "tests/strategies",
    "tests/attacks",
    "tests/gradients",
    "tests/engines/test_parity.py",
    "tests/engines/test_threads.py",
    "tests/test_layout.py",
    "tests/test_federation.py",
]
SETTINGS = {
    "installed": {},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "mkl-avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "openblas-haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "openblas-zen": {"OPENBLAS_CORETYPE": "Zen"},
    "openblas-skylakex": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "threads-1": {"OMP_NUM_THREADS": "1"},
    "threads-2": {"OMP_NUM_THREADS": "2"},
    "threads-3": {"OMP_NUM_THREADS": "3"},
    "rounding": {"FEDSIM_ROUNDING": "1"},  # no processor's: any that rounds products in its own way
}
BITS = """
import hashlib, numpy, torch
g = torch.Generator().manual_seed(0)
a, b = torch.randn(60, 3000, generator=g), torch.randn(3000, 60, generator=g)
x = a.numpy().astype("float64")
found = [a @ b, a[:20].double() @ a[:20].double().T, a.sum(1), a.norm(dim=1), (a / 9).exp(), torch.from_numpy(x @ x.T)]
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in found)).hexdigest())
"""


@dataclass(frozen=True)
class Outcome:
    """What a setting came to: the digest of some products, pytest's last line and exit code, and the failed tests."""

    bits: str
    line: str
    code: int
    failed: list[str]
    seconds: float


def variables(setting: str) -> dict[str, str]:
    """The variables of a setting, or of several joined by +."""
    return {key: value for name in setting.split("+") for key, value in SETTINGS[name].items()}


def run(setting: str, tests: list[str], options: list[str]) -> Outcome:
    env = {**os.environ, **variables(setting)}
    began = time.monotonic()
    bits = subprocess.run([sys.executable, "-c", BITS], env=env, capture_output=True, text=True, check=True)
    command = [sys.executable, "-m", "pytest", "--tb=short", *options, *tests]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+(?: \S+)*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode:
        sys.stderr.write(f"----- {setting}\n{done.stdout[-20_000:]}{done.stderr[-5_000:]}\n")
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    return Outcome(bits.stdout.strip(), last, done.returncode, failed, time.monotonic() - began)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("settings", nargs="*", metavar="setting", help=", ".join(SETTINGS))
    asked.add_argument("--whole", action="store_true", help="all tests")
    asked.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="processes at a time")
    asked.add_argument("-k", default="", help="only tests with such a name, as in pytest")
    chosen = asked.parse_args()
    unknown = [name for setting in chosen.settings for name in setting.split("+") if name not in SETTINGS]
    if unknown:
        asked.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    names = chosen.settings or list(SETTINGS)
    tests = [] if chosen.whole else NUMERICAL
    own = subprocess.run(
        [sys.executable, "-c", BITS], capture_output=True, text=True, check=True
    ).stdout.strip()
    options = ["-k", chosen.k] if chosen.k else []
    print(f"{'setting':18} {'':40} {'products':10} {'seconds':>7}  tests", flush=True)
    worst = 0
    with ThreadPoolExecutor(chosen.at_once) as pool:
        for name, outcome in zip(names, pool.map(lambda name: run(name, tests, options), names), strict=True):
            given = " ".join(f"{key}={value}" for key, value in variables(name).items())
            bits = "as here" if outcome.bits == own else "others"
            print(f"{name:18} {given:40} {bits:10} {outcome.seconds:7.0f}  {outcome.line}", flush=True)
            for test in outcome.failed:
                print(f"{'':18} {test}", flush=True)
            worst = max(worst, outcome.code)
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
