"""Clients that are broken rather than clever: they know nothing."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.check import NonNegative
from fedsim.types import Attack, Knowledge, View


class Broken(Attack):
    """Rows that depend on nothing that anybody sent."""

    needs: ClassVar[frozenset[Knowledge]] = frozenset()


@dataclass(frozen=True)
class Gaussian(Broken):
    """Noise N(0, sigma^2 I), independent for each client; sigma = 200 in Blanchard et al.,
    arXiv:1703.02757.
    """

    sigma: NonNegative = 200.0

    def forge(self, view: View) -> Tensor:
        noise = torch.randn(view.f, view.width, generator=view.generator, device=view.x.device)
        return self.sigma * noise


@dataclass(frozen=True)
class Zero(Broken):
    """A client that sends zeros."""

    def forge(self, view: View) -> Tensor:
        return constant(view, 0.0)


@dataclass(frozen=True)
class Inf(Broken):
    """A client whose numbers overflowed."""

    def forge(self, view: View) -> Tensor:
        return constant(view, inf)


@dataclass(frozen=True)
class NaN(Broken):
    """A client that divided by zero."""

    def forge(self, view: View) -> Tensor:
        return constant(view, nan)


def constant(view: View, value: float) -> Tensor:
    return view.x.new_full((view.f, view.width), value)
