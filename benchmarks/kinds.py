"""Twelve kinds of networks that reach small devices, of a size that does: random weights, inputs made up.

Each entry builds the network and gives batches of inputs. They stand for operators and shapes, not for a task; the
trained networks are those of benchmarks/workloads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a network is built, and a function from a number of samples to its inputs."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensors]


def conv(inner: int, outer: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU):
    """Return convolution, BatchNorm and activation."""
    padding = kernel // 2
    layers = [nn.Conv2d(inner, outer, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outer)]
    return nn.Sequential(*layers, act())


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inner, outer, 3, stride)
        self.second = conv(outer, outer, act=nn.Identity)
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else conv(inner, outer, 1, stride, act=nn.Identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Inverted(nn.Module):
    """Widen, filter each channel, narrow; with squeeze-and-excite where asked for."""

    def __init__(self, inner: int, outer: int, stride: int, act: type[nn.Module], excite: bool) -> None:
        super().__init__()
        wide = 4 * inner
        self.widen, self.filter = conv(inner, wide, 1, act=act), conv(wide, wide, 3, stride, groups=wide, act=act)
        self.squeeze = nn.Sequential(nn.Conv2d(wide, inner, 1), nn.ReLU(), nn.Conv2d(inner, wide, 1), nn.Hardsigmoid())
        if not excite:
            self.squeeze = nn.Sequential()
        self.narrow = conv(wide, outer, 1, act=nn.Identity)
        self.shortcut = stride == 1 and inner == outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.filter(self.widen(x))
        if len(self.squeeze):
            y = y * self.squeeze(y.mean((2, 3), keepdim=True))
        y = self.narrow(y)
        return x + y if self.shortcut else y


class Head(nn.Module):
    """Mean over all positions, then classes."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.classes = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classes(x.mean((2, 3)))


def small_cnn() -> nn.Module:
    return nn.Sequential(conv(1, 32), nn.MaxPool2d(2), conv(32, 64), nn.MaxPool2d(2), conv(64, 128), Head(128))


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for inner, outer, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Residual(inner, outer, stride), Residual(outer, outer, 1)]
    return nn.Sequential(*layers, Head(512))


def mobilenet(act: type[nn.Module], excite: bool) -> nn.Module:
    layers: list[nn.Module] = [conv(3, 16, 3, 2, act=act)]
    for inner, outer, stride in ((16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 80, 2), (80, 80, 1)):
        layers.append(Inverted(inner, outer, stride, act, excite))
    return nn.Sequential(*layers, conv(80, 320, 1, act=act), Head(320))


class Recurrent(nn.Module):
    """A table of words, a recurrent layer, classes from its mean over time."""

    def __init__(self, kind: type[nn.RNNBase], both: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 48)
        self.layer = kind(48, 64, batch_first=True, bidirectional=both)
        self.classes = nn.Linear(128 if both else 64, 5)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.classes(self.layer(self.table(words))[0].mean(1))


class Block(nn.Module):
    """A Transformer's layer: attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, _ = x.shape
        y = self.norm1(x)
        q, k, v = (
            layer(y).view(count, length, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, length, -1)
        x = x + self.out(y)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 8 x 8 through a Transformer."""

    def __init__(self, width: int = 96, layers: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.classes = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.classes(self.norm(self.blocks(x)).mean(1))


class TextEncoder(nn.Module):
    """Words with places through a Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(2000, 64), nn.Parameter(torch.randn(1, 32, 64) * 0.1)
        self.blocks, self.classes = nn.Sequential(Block(64, 4), Block(64, 4)), nn.Linear(64, 4)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.classes(self.blocks(self.table(words) + self.places).mean(1))


class Recommender(nn.Module):
    """Users and items in tables, a perceptron over both."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(1000, 32), nn.Embedding(1700, 32)
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([self.users(user), self.items(item)], 1))


class UNet(nn.Module):
    """Down, up by transposed convolutions with output padding, and shortcuts that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.low = conv(3, 16), conv(16, 32, stride=2), conv(32, 64, stride=2)
        self.up2 = nn.ConvTranspose2d(64, 32, 3, 2, 1, output_padding=1)
        self.up1 = nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1)
        self.join2, self.join1, self.mask = conv(64, 32), conv(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(a)
        y = self.join2(torch.cat([self.up2(self.low(b)), b], 1))
        return self.mask(self.join1(torch.cat([self.up1(y), a], 1)))


class Speech(nn.Module):
    """Depthwise convolutions over a second of sound."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, 64, 80, 16, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv1d(64, 64, 9, 2, 4, groups=64), nn.Conv1d(64, 64, 1), nn.BatchNorm1d(64), nn.ReLU()]
        self.layers, self.classes = nn.Sequential(*layers), nn.Linear(64, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classes(self.layers(x).mean(2))


def _images(channels: int, size: int) -> Callable[[int], Tensors]:
    """Return inputs as smooth as photographs are: noise of a few scales."""

    def draw(count: int) -> Tensors:
        parts = [torch.randn(count, channels, size >> k, size >> k) for k in (0, 2, 4)]
        return (sum(F.interpolate(part, (size, size), mode="bilinear") for part in parts),)  # type: ignore[return-value]

    return draw


def _words(most: int, length: int) -> Callable[[int], Tensors]:
    return lambda count: (torch.randint(0, most, (count, length)),)


KINDS: dict[str, Kind] = {
    "small_cnn": Kind(build=small_cnn, inputs=_images(1, 32)),
    "resnet18": Kind(build=resnet18, inputs=_images(3, 128)),
    "mobilenet_v2": Kind(build=lambda: mobilenet(nn.ReLU6, False), inputs=_images(3, 128)),
    "mobilenet_v3": Kind(build=lambda: mobilenet(nn.Hardswish, True), inputs=_images(3, 128)),
    "lstm": Kind(build=lambda: Recurrent(nn.LSTM), inputs=_words(1000, 40)),
    "bilstm": Kind(build=lambda: Recurrent(nn.LSTM, True), inputs=_words(1000, 40)),
    "gru": Kind(build=lambda: Recurrent(nn.GRU), inputs=_words(1000, 40)),
    "vit": Kind(build=ViT, inputs=_images(3, 64)),
    "text_encoder": Kind(build=TextEncoder, inputs=_words(2000, 32)),
    "recommender": Kind(
        build=Recommender, inputs=lambda count: (torch.randint(0, 1000, (count,)), torch.randint(0, 1700, (count,)))
    ),
    "unet": Kind(build=UNet, inputs=_images(3, 64)),
    "speech": Kind(build=Speech, inputs=lambda count: (torch.randn(count, 1, 8000).cumsum(2) / 30,)),
}
