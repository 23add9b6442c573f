"""How fast the rules, mixers and chains are, alone and beside ByzFL, and what memory they take beyond their output."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from math import comb
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fedsim import strategies as s
from fedsim.check import Invalid
from fedsim.datasets.vision import vision_datasets
from fedsim.experiments.bench.process import CLEAR, MIB, proc_bytes
from fedsim.types import Mixer, Rule

Call = Callable[[Tensor], Any]
SUBSETS = 1e5  # that a peer may be made to list


@dataclass(frozen=True)
class Entry:
    """One line of the table: ours, the peer's for f, and whether it can be asked at (n, d)."""

    part: Rule | Mixer
    peer: Callable[[Any, int], Call] | None = None
    fits: Callable[[int, int, int], bool] = lambda n, d, f: True
    fresh: bool = False  # the peer writes into its input: a copy is part of its call


def _square(n: int, d: int, f: int) -> bool:
    return 1.1 * 4 * n * n * d <= proc_bytes(
        "MemAvailable", "/proc/meminfo"
    )  # differences of all pairs of rows


def _subsets(n: int, d: int, f: int) -> bool:
    return comb(n, f) <= SUBSETS


def _behind_nnm(rule: Callable[[Any, int], Call]) -> Callable[[Any, int], Call]:
    def chain(peer: Any, f: int) -> Call:
        mixer, last = peer.NNM(f), rule(peer, f)
        return lambda rows: last(mixer(rows))

    return chain


def _converged(peer: Any, f: int) -> Call:
    call: Call = peer.GeometricMedian(nu=1e-6, T=50)
    return call


TABLE = {
    "Mean": Entry(s.Mean(), lambda peer, f: peer.Average()),
    "Median": Entry(s.Median(), lambda peer, f: peer.Median()),
    "TrimmedMean": Entry(s.TrimmedMean(), lambda peer, f: peer.TrMean(f)),
    "MeanAroundMedian": Entry(s.MeanAroundMedian(), lambda peer, f: peer.Meamed(f)),
    "Phocas": Entry(s.Phocas()),
    "NoisyMedian": Entry(s.NoisyMedian()),
    "MajorityVote": Entry(s.MajorityVote()),
    "NoisyMajorityVote": Entry(s.NoisyMajorityVote()),
    "Krum": Entry(s.Krum(), lambda peer, f: peer.Krum(f)),
    "MultiKrum": Entry(s.MultiKrum(), lambda peer, f: peer.MultiKrum(f)),
    "Bulyan": Entry(s.Bulyan()),
    "GeometricMedian": Entry(s.GeometricMedian(), _converged),
    "RFA": Entry(s.RFA(nu=0.1, start="origin"), lambda peer, f: peer.GeometricMedian(nu=0.1, T=3)),
    "CenteredClipping": Entry(s.CenteredClipping(10.0), lambda peer, f: peer.CenteredClipping(L=1, tau=10.0)),
    "CGE": Entry(s.CGE()),
    "FLTrust": Entry(s.FLTrust()),
    "FoolsGold": Entry(s.FoolsGold()),  # these two as in a first round
    "FLDetector": Entry(s.FLDetector()),
    "PerLayer": Entry(s.PerLayer(s.Median())),
    "EDiT": Entry(s.EDiT()),
    "NNA(0)": Entry(s.NNA(0), lambda peer, f: peer.MoNNA(f)),
    "NNA": Entry(s.NNA()),
    "MDA": Entry(s.MDA(), lambda peer, f: peer.MDA(f), _subsets),
    "SMEA": Entry(s.SMEA(), lambda peer, f: peer.SMEA(f), _subsets),
    "CAF": Entry(s.CAF(), lambda peer, f: peer.CAF(f)),
    "NNM": Entry(s.NNM(), lambda peer, f: peer.NNM(f), _square),
    "Bucketing": Entry(s.Bucketing(), lambda peer, f: peer.Bucketing(2)),
    "Clipping": Entry(s.Clipping(10.0), lambda peer, f: peer.Clipping(10.0), fresh=True),
    "ARC": Entry(s.ARC(), lambda peer, f: peer.ARC(f), fresh=True),
    "NNM + Median": Entry(s.Chain(s.NNM(), s.Median()), _behind_nnm(lambda peer, f: peer.Median()), _square),
    "NNM + TrimmedMean": Entry(
        s.Chain(s.NNM(), s.TrimmedMean()), _behind_nnm(lambda peer, f: peer.TrMean(f)), _square
    ),
    "NNM + Krum": Entry(s.Chain(s.NNM(), s.Krum()), _behind_nnm(lambda peer, f: peer.Krum(f)), _square),
    "NNM + GeometricMedian": Entry(s.Chain(s.NNM(), s.GeometricMedian()), _behind_nnm(_converged), _square),
}


