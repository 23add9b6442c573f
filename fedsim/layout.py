"""What lies where in a flat vector: the parameters of a model that are trained; all over the last axis.

x (d,), messages, gradients and whatever a client or the server keeps of them hold the trained parameters alone. Frozen
ones (`requires_grad=False`) stay in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import inf, prod
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.check import Invalid

Role = Literal["hidden", "input", "head", "conv", "embedding", "vector"]


@dataclass(frozen=True)
class Block:
    """One parameter of a model.

    role  "embedding", "conv", "vector" (fewer than two axes), or where in the order of the other matrices it stands:
          "input" (first), "head" (last), "hidden"
    kind  the class of the layer that it belongs to, such as "Linear"
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    trained: bool = True
    kind: str = ""

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The blocks of a vector, in order.

    layout = Layout.of(nn.Linear(3, 2))             # weight (2, 3), bias (2,)
    weight, bias = layout.views(torch.zeros(5, 8))  # (5, 2, 3), (5, 2)
    """

    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """All parameters of a model, in the order of `named_parameters`."""
        named = list(model.named_parameters())
        kinds = {id(p): type(m) for m in model.modules() for p in m.parameters(recurse=False)}
        wide = [name for name, p in named if p.dim() > 1 and not issubclass(kinds[id(p)], nn.Embedding)]

        def role(name: str, p: Tensor) -> Role:
            if issubclass(kinds[id(p)], nn.Embedding):
                return "embedding"
            if p.dim() < 2:
                return "vector"
            if issubclass(kinds[id(p)], nn.modules.conv._ConvNd):
                return "conv"
            return "head" if name == wide[-1] else "input" if name == wide[0] else "hidden"

        return cls(
            tuple(
                Block(name, tuple(p.shape), role(name, p), p.requires_grad, kinds[id(p)].__name__)
                for name, p in named
            )
        )

    @cached_property
    def trained(self) -> Layout:
        """The blocks that are trained: those of x and of a gradient."""
        return Layout(tuple(block for block in self.blocks if block.trained))

    @cached_property
    def sizes(self) -> list[int]:
        return [block.size for block in self.blocks]

    @property
    def width(self) -> int:
        """Numbers in all blocks."""
        return sum(self.sizes)

    def views(self, x: Tensor) -> list[Tensor]:
        """Each block of x (..., width) in its shape, (..., *shape)."""
        pieces = zip(x.split(self.sizes, -1), self.blocks, strict=True)
        return [piece.view((*x.shape[:-1], *b.shape)) for piece, b in pieces]

    def join(self, parts: Iterable[Tensor]) -> Tensor:
        """The inverse of `views`."""
        pairs = zip(parts, self.blocks, strict=True)
        return torch.cat(
            [part.reshape(*part.shape[: part.dim() - len(b.shape)], -1) for part, b in pairs], -1
        )

    def map(self, f: Callable[[Block, Tensor], Tensor], x: Tensor) -> Tensor:
        """x with f(block, view) in place of each view."""
        return self.join(f(block, view) for block, view in zip(self.blocks, self.views(x), strict=True))

    def chosen(self, words: Sequence[str]) -> Tensor:
        """Which numbers belong to blocks that one of the words names, (width,) bool.

        "head" is the whole last layer, its bias too; "norm" are all norms; other words are roles, or patterns of names.
        """
        heads = tuple(b.name.rpartition(".")[0] for b in self.blocks if b.role == "head")

        def meant(block: Block, word: str) -> bool:
            if word == "head":
                return block.name.rpartition(".")[0] in heads
            if word == "norm":
                return "Norm" in block.kind
            return word == block.role or fnmatchcase(block.name, word)

        flags = [any(meant(block, word) for word in words) for block in self.blocks]
        return torch.repeat_interleave(torch.tensor(flags), torch.tensor(self.sizes))

    def trained_of(self, whole: Tensor) -> Tensor:
        """The trained blocks (..., trained.width) of a vector (..., width)."""
        pieces = whole.split(self.sizes, -1)
        return torch.cat([piece for piece, b in zip(pieces, self.blocks, strict=True) if b.trained], -1)

    def put(self, whole: Tensor, trained: Tensor) -> Tensor:
        """`whole` (width,) with its trained blocks replaced by `trained` (..., trained.width)."""
        new, lead = iter(trained.split(self.trained.sizes, -1)), trained.shape[:-1]
        pairs = zip(whole.split(self.sizes, -1), self.blocks, strict=True)
        return torch.cat([next(new) if b.trained else piece.expand(*lead, -1) for piece, b in pairs], -1)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; raises `Invalid` where there are none."""
    named = dict(model.named_parameters())
    found = {name: p for name, p in named.items() if p.requires_grad}
    if not found:
        raise Invalid(
            f"model: none of its {len(named)} parameters is trained; at least one must have requires_grad=True"
        )
    return found


