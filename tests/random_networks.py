"""Networks put together at random from operators that users combine: convolutions, normalisations, sums, cuts, views.

Sizes come from the tensors wherever users would do so, so that most networks survive pruning. Everything follows from
the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDEST = 64


class Step(nn.Module):
    """One operator: a function of this module and earlier tensors. The function holds no module of its own."""

    def __init__(self, function: Callable[..., torch.Tensor], *sources: int, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.sources = sources
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return self.function(self, *(tensors[source] for source in self.sources))


class RandomNetwork(nn.Module):
    """A stem, some random steps over all earlier tensors, and a linear or convolutional head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = Random(seed)
        widths = [draw.choice([8, 12, 16])]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.steps = nn.ModuleList()
        self.made: list[str] = []
        for _ in range(draw.choice([2, 4, 6, 9])):
            operator = draw.choice(OPERATORS)
            at = draw.randrange(len(widths)) if draw.random() < 0.4 else len(widths) - 1
            made = operator(draw, widths, at)
            if made is None or made[1] > WIDEST:
                continue
            self.steps.append(made[0])
            widths.append(made[1])
            self.made.append(f"{operator.__name__}({at}) -> {made[1]}")
        self.head = nn.Conv2d(widths[-1], 2, 1) if draw.random() < 0.5 else nn.Linear(widths[-1], 3)

    def forward(self, x):
        tensors = [F.relu(self.stem(x))]
        for step in self.steps:
            tensors.append(step(tensors))
        last = tensors[-1]
        return self.head(last if isinstance(self.head, nn.Conv2d) else last.mean((2, 3)))


