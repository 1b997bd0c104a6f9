"""Plain networks of the kind that defeats pruning tools: sharing, dynamic weights, cuts in place, coincident sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import Entry, network

AWKWARD: dict[str, Entry] = {}

IMAGE = (2, 3, 8, 8)


@network("changes_its_input", IMAGE, into=AWKWARD, note="normalises its input in place")
class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x.sub_(0.5).div_(0.25)
        return self.fc(F.relu_(self.conv2(F.relu_(self.conv1(x)))).mean((2, 3)))


@network("fills_a_cache", IMAGE, into=AWKWARD, note="makes a coordinate grid at the first call and keeps it")
class FillsACache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(17, 16, 3)
        self.fc = nn.Linear(16, 4)
        self.grid = None

    def forward(self, x):
        if self.grid is None:
            self.grid = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype).expand(1, 1, *x.shape[2:])
        x = torch.cat([F.relu(self.conv1(x)), self.grid.expand(len(x), -1, -1, -1)], 1)
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


@network("halves_swapped_in_place", IMAGE, into=AWKWARD, note="slice assignment into zeros_like")
class HalvesSwapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        y, half = torch.zeros_like(x), x.shape[1] // 2
        y[:, :half], y[:, half:] = x[:, half:], x[:, :half]
        return self.fc(F.relu(self.conv2(y)).mean((2, 3)))


@network("channel_shift", IMAGE, into=AWKWARD, note="quarters of the channels move by one pixel (TSM, Shift)")
class ChannelShift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        y, fold = torch.zeros_like(x), x.shape[1] // 4
        y[:, :fold, :, 1:] = x[:, :fold, :, :-1]
        y[:, fold : 2 * fold, :, :-1] = x[:, fold : 2 * fold, :, 1:]
        y[:, 2 * fold :] = x[:, 2 * fold :]
        return self.fc(F.relu(self.conv2(y)).mean((2, 3)))


@network("grouped_after_cat", IMAGE, into=AWKWARD, note="group borders that lie across the border of a cat")
class GroupedAfterCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(3, 16, 3)
        self.grouped = nn.Conv2d(24, 48, 3, groups=3)
        self.fc = nn.Linear(48, 4)

    def forward(self, x):
        x = torch.cat([self.conv1(x), self.conv2(x)], 1).relu()
        return self.fc(F.relu(self.grouped(x)).mean((2, 3)))


@network("crelu_grouped", IMAGE, into=AWKWARD, note="cat([x, -x]) into batch norm and two groups")
class CReluGrouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.bn = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 16, 1, groups=2)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(self.bn(F.relu(torch.cat([x, -x], 1))))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


@network("cat_with_itself", IMAGE, into=AWKWARD, note="the same features three times, once reversed")
class CatWithItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(24, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        return self.head(F.relu(self.conv2(torch.cat([x, x, x.flip(1)], 1))))


@network(
    "transposed_grouped", IMAGE, into=AWKWARD, note="transposed convolutions: grouped, depthwise, with a multiplier"
)
class TransposedGrouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.grouped = nn.ConvTranspose2d(16, 32, 2, 2, groups=4)
        self.depthwise = nn.ConvTranspose2d(32, 32, 2, 2, groups=32)
        self.multiplied = nn.ConvTranspose2d(32, 64, 2, 2, groups=32)
        self.head = nn.Conv2d(64, 4, 1)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.conv(x))))
        return self.head(F.relu(self.multiplied(F.relu(self.depthwise(x)))))


@network("pixel_shuffle_after_cat", IMAGE, into=AWKWARD, note="sub-pixel blocks that come from two convolutions")
class PixelShuffleAfterCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(3, 24, 3)
        self.conv3 = nn.Conv2d(8, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = F.pixel_shuffle(torch.cat([self.conv1(x), self.conv2(x)], 1), 2)
        return self.head(F.relu(self.conv3(F.relu(x))))


@network("shared_by_two_branches", IMAGE, into=AWKWARD, note="one convolution on two different tensors")
class SharedByTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(3, 16, 3)
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        a, b = self.shared(self.conv1(x).relu()).relu(), self.shared(self.conv2(x).relu()).relu()
        return self.fc(torch.cat([a, b], 1).mean((2, 3)))


@network("weight_of_another_layer", (2, 20), into=AWKWARD, note="two layers with one weight, and its transpose")
class WeightOfAnother(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 16)
        self.fc2 = nn.Linear(16, 16)
        self.fc3 = nn.Linear(16, 16)
        self.fc3.weight = self.fc2.weight
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))))
        return self.out(F.relu(F.linear(x, self.fc2.weight.t())))


@network("shared_data", (2, 20), into=AWKWARD, note="two parameters over the same memory")
class SharedData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 16)
        self.fc2 = nn.Linear(16, 16)
        self.fc3 = nn.Linear(16, 16)
        self.fc3.weight.data = self.fc2.weight.data
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        return self.out(F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))))


@network("constants_per_channel", IMAGE, into=AWKWARD, note="a buffer that is not saved, a mask buffer, a plain tensor")
class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.register_buffer("scale", torch.linspace(0.5, 2, 16).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("mask", torch.arange(16) % 3 == 0)
        self.conv2 = nn.Conv2d(16, 16, 1)
        self.plain = torch.linspace(1, 2, 16).view(1, -1, 1, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x)) * self.scale
        x = x.masked_fill(self.mask[None, :, None, None], 0.0)
        return self.fc((F.relu(self.conv2(x)) * self.plain).mean((2, 3)))


@network("norms_without_parameters", IMAGE, into=AWKWARD, note="batch, instance, group and layer norm without affine")
class NormsWithout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
        self.bn = nn.BatchNorm2d(16, affine=False)
        self.instance = nn.InstanceNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 1)
        self.group = nn.GroupNorm(4, 32, affine=False)
        self.layer = nn.LayerNorm(32, elementwise_affine=False)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.instance(self.bn(self.conv1(x))))
        x = F.relu(self.group(self.conv2(x))).mean((2, 3))
        return self.fc(self.layer(x))


@network("square_groups", IMAGE, into=AWKWARD, note="group norm with as many groups as channels in a group")
class SquareGroups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3)
        self.norm = nn.GroupNorm(8, 64)
        self.conv2 = nn.Conv2d(64, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.relu(self.norm(self.conv1(x))))).mean((2, 3)))


@network("batch_norm_own_statistics", IMAGE, into=AWKWARD, note="momentum None, no running statistics")
class BatchNormStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16, momentum=None)
        self.conv2 = nn.Conv2d(16, 16, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16, track_running_stats=False)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


@network("parameter_lists", IMAGE, into=AWKWARD, note="weights in ParameterList and ParameterDict, functional calls")
class ParameterLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.randn(16, 3, 3, 3) * 0.3), nn.Parameter(torch.randn(16, 16, 3, 3) * 0.1)]
        )
        self.head = nn.ParameterDict({"weight": nn.Parameter(torch.randn(4, 16))})

    def forward(self, x):
        for weight in self.weights:
            x = F.relu(F.conv2d(x, weight))
        return F.linear(x.mean((2, 3)), self.head["weight"])


@network("batch_of_sixteen", (16, 16, 2, 2), into=AWKWARD, note="batch size equals channels, groups and outputs")
class BatchOfSixteen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 1, groups=16)
        self.head = nn.Conv2d(16, 16, 2)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        return self.head(F.relu(self.depthwise(x)) + x).flatten(1)


@network("weight_made_of_weights", IMAGE, into=AWKWARD, note="a kernel times a mask, plus a padded 1x1 kernel")
class WeightOfWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.large = nn.Parameter(torch.randn(16, 8, 3, 3) * 0.2)
        self.small = nn.Parameter(torch.randn(16, 8, 1, 1) * 0.2)
        self.gain = nn.Parameter(torch.rand(16, 1, 1, 1) + 0.5)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        weight = (self.large + F.pad(self.small, (1, 1, 1, 1))) * self.gain
        return self.fc(F.relu(F.conv2d(F.relu(self.stem(x)), weight)).mean((2, 3)))


@network("slice_of_a_weight", IMAGE, into=AWKWARD, note="the first columns of a larger weight")
class SliceOfAWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(32, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(F.conv2d(x, self.conv2.weight[:, : x.shape[1]], self.conv2.bias))
        return self.fc(x.mean((2, 3)))


@network("dilations_of_one_kernel", IMAGE, into=AWKWARD, note="one bare kernel at three dilations, concatenated")
class Dilations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3)
        self.conv = nn.Conv2d(24, 16, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.cat([F.conv2d(x, self.weight, padding=d, dilation=d) for d in (1, 2, 3)], 1)
        return self.fc(F.relu(self.conv(F.relu(x))).mean((2, 3)))
