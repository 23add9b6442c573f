"""A model as one flat vector, and back; everything over the last axis, so (d,) and (n, d) alike."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor, nn


def flatten(model: nn.Module) -> Tensor:
    """The parameters of a model as one vector (d,), in the order of `named_parameters`."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def unflatten(x: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Views of x (..., d) under the names and shapes (..., *shape) of a model's parameters."""
    named = list(model.named_parameters())
    pieces = torch.split(x, [p.numel() for _, p in named], dim=-1)
    return {name: piece.unflatten(-1, p.shape) for (name, p), piece in zip(named, pieces, strict=True)}


PART = 4096  # numbers summed at a time


def norms(v: Tensor) -> Tensor:
    """||v|| (...,) of vectors (..., d), by parts: one float32 sum over a million squares is off by 1e-5."""
    whole = v.shape[-1] // PART * PART
    parts = torch.linalg.vector_norm(v[..., :whole].unflatten(-1, (-1, PART)), dim=-1)
    rest = torch.linalg.vector_norm(v[..., whole:], dim=-1, keepdim=True)
    total: Tensor = torch.linalg.vector_norm(torch.cat([parts, rest], -1), dim=-1)
    return total


def clip_(v: Tensor, tau: float) -> Tensor:
    """v * min(1, tau / ||v||) in place, the L2 clip of vectors (..., d); zero where that is 0 or not finite."""
    if tau == inf:
        return v
    norm = norms(v).unsqueeze(-1)
    v.mul_(clip_factor(norm, tau))
    broken = ~norm.isfinite()
    return v if v.device.type == "cpu" and not broken.any() else v.masked_fill_(broken, 0)


def clip_factor(norm: Tensor, tau: float | Tensor) -> Tensor:
    """min(1, tau / norm), and 1 where the norm is 0."""
    return (tau / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
