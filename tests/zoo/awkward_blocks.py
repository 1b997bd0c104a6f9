"""More plain networks that defeat pruning tools: attention by hand, gates, loops, hooks, branches for training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.awkward import AWKWARD, IMAGE
from tests.zoo.entry import network


@network("split_attention", IMAGE, into=AWKWARD, note="radix softmax over stacked branches (ResNeSt)")
class SplitAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 64, 3, padding=1, groups=2)
        self.fc1 = nn.Conv2d(32, 16, 1)
        self.fc2 = nn.Conv2d(16, 64, 1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.conv(F.relu(self.stem(x))))
        n, c = x.shape[:2]
        parts = torch.split(x, c // 2, 1)
        gate = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(sum(parts), 1))))
        gate = gate.view(n, 1, 2, -1).transpose(1, 2).softmax(1).reshape(n, -1)
        gates = torch.split(gate.view(n, -1, 1, 1), c // 2, 1)
        return self.fc(sum(g * p for g, p in zip(gates, parts, strict=True)).mean((2, 3)))


@network("attention_over_pixels", IMAGE, into=AWKWARD, note="non-local block: queries, keys and values by bmm")
class NonLocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.q, self.k, self.v = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, _, h, w = x.shape
        q, k, v = (layer(x).view(n, -1, h * w) for layer in (self.q, self.k, self.v))
        attention = torch.bmm(q.permute(0, 2, 1), k).softmax(-1)
        y = torch.bmm(v, attention.permute(0, 2, 1)).view(n, -1, h, w)
        return self.fc((x + self.out(y)).mean((2, 3)))


@network("attention_over_channels", IMAGE, into=AWKWARD, note="channel affinities with a softmax over channels (DANet)")
class ChannelAffinity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.gamma = nn.Parameter(torch.ones(1))
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        flat = x.view(n, c, -1)
        energy = torch.bmm(flat, flat.permute(0, 2, 1)) * 0.1
        attention = F.softmax(torch.max(energy, -1, keepdim=True)[0].expand_as(energy) - energy, -1)
        return self.fc((self.gamma * torch.bmm(attention, flat).view(n, c, h, w) + x).mean((2, 3)))


@network("coordinate_attention", IMAGE, into=AWKWARD, note="pooling along height and width, cat and split of positions")
class CoordinateAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.conv = nn.Conv2d(16, 8, 1)
        self.bn = nn.BatchNorm2d(8)
        self.rows, self.columns = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        _, _, h, w = x.size()
        a, b = F.adaptive_avg_pool2d(x, (h, 1)), F.adaptive_avg_pool2d(x, (1, w)).permute(0, 1, 3, 2)
        a, b = torch.split(F.hardswish(self.bn(self.conv(torch.cat([a, b], 2)))), [h, w], 2)
        gate = self.rows(a).sigmoid() * self.columns(b.permute(0, 1, 3, 2)).sigmoid()
        return self.fc((x * gate).mean((2, 3)))


@network(
    "norm_by_hand", IMAGE, into=AWKWARD, note="layer norm over channels written out, with C ** -0.5 elsewhere fixed"
)
class NormByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.weight, self.bias = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.rand(16))
        self.conv2 = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.conv1(x)
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        x = self.weight[:, None, None] * x + self.bias[:, None, None]
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


@network("scaled_by_width", IMAGE, into=AWKWARD, note="x / sqrt(C) with C from the shape pins; the next layer is free")
class ScaledByWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        return self.fc(F.relu(self.conv2(x * x.size(1) ** -0.5)).mean((2, 3)))


@network("maxout", IMAGE, into=AWKWARD, note="maximum over neighbouring channels and over halves")
class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(16, 32, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.conv1(x)
        n, c, h, w = x.shape
        x = self.conv2(F.relu(x.view(n, c // 2, 2, h, w).amax(2)))
        return self.fc(F.relu(torch.max(*x.chunk(2, 1))).mean((2, 3)))


@network("outer_product", (2, 20), into=AWKWARD, note="the flattened outer product of two feature vectors")
class OuterProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(20, 8), nn.Linear(20, 6)
        self.fc = nn.Linear(48, 4)

    def forward(self, x):
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return self.fc(torch.bmm(a.unsqueeze(2), b.unsqueeze(1)).reshape(len(x), -1))


@network("recurrent_by_hand", (2, 5, 12), into=AWKWARD, note="an LSTM written out: gates by chunk, state in a loop")
class RecurrentByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(12, 64), nn.Linear(16, 64)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        h = c = x.new_zeros(len(x), self.h.in_features)
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.fc(h)


@network("low_rank", (2, 20), into=AWKWARD, note="a weight that is a product of two, and an adapter beside another")
class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 16)
        self.u, self.v = nn.Parameter(torch.randn(16, 8) * 0.4), nn.Parameter(torch.randn(8, 16) * 0.4)
        self.fc2 = nn.Linear(16, 16)
        self.down, self.up = nn.Linear(16, 8, bias=False), nn.Linear(8, 16, bias=False)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(F.linear(F.relu(self.fc1(x)), self.u @ self.v))
        return self.out(F.relu(self.fc2(x) + 0.5 * self.up(self.down(x))))


@network("hooks_of_its_own", IMAGE, into=AWKWARD, note="features kept by a hook and used later; a hook that activates")
class OwnHooks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 4)
        self.kept: dict[str, torch.Tensor] = {}
        self.conv1.register_forward_hook(self.keep)
        self.conv2.register_forward_hook(lambda module, args, result: result.relu())

    def keep(self, module, args, result):
        self.kept["conv1"] = result

    def forward(self, x):
        x = self.conv2(F.relu(self.conv1(x)))
        return self.fc((x + self.kept["conv1"]).mean((2, 3)))


@network("times_and_batches", (2, 3, 4, 8, 8), into=AWKWARD, note="frames folded into the batch, then 1-D convolution")
class TimesAndBatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.temporal = nn.Conv1d(16, 16, 3)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        n, c, t, h, w = x.shape
        x = F.relu(self.conv(x.transpose(1, 2).reshape(n * t, c, h, w))).mean((2, 3))
        return self.fc(F.relu(self.temporal(x.view(n, t, -1).transpose(1, 2))).mean(2))


@network("training_branch", IMAGE, into=AWKWARD, note="an auxiliary head that only training runs")
class TrainingBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1)
        self.aux = nn.Linear(16, 4)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        y = self.fc(F.relu(self.conv2(x)).mean((2, 3)))
        return (y, self.aux(x.mean((2, 3)))) if self.training else y


@network("zero_residual", IMAGE, into=AWKWARD, note="a residual branch scaled by zero (ReZero, zero gamma)")
class ZeroResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.fc((x + self.alpha * self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))
