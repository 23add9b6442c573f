"""Products that are off by a rounding error, another one at each place: what any BLAS is allowed to answer.

A number moves by up to a quarter of an ulp of the sum of its terms' sizes, which is about what separates real kernels
on long sums. Where all numbers are small multiples of 1/1024 every kernel is exact, and so is this.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OFF = 0.25
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": torch.mm,
    "addmm": torch.mm,
    "bmm": torch.bmm,
    "baddbmm": torch.bmm,
    "mv": torch.mv,
    "addmv": torch.mv,
    "dot": torch.dot,
}


on_threads = pytest.mark.skipif(
    "FEDSIM_ROUNDING" in os.environ, reason="products are off on one thread, and as they are on others"
)


class Rounding(TorchDispatchMode):
    """In this mode products of this thread are off; the same product is off in the same way each time."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0].rstrip("_")
        if name in PRODUCTS and out.dtype in (torch.float32, torch.float64):
            a, b = args[-2:]
            if a.layout == b.layout == torch.strided and out.numel():
                out.add_(_error(out, PRODUCTS[name](a.abs(), b.abs())))
        return out


def _error(out: Tensor, sizes: Tensor) -> Tensor:
    chance = torch.Generator().manual_seed(out.numel())
    error = torch.empty_like(sizes).uniform_(-OFF, OFF, generator=chance)
    error = error.mul_(sizes).mul_(torch.finfo(out.dtype).eps)
    exact = (out * 1024 == (out * 1024).round()) & (sizes < 2**12)
    return error.masked_fill_(exact | ~error.isfinite(), 0.0)
