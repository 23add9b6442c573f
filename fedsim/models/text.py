"""Networks that tell the next token: inputs (b, T) int64, outputs (b, T, classes), or (b, classes) of the last one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.check import Count, Invalid
from fedsim.types import Model

Places = Literal["all", "last"]


def _length(model: Model, shape: Any) -> int:
    if not isinstance(shape, tuple) or len(shape) != 1:
        raise Invalid(f"{type(model).__name__}: inputs of shape {shape}: allowed are windows of tokens (T,)")
    return int(shape[0])


@dataclass(frozen=True)
class GPT(Model):
    """A small transformer that sees what comes before (Radford et al., 2019): `layers` blocks of `width`, no dropout.

    x + out(attention(norm(x))), then x + down(gelu(up(norm(x)))) with 4 * width inside; learned places.
    places  what is put out: "all" for labels (b, T), "last" for labels (b,)
    """

    width: Count = 64
    layers: Count = 2
    heads: Count = 2
    places: Places = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise Invalid(f"GPT.heads = {self.heads}: allowed are the divisors of width = {self.width}")

    def build(self, shape: Any, classes: int) -> nn.Module:
        return _Transformer(self, _length(self, shape), classes)


class _Transformer(nn.Module):
    def __init__(self, gpt: GPT, length: int, classes: int) -> None:
        super().__init__()
        self.last = gpt.places == "last"
        self.token, self.place = nn.Embedding(classes, gpt.width), nn.Embedding(length, gpt.width)
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.Sequential(*(_Attending(gpt.width, gpt.heads) for _ in range(gpt.layers)))
        self.norm, self.head = nn.LayerNorm(gpt.width), nn.Linear(gpt.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand_as(x)
        z = self.norm(self.blocks(self.token(x) + self.place(places)))
        out: Tensor = self.head(z[:, -1] if self.last else z)
        return out


class _Attending(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asked, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.asked(self.norm1(x)).chunk(3, -1)
        )
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weight = (q @ k.mT / sqrt(q.shape[-1])).masked_fill(later, -inf).softmax(-1)
        x = x + self.out((weight @ v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


@dataclass(frozen=True)
class LSTM(Model):
    """Layers of long short-term memory over embedded tokens (LEAF's for Shakespeare: embedding 8, two layers of 256).

    places  what is put out: "all" for labels (b, T), "last" for labels (b,), as LEAF's
    Of linear layers, so that examples are clipped all at once; of an nn.LSTM they are one by one.
    """

    width: Count = 256
    layers: Count = 2
    embedding: Count = 8
    places: Places = "all"

    def build(self, shape: Any, classes: int) -> nn.Module:
        _length(self, shape)
        return _Recurrent(self, classes)


class _Recurrent(nn.Module):
    def __init__(self, lstm: LSTM, classes: int) -> None:
        super().__init__()
        self.last = lstm.places == "last"
        self.token, self.head = nn.Embedding(classes, lstm.embedding), nn.Linear(lstm.width, classes)
        widths = [lstm.embedding, *[lstm.width] * lstm.layers]
        self.cells = nn.Sequential(*(_Cell(before, after) for before, after in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        z = self.cells(self.token(x))
        out: Tensor = self.head(z[:, -1] if self.last else z)
        return out


class _Cell(nn.Module):
    """i, f, g, o = inp(x_t) + rec(h); c = sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.inp, self.rec = nn.Linear(before, 4 * width), nn.Linear(width, 4 * width, bias=False)
        for p in self.parameters():
            nn.init.uniform_(p, -1 / sqrt(width), 1 / sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        told = self.inp(x)
        c = h = told.new_zeros(len(x), told.shape[-1] // 4)
        seen = []
        for t in range(x.shape[1]):
            i, f, g, o = (told[:, t] + self.rec(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            seen.append(h)
        return torch.stack(seen, 1)