def flatten(model: nn.Module) -> Tensor:
    """The trained parameters of a model as one vector (d,), in the order of `named_parameters`."""
    return torch.cat([p.detach().reshape(-1) for p in trained(model).values()])


def unflatten(x: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Views of x (..., d) under the names and shapes (..., *shape) of a model's trained parameters."""
    named = trained(model)
    pieces = zip(named.items(), x.split([p.numel() for p in named.values()], -1), strict=True)
    return {name: piece.view((*x.shape[:-1], *p.shape)) for (name, p), piece in pieces}


def parameters(x: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """All parameters of a model by name: the trained ones from x (d,), frozen ones as the model has them."""
    return {name: p.detach() for name, p in model.named_parameters()} | unflatten(x, model)


PART = 4096  # numbers summed at a time
SMALL, LARGE = (
    1e-12,
    1e18,
)  # between these norms no square underflows to anything that counts, and none overflows


def norms(v: Tensor) -> Tensor:
    """||v|| (...,) of vectors (..., d) of any size, to six digits.

    By parts, since one float32 sum over a million squares is off by 1e-5; where float32 cannot hold the squares, in
    float64.
    """
    if v.device.type != "cpu":
        whole: Tensor = torch.linalg.vector_norm(v, dim=-1, dtype=torch.float64)
        return whole.to(v.dtype)
    total = norms_by_parts(v)
    if not between(total, SMALL, LARGE):
        odd = ~((total > SMALL) & (total < LARGE))
        total[odd] = torch.linalg.vector_norm(v[odd].double(), dim=-1).to(v.dtype)
    return total


def between(t: Tensor, low: float, high: float) -> bool:
    """Whether all numbers lie between two; not so where one is NaN."""
    if not t.numel():
        return True
    least, most = t.aminmax()
    return bool(least > low) and bool(most < high)


def norms_by_parts(v: Tensor) -> Tensor:
    """`norms` of vectors whose norms lie between SMALL and LARGE."""
    if v.shape[-1] <= PART:
        alone: Tensor = torch.linalg.vector_norm(v, dim=-1)
        return alone
    cut = v.shape[-1] // PART * PART
    parts = torch.linalg.vector_norm(v[..., :cut].unflatten(-1, (-1, PART)), dim=-1)
    rest = torch.linalg.vector_norm(v[..., cut:], dim=-1, keepdim=True)
    total: Tensor = torch.linalg.vector_norm(torch.cat([parts, rest], -1), dim=-1)
    return total


def clip_(v: Tensor, tau: float) -> Tensor:
    """v * min(1, tau / ||v||) in place, the L2 clip of vectors (..., d); 0 where ||v|| is beyond LARGE or no number."""
    if tau == inf:
        return v
    norm = norms(v).unsqueeze(-1)
    v.mul_(clip_factor(norm, tau))
    broken = ~(norm <= LARGE)
    return v if v.device.type == "cpu" and not broken.any() else v.masked_fill_(broken, 0)


def clip_factor(norm: Tensor, tau: float | Tensor) -> Tensor:
    """min(1, tau / norm), and 1 where the norm is 0."""
    return (tau / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
