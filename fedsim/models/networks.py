"""Networks for classification, without batch norm or dropout: an example's gradient depends on it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.check import Count, Invalid
from fedsim.types import Model


@dataclass(frozen=True)
class Logistic(Model):
    """Multinomial logistic regression: one linear layer on the flattened input."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), classes))


@dataclass(frozen=True)
class MLP(Model):
    """Fully connected layers on the flattened input; `hidden` is one width or a tuple of them.

    As it stands it is the 784-256-10 tanh network of arXiv:2603.23472's code (d = 203,530 on MNIST);
    MLP(hidden=100, activation="relu") is the 784-100-10 network of the robustness literature (d = 79,510).
    """

    hidden: Count | tuple[Count, ...] = 256
    activation: Literal["tanh", "relu"] = "tanh"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        widths = self.hidden if isinstance(self.hidden, tuple) else (self.hidden,)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip((prod(shape), *widths[:-1]), widths, strict=True):
            layers += [nn.Linear(before, after), nn.Tanh() if self.activation == "tanh" else nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear((prod(shape), *widths)[-1], classes))


@dataclass(frozen=True)
class CNN(Model):
    """A convolutional network in a published layout.

    "small": conv20 (5x5), ReLU, pool, conv50 (5x5), ReLU, pool, FC500, ReLU, FC; MoNNA (Farhadkhani et al.,
    2023) on MNIST, d = 431,080. "large": conv32 (3x3), ReLU, conv64 (3x3), pool, FC128, ReLU, FC; the code of
    arXiv:2603.23472, d = 1,199,882 on MNIST. "deep": twice (two convolutions (3x3, padded) and a pool), of 64
    and 128 channels, FC128, ReLU, FC; a group norm (32 groups) follows each convolution's ReLU; MoNNA on
    CIFAR-10, where it has batch norm and dropout. "leaf": conv32 (5x5, padded), ReLU, pool, conv64 (5x5, padded),
    ReLU, pool, FC2048, ReLU, FC; LEAF on FEMNIST, d = 6,603,710. "pfl": as "large" with a ReLU behind either
    convolution and Glorot's initial weights; the CIFAR-10 benchmark of pfl-research, without its dropout. "niid":
    conv6 (5x5), ReLU, pool, conv16 (5x5), ReLU, pool, FC120, ReLU, FC84, ReLU, FC; NIID-Bench, d = 62,006 on
    CIFAR-10. Raises `Invalid` where the input is not an image of sufficient size.
    """

    layout: Literal["small", "large", "deep", "leaf", "pfl", "niid"] = "small"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        least = {"small": 16, "large": 6, "deep": 4, "leaf": 4, "pfl": 6, "niid": 16}[self.layout]
        channels, height, width = _image(self, shape, least)
        hidden: tuple[int, ...] = (128,)
        match self.layout:
            case "small":
                body = [*_conv(channels, 20, 5), nn.MaxPool2d(2), *_conv(20, 50, 5), nn.MaxPool2d(2)]
                left, hidden = 50 * _small(height) * _small(width), (500,)
            case "niid":
                body = [*_conv(channels, 6, 5), nn.MaxPool2d(2), *_conv(6, 16, 5), nn.MaxPool2d(2)]
                left, hidden = 16 * _small(height) * _small(width), (120, 84)
            case "large":
                body = [*_conv(channels, 32, 3), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2)]
                left = 64 * ((height - 4) // 2) * ((width - 4) // 2)
            case "leaf":
                pool = nn.MaxPool2d(2)
                body = [nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), pool]
                body += [nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), pool]
                left, hidden = 64 * (height // 4) * (width // 4), (2048,)
            case "pfl":
                body = [*_conv(channels, 32, 3), *_conv(32, 64, 3), nn.MaxPool2d(2)]
                left = 64 * ((height - 4) // 2) * ((width - 4) // 2)
            case "deep":
                body = [*_normed(channels, 64), *_normed(64, 64), nn.MaxPool2d(2)]
                body += [*_normed(64, 128), *_normed(128, 128), nn.MaxPool2d(2)]
                left = 128 * (height // 4) * (width // 4)
        widths = (left, *hidden)
        head = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        net = nn.Sequential(*body, nn.Flatten(), *head, nn.Linear(widths[-1], classes))
        for module in net if self.layout == "pfl" else ():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        return net


def _image(model: Model, shape: tuple[int, ...], least: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise Invalid(
            f"{model}: inputs of shape {shape}: "
            f"allowed are images (channels, height, width) of at least {least} x {least}"
        )
    return shape[0], shape[1], shape[2]


def _small(side: int) -> int:
    """What two rounds of a 5x5 convolution and a pooling by 2 leave of a side."""
    return ((side - 4) // 2 - 4) // 2


def _conv(before: int, after: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, kernel), nn.ReLU()]


def _normed(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.GroupNorm(32, after)]


@dataclass(frozen=True)
class ResNet(Model):
    """The CIFAR residual network of He et al. (2016, section 4.2), with group norm (Wu and He, 2018).

    Three stages of `blocks` blocks of two 3x3 convolutions, widths w, 2w, 4w; shortcuts without parameters.
    6 * blocks + 2 layers: as it stands ResNet-20, d = 269,722 on CIFAR-10.
    Raises `Invalid` where the input is not an image or `groups` does not divide `width`.
    """

    blocks: Count = 3
    width: Count = 16
    groups: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.groups:
            raise Invalid(f"ResNet.groups = {self.groups}: allowed are the divisors of width = {self.width}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        channels, _, _ = _image(self, shape, 4)
        layers = [
            nn.Conv2d(channels, self.width, 3, padding=1, bias=False),
            self._norm(self.width),
            nn.ReLU(),
        ]
        before = self.width
        for after in (self.width, 2 * self.width, 4 * self.width):
            for block in range(self.blocks):
                stride = 2 if block == 0 and after > self.width else 1
                layers.append(_Block(before, after, stride, self._norm))
                before = after
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    def _norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.groups, channels)


class _Block(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))); the shortcut pads new channels with 0."""

    def __init__(self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stride, self.extra = stride, after - before
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = norm(after)

    def forward(self, x: Tensor) -> Tensor:
        body = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(body + F.pad(shortcut, (0, 0, 0, 0, 0, self.extra)))
