"""Attacks by time: messages that were honest once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.check import Count
from fedsim.types import Attack, State, View


@dataclass(frozen=True)
class Replay(Attack):
    """Each Byzantine client sends what it would honestly have sent `age` messages ago, at first its first one.

    Messages are counted of all of them together where each comes by itself, otherwise by rounds. Where another number
    of them takes part, they begin anew.
    """

    age: Count = 10

    def remember(self, view: View, memory: State) -> tuple[Tensor, State]:
        assert view.own is not None
        past = memory.get("past")
        same = past is not None and past.shape[1:] == view.own.shape
        past = torch.cat([past, view.own[None]]) if past is not None and same else view.own[None].clone()
        return past[0].clone(), {"past": past[-self.age :]}