def random_network(seed: int) -> RandomNetwork:
    """Return the network of a seed in float64 and evaluation mode, with every parameter and statistic in use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RandomNetwork(seed)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
            if isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight)
        return model.double().eval()


Made = tuple[Step, int] | None
Operator = Callable[[Random, list[int], int], Made]
OPERATORS: list[Operator] = []


def operator(function: Operator) -> Operator:
    OPERATORS.append(function)
    return function


def divisors(number: int, limit: int = WIDEST) -> list[int]:
    return [k for k in range(1, min(number, limit) + 1) if number % k == 0]


def same_width(draw: Random, widths: list[int], at: int) -> int:
    return draw.choice([index for index, width in enumerate(widths) if width == widths[at]])


@operator
def convolution(draw: Random, widths: list[int], at: int) -> Made:
    out = draw.choice([4, 6, 8, 12, 16])
    layer = nn.Conv2d(widths[at], out, draw.choice([1, 3]), padding="same", bias=draw.random() < 0.5)
    return Step(lambda m, x: m.layer(x), at, layer=layer), out


@operator
def grouped_convolution(draw: Random, widths: list[int], at: int) -> Made:
    groups = draw.choice(divisors(widths[at]))
    out = groups * draw.choice([1, 2, 3, 4])
    return Step(lambda m, x: m.layer(x), at, layer=nn.Conv2d(widths[at], out, 3, padding=1, groups=groups)), out


@operator
def depthwise(draw: Random, widths: list[int], at: int) -> Made:
    out = widths[at] * draw.choice([1, 1, 2])
    layer = nn.Conv2d(widths[at], out, 3, padding=1, groups=widths[at])
    return Step(lambda m, x: m.layer(x), at, layer=layer), out


@operator
def transposed(draw: Random, widths: list[int], at: int) -> Made:
    groups = draw.choice(divisors(widths[at]))
    out = groups * draw.choice([1, 2, 3])
    layer = nn.ConvTranspose2d(widths[at], out, 3, padding=1, groups=groups)
    return Step(lambda m, x: m.layer(x), at, layer=layer), out


@operator
def linear_per_pixel(draw: Random, widths: list[int], at: int) -> Made:
    out = draw.choice([4, 8, 12])
    return Step(
        lambda m, x: m.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), at, layer=nn.Linear(widths[at], out)
    ), out


@operator
def matrix_product(draw: Random, widths: list[int], at: int) -> Made:
    out = draw.choice([4, 8, 12])
    weights = nn.ParameterList([nn.Parameter(torch.randn(widths[at], out) * 0.3)])
    return Step(lambda m, x: (x.movedim(1, -1) @ m.weights[0]).movedim(-1, 1), at, weights=weights), out


@operator
def norm(draw: Random, widths: list[int], at: int) -> Made:
    width = widths[at]
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(width),
        lambda: nn.InstanceNorm2d(width, affine=True),
        lambda: nn.GroupNorm(draw.choice(divisors(width)), width),
    ]
    return Step(lambda m, x: m.layer(x), at, layer=draw.choice(kinds)()), width


@operator
def layer_norm(draw: Random, widths: list[int], at: int) -> Made:
    layer = nn.LayerNorm(widths[at])
    return Step(lambda m, x: m.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), at, layer=layer), widths[at]


@operator
def activation(draw: Random, widths: list[int], at: int) -> Made:
    kinds = [F.relu, torch.sigmoid, F.gelu, torch.tanh, torch.exp, F.softplus, torch.cos, F.hardswish]
    kind = draw.choice(kinds)
    return Step(lambda m, x: kind(x * 0.5), at), widths[at]


@operator
def prelu(draw: Random, widths: list[int], at: int) -> Made:
    return Step(lambda m, x: m.layer(x), at, layer=nn.PReLU(widths[at])), widths[at]


@operator
def pair(draw: Random, widths: list[int], at: int) -> Made:
    kind = draw.choice([torch.add, torch.mul, torch.maximum, torch.sub])
    return Step(lambda m, x, y: kind(x, y), at, same_width(draw, widths, at)), widths[at]


@operator
def projected_pair(draw: Random, widths: list[int], at: int) -> Made:
    other = draw.randrange(len(widths))
    kind = draw.choice([torch.add, torch.mul])
    return Step(lambda m, x, y: kind(x, m.layer(y)), at, other, layer=nn.Conv2d(widths[other], widths[at], 1)), widths[
        at
    ]


@operator
def stacked_sum(draw: Random, widths: list[int], at: int) -> Made:
    return Step(lambda m, x, y: torch.stack([x, y], 2).sum(2), at, same_width(draw, widths, at)), widths[at]


@operator
def concatenation(draw: Random, widths: list[int], at: int) -> Made:
    other = draw.randrange(len(widths))
    return Step(lambda m, x, y: torch.cat([x, y], 1), at, other), widths[at] + widths[other]


@operator
def both_signs(draw: Random, widths: list[int], at: int) -> Made:
    return Step(lambda m, x: torch.cat([x, -x], 1), at), 2 * widths[at]


@operator
def piece(draw: Random, widths: list[int], at: int) -> Made:
    pieces = draw.choice(divisors(widths[at], 4))
    chosen = draw.randrange(pieces)
    return Step(lambda m, x: x.chunk(pieces, 1)[chosen], at), widths[at] // pieces


@operator
def folded_halves(draw: Random, widths: list[int], at: int) -> Made:
    if widths[at] % 2:
        return None
    return Step(lambda m, x: x[:, x.shape[1] // 2 :] + x[:, : x.shape[1] // 2], at), widths[at] // 2


@operator
def swapped_halves(draw: Random, widths: list[int], at: int) -> Made:
    def swap(m: Any, x: torch.Tensor) -> torch.Tensor:
        result, half = torch.zeros_like(x), x.shape[1] // 2
        result[:, :half] = x[:, half:]
        result[:, half:] = x[:, :half]
        return result

    return None if widths[at] % 2 else (Step(swap, at), widths[at])


@operator
def gated_halves(draw: Random, widths: list[int], at: int) -> Made:
    return None if widths[at] % 2 else (Step(lambda m, x: F.glu(x, 1), at), widths[at] // 2)


@operator
def squeeze_excite(draw: Random, widths: list[int], at: int) -> Made:
    first, second = nn.Linear(widths[at], 4), nn.Linear(4, widths[at])
    return Step(
        lambda m, x: x * torch.sigmoid(m.second(F.relu(m.first(x.mean((2, 3))))))[:, :, None, None],
        at,
        first=first,
        second=second,
    ), widths[at]


@operator
def shuffle(draw: Random, widths: list[int], at: int) -> Made:
    groups = draw.choice(divisors(widths[at]))

    def move(m: Any, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    return Step(move, at), widths[at]


@operator
def maxout(draw: Random, widths: list[int], at: int) -> Made:
    neighbours = draw.random() < 0.5

    def reduce(m: Any, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h, w).amax(2) if neighbours else x.view(n, 2, c // 2, h, w).sum(1)

    return None if widths[at] % 2 else (Step(reduce, at), widths[at] // 2)


@operator
def channel_softmax(draw: Random, widths: list[int], at: int) -> Made:
    return Step(lambda m, x: x * x.softmax(1), at), widths[at]


@operator
def channel_statistic(draw: Random, widths: list[int], at: int) -> Made:
    kinds: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: x.sum(1, keepdim=True) * 0.1,
        lambda x: x.amax(1, keepdim=True),
        lambda x: x.norm(dim=1, keepdim=True),
        lambda x: x.mean(1, keepdim=True),
    ]
    kind = draw.choice(kinds)
    return Step(lambda m, x: x + kind(x), at), widths[at]


@operator
def channel_attention(draw: Random, widths: list[int], at: int) -> Made:
    def attend(m: Any, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        return ((flat @ flat.transpose(1, 2) * 0.1).softmax(-1) @ flat).reshape(x.shape)

    return Step(attend, at), widths[at]


@operator
def spatial_attention(draw: Random, widths: list[int], at: int) -> Made:
    def attend(m: Any, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2).transpose(1, 2)
        return ((flat @ flat.transpose(1, 2) * 0.1).softmax(-1) @ flat).transpose(1, 2).reshape(x.shape)

    return Step(attend, at), widths[at]


@operator
def space_to_depth(draw: Random, widths: list[int], at: int) -> Made:
    return Step(lambda m, x: F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2), at), 4 * widths[at]


@operator
def depth_to_space(draw: Random, widths: list[int], at: int) -> Made:
    return None if widths[at] % 4 else (Step(lambda m, x: F.avg_pool2d(F.pixel_shuffle(x, 2), 2), at), widths[at] // 4)


@operator
def repeated(draw: Random, widths: list[int], at: int) -> Made:
    kind = draw.choice([lambda x: x.repeat(1, 2, 1, 1), lambda x: x.repeat_interleave(2, 1)])
    return Step(lambda m, x: kind(x), at), 2 * widths[at]


@operator
def reversed_channels(draw: Random, widths: list[int], at: int) -> Made:
    return Step(lambda m, x: x.flip(1), at), widths[at]


@operator
def padded_channels(draw: Random, widths: list[int], at: int) -> Made:
    return Step(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.3), at), widths[at] + 3
