"""Models that are another model, changed: parts of it frozen, numbers from a file, group norm for batch norm."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.check import Count, File, Invalid
from fedsim.models.modules import as_model
from fedsim.types import Model


@dataclass(frozen=True)
class Adapted(Model):
    """What changes `model`."""

    model: Model

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        super().__post_init__()


@dataclass(frozen=True)
class Frozen(Adapted):
    """A model of which parts are not trained: parameters whose names fit a pattern, such as "features.*".

    Frozen(net, ("features.*",)). They stay as they are; messages, clips and noise are of the others alone.
    """

    parts: tuple[str, ...] = ()

    def build(self, shape: Any, classes: int) -> nn.Module:
        net = self.model.build(shape, classes)
        named = dict(net.named_parameters())
        for pattern in self.parts:
            fitting = [p for name, p in named.items() if fnmatchcase(name, pattern)]
            if not fitting:
                raise Invalid(f"Frozen.parts = {pattern!r}: fits no parameter; there are {', '.join(named)}")
            for p in fitting:
                p.requires_grad_(False)
        return net


@dataclass(frozen=True)
class Pretrained(Adapted):
    """A model that starts from the numbers in a file, a state_dict as torch.save or a run's model.pt has it.

    Pretrained(net, "backbone.pt", leave=("head.*",)): what fits a pattern of `leave` starts as the model itself does.
    Nothing but tensors is read. Raises `Invalid` where names or shapes differ.
    """

    path: File = "model.pt"
    leave: tuple[str, ...] = ()

    def build(self, shape: Any, classes: int) -> nn.Module:
        net = self.model.build(shape, classes)
        state, held = net.state_dict(), self._read()
        for name, value in state.items():
            if any(fnmatchcase(name, pattern) for pattern in self.leave):
                continue
            if name not in held:
                raise Invalid(
                    f"Pretrained.path = {self.path!r}: has no {name!r}; what it lacks must fit `leave`"
                )
            if held[name].shape != value.shape:
                raise Invalid(
                    f"Pretrained.path = {self.path!r}: {name} is {tuple(held[name].shape)}, the model's "
                    f"{tuple(value.shape)}; what differs must fit `leave`"
                )
            state[name] = held[name]
        net.load_state_dict(state)
        return net

    def _read(self) -> dict[str, Tensor]:
        try:
            found = torch.load(Path(self.path), map_location="cpu", weights_only=True)
            found = found.get("state_dict", found)
            if not all(isinstance(value, Tensor) for value in found.values()):
                raise TypeError("must be a table of tensors")
        except Exception as error:  # torch has many
            why = " ".join(str(error).split()).partition(". ")[0][
                :120
            ]  # it goes on with advice that is unsafe to follow
            raise Invalid(f"Pretrained.path = {self.path!r}: not a readable state_dict ({why})") from None
        return dict(found)


@dataclass(frozen=True)
class GroupNormed(Adapted):
    """A model with group norm in place of every batch norm, which would mix examples (Wu and He, 2018).

    GroupNormed(net): of c channels as many groups as divide c, at most `groups`; weight, bias and eps are kept.
    """

    groups: Count = 32

    def build(self, shape: Any, classes: int) -> nn.Module:
        net = self.model.build(shape, classes)
        if isinstance(net, nn.modules.batchnorm._BatchNorm):
            return self._replaced(net)
        for module in list(net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    setattr(module, name, self._replaced(child))
        return net

    def _replaced(self, norm: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
        channels = norm.num_features
        groups = max(g for g in range(1, min(self.groups, channels) + 1) if channels % g == 0)
        new = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine)
        if norm.affine:
            new.weight, new.bias = norm.weight, norm.bias
        return new