def bench_rules(
    ns: Sequence[int] = (10, 50, 200),
    ds: Sequence[int] = (100_000, 1_000_000),
    against: str | None = None,
    *,
    only: Sequence[str] = tuple(TABLE),
    threads: int = 1,
    repeats: int = 5,
    seconds: float = 20.0,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """A line for each rule and size, f = n / 5: median seconds of ours and of the peer, and extra memory in MB.

    Ours and the peer take turns on the same rows with the same number of threads. A call is repeated as often as
    `seconds` allow, once at the least. The peer's time is missing where it lists too many subsets or asks for too much
    memory. Where it writes into its input, the copy that keeps the input whole belongs to its time.
    """
    peer = _import_peer(against)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n in ns:
            for d in ds:
                rows = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(device)
                for name in only:
                    yield _line(name, rows, peer, repeats, seconds) | {"threads": threads, "device": device}
    finally:
        torch.set_num_threads(before)


def _line(name: str, rows: Tensor, peer: Any, repeats: int, seconds: float) -> dict[str, Any]:
    entry, (n, d) = TABLE[name], rows.shape
    f = n // 5
    line: dict[str, Any] = {"rule": name, "n": n, "d": d, "f": f}
    calls: dict[str, Call] = {"seconds": lambda rows: entry.part(rows, f)}
    if peer is not None and entry.peer is not None and entry.fits(n, d, f):
        theirs = entry.peer(peer, f)
        calls["peer_seconds"] = (lambda rows: theirs(rows.clone())) if entry.fresh else theirs
    try:
        line["extra_mb"] = _extra_memory(calls["seconds"], rows)
    except Invalid as error:
        return line | {"seconds": None, "error": str(error)}
    times: dict[str, list[float]] = {way: [] for way in calls}
    spent = 0.0
    for _ in range(repeats):
        for way, call in calls.items():
            times[way].append(_time(call, rows))
            spent += times[way][-1]
        if spent > seconds:
            break
    line |= {way: median(each) for way, each in times.items()}
    if "peer_seconds" in line:
        line["ratio"] = line["peer_seconds"] / line["seconds"]
    return line


def _time(call: Call, rows: Tensor) -> float:
    if rows.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call(rows)
    if rows.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _extra_memory(call: Call, rows: Tensor) -> float | None:
    """The peak of a call above what was there before and its output, in MB; on a CPU where the kernel tells (Linux)."""
    call(rows[:, :1000])  # what is loaded at first use is not the call's
    gc.collect()
    if rows.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        output = call(rows)
        return float(torch.cuda.max_memory_allocated() - before - output.nbytes) / MIB
    if not CLEAR.exists():
        call(rows)
        return None
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    at_first = proc_bytes("VmRSS")
    output = call(rows)
    return float(max(0.0, proc_bytes("VmHWM") - at_first - output.nbytes) / MIB)


def _import_peer(name: str | None) -> Any:
    if name is None:
        return None
    if name != "byzfl":
        raise Invalid(f"against = {name!r}: the only peer is byzfl")
    vision_datasets()  # in a way that works beside every build of torch
    try:
        return import_module("byzfl")
    except ImportError:
        raise Invalid("against = 'byzfl': it is not installed; pip install byzfl==0.0.11") from None
