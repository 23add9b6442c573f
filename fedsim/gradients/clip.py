"""How the gradients of single examples are clipped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

from torch import Tensor, nn

from fedsim.layout import LARGE, clip_factor, trained


@dataclass(frozen=True)
class Clip:
    """To L2 norm `bound`, of all clients or of each (n,).

    by_layer  each of L layers by itself, to bound / sqrt(L) (McMahan et al., arXiv:1710.06963)
    inside    (n,), filled: the weight of each client's examples that were within the bound already
    """

    bound: float | Tensor
    by_layer: bool = False
    inside: Tensor | None = None

    @classmethod
    def of(cls, clip: Clip | float | None) -> Clip | None:
        return cls(clip) if isinstance(clip, float | int) else clip

    def weights(self, squares: Tensor, weight: Tensor) -> Tensor:
        """weight_j min(1, bound / ||grad_j||), (1 or L, n, b), of squared norms by layer (L, n, b) and weight (n, b).

        0 where ||grad_j|| is beyond LARGE, or not a number: no factor can be trusted to bound such a gradient.
        """
        broken = ~(squares.sum(0, keepdim=True) <= LARGE**2)
        bound = self.bound.unsqueeze(1) if isinstance(self.bound, Tensor) else self.bound
        if self.by_layer:
            bound = bound / sqrt(len(squares))
        else:
            squares = squares.sum(0, keepdim=True)
        factors = clip_factor(squares.clamp_min(0).sqrt(), bound).masked_fill(broken, 0)
        if self.inside is not None:
            self.inside.copy_((weight * (factors >= 1).all(0)).sum(1))
        return (weight * factors).to(weight.dtype)

    def part(self, clients: slice) -> Clip:
        """The clip of some of the clients."""
        bound = self.bound[clients] if isinstance(self.bound, Tensor) else self.bound
        return replace(self, bound=bound, inside=None if self.inside is None else self.inside[clients])


def layer_sizes(model: nn.Module) -> list[int]:
    """How many trained parameters each layer (a module with some of its own) has, in the order of the vector."""
    sizes: dict[str, int] = {}
    for path, parameter in trained(model).items():
        layer = path.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    return list(sizes.values())
