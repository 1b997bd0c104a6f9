"""Networks with residual blocks of every common kind, and some modules that only look like blocks."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import nn


def batch_norm(width: int) -> nn.BatchNorm2d:
    """Return a normalisation whose statistics and scales are in use."""
    norm = nn.BatchNorm2d(width)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    return norm


class ResidualLinear(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Basic(nn.Module):
    """relu(x + f(x)), with writes into tensors as in torchvision."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), batch_norm(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), batch_norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(width, out, 1, stride, bias=False) if (width, stride) != (out, 1) else None

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


class Inverted(nn.Module):
    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        hidden = 2 * width
        self.body = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False),
            batch_norm(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            batch_norm(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out, 1, bias=False),
            batch_norm(out),
        )
        self.adds = stride == 1 and width == out

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


class Attention(nn.Module):
    """A transformer layer of its own, pre-norm or post-norm."""

    def __init__(self, width: int, *, first: bool = True) -> None:
        super().__init__()
        self.first = first
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        if self.first:
            y = self.norm1(x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.mlp(x))


class Residual(nn.Module):
    """x + f(x) for any f."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class Offset(nn.Module):
    """Its branch has a constant that is no parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return x + self.layer(x) + 0.001


class Tuples(nn.Module):
    """Its blocks return what they got, what they made, and plain values, and take keyword arguments."""

    class Block(nn.Module):
        kind = "full"

        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Linear(width, width)
            self.attention_type = "full"

        def forward(self, other, *, hidden, size, mask=None):
            branch = self.layer(hidden + other)
            return None, (hidden + (branch if mask is None else branch * mask), size), {"mask": mask, "name": "block"}

    def __init__(self, width: int = 6, depth: int = 3) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList([self.Block(width) for _ in range(depth)])

    def forward(self, x):
        hidden, size = self.stem(x), x.shape[0]
        mask = (x[:, :1] > 0).to(x.dtype)
        for block in self.blocks:
            assert block.attention_type == "full"
            nothing, (hidden, size), more = block(hidden * 2, hidden=hidden, size=size, mask=mask)
            mask = more["mask"]
            assert nothing is None
            assert more["name"] == "block"
        return self.head(hidden) * size


def residual_mlp(depth: int = 4, width: int = 8) -> nn.Sequential:
    blocks = nn.Sequential(*(ResidualLinear(width, 12) for _ in range(depth)))
    return nn.Sequential(nn.Linear(5, width), blocks, nn.LayerNorm(width), nn.Linear(width, 3))


def resnet() -> nn.Sequential:
    """Two stages of basic blocks; the second one begins with a block of stride 2."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(Basic(8, 8), Basic(8, 8)),
        nn.Sequential(Basic(8, 16, 2), Basic(16, 16)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def random_stack(seed: int) -> tuple[nn.Sequential, list[str]]:
    """Return a random stack of blocks and other layers in float64, and which of its modules are blocks."""
    draw = Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = draw.choice([4, 6, 8])
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        names, positive = [], True
        for _ in range(draw.randint(1, 6)):
            kind = draw.choice(["basic", "inverted", "wrapped", "wider", "norm", "act", "offset"])
            if kind in ("inverted", "wrapped") or (kind == "basic" and positive):
                names.append(str(len(layers)))
            positive = kind in ("basic", "wider", "act") or (kind == "offset" and positive)
            if kind in ("basic", "inverted"):
                layers.append(Basic(width, width) if kind == "basic" else Inverted(width, width))
            elif kind == "wrapped":
                layers.append(Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))))
            elif kind == "wider":
                layers.append(Basic(width, width + 2, draw.choice([1, 2])))
                width += 2
            elif kind == "offset":
                layers.append(Residual(nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.Sigmoid())))
            else:
                layers.append(batch_norm(width) if kind == "norm" else nn.ReLU(inplace=True))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
        return nn.Sequential(*layers).double().eval(), names
