"""Mobile architectures: MobileNetV2 and V3, ShuffleNetV2, EfficientNet, GhostNet, a DS-CNN for keywords."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import network


def make_divisible(v, divisor=8):
    return max(divisor, int(v + divisor / 2) // divisor * divisor)


class InvertedResidual(nn.Module):
    def __init__(self, inp, oup, stride, expand_ratio):
        super().__init__()
        hidden_dim = round(inp * expand_ratio)
        self.use_res_connect = stride == 1 and inp == oup
        layers = []
        if expand_ratio != 1:
            layers += [
                nn.Conv2d(inp, hidden_dim, 1, bias=False),
                nn.BatchNorm2d(hidden_dim),
                nn.ReLU6(inplace=True),
            ]
        layers += [
            nn.Conv2d(hidden_dim, hidden_dim, 3, stride, 1, groups=hidden_dim, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden_dim, oup, 1, bias=False),
            nn.BatchNorm2d(oup),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


@network("mobilenet_v2", (2, 3, 32, 32), note="inverted residuals with linear bottlenecks")
class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        features = [nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))]
        width = 16
        for t, c, n, s in [(1, 8, 1, 1), (6, 16, 2, 2), (6, 24, 2, 2)]:
            for i in range(n):
                features.append(InvertedResidual(width, c, s if i == 0 else 1, t))
                width = c
        features.append(nn.Sequential(nn.Conv2d(width, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6(True)))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(128, 10))

    def forward(self, x):
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1)
        return self.classifier(x)


class SeModule(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        squeezed = make_divisible(channels // reduction)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = F.relu(self.fc1(scale))
        return F.hardsigmoid(self.fc2(scale)) * x


class BneckV3(nn.Module):
    def __init__(self, inp, exp, out, kernel, se, hs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inp, exp, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(exp)
        self.act = nn.Hardswish(inplace=True) if hs else nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(exp, exp, kernel, stride, kernel // 2, groups=exp, bias=False)
        self.bn2 = nn.BatchNorm2d(exp)
        self.se = SeModule(exp) if se else nn.Identity()
        self.conv3 = nn.Conv2d(exp, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.residual = stride == 1 and inp == out

    def forward(self, x):
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.se(y)))
        return x + y if self.residual else y


@network("mobilenet_v3", (2, 3, 32, 32), note="squeeze and excitation, hard swish, a head of 1 x 1 convolutions")
class MobileNetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.bneck = nn.Sequential(
            BneckV3(16, 32, 16, 3, True, False, 1),
            BneckV3(16, 64, 24, 5, False, True, 2),
            BneckV3(24, 72, 24, 3, True, True, 1),
        )
        self.conv2 = nn.Conv2d(24, 96, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(96)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv3 = nn.Conv2d(96, 64, 1)
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.hardswish(self.bn1(self.conv1(x)))
        x = self.bneck(x)
        x = F.hardswish(self.bn2(self.conv2(x)), inplace=True)
        x = F.hardswish(self.conv3(self.pool(x)))
        return self.linear(x.flatten(1))


def channel_shuffle(x, groups):
    batchsize, num_channels, height, width = x.size()
    channels_per_group = num_channels // groups
    x = x.view(batchsize, groups, channels_per_group, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, num_channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, inp, oup, stride):
        super().__init__()
        self.stride = stride
        half = oup // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False), nn.BatchNorm2d(inp),
                nn.Conv2d(inp, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            )  # fmt: skip
        self.branch2 = nn.Sequential(
            nn.Conv2d(inp if stride > 1 else half, half, 1, bias=False), nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x):
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


@network("shufflenet_v2", (2, 3, 32, 32), note="halves of the channels pass by, then a channel shuffle")
class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.stage2 = nn.Sequential(ShuffleUnit(16, 48, 2), ShuffleUnit(48, 48, 1), ShuffleUnit(48, 48, 1))
        self.stage3 = nn.Sequential(ShuffleUnit(48, 96, 2), ShuffleUnit(96, 96, 1))
        self.conv5 = nn.Sequential(nn.Conv2d(96, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(inplace=True))
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        x = self.stage3(self.stage2(self.conv1(x)))
        x = self.conv5(x)
        x = x.mean([2, 3])
        return self.fc(x)


class ShuffleUnitV1(nn.Module):
    """Its blocks of channels do not end where the concatenation or the shuffle has borders."""

    def __init__(self, inp, oup, stride, groups, first_groups):
        super().__init__()
        self.stride, self.groups = stride, groups
        mid = oup // 4
        self.compress = nn.Conv2d(inp, mid, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.dw = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.expand = nn.Conv2d(mid, oup - inp if stride == 2 else oup, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(oup - inp if stride == 2 else oup)

    def forward(self, x):
        y = F.relu(self.bn1(self.compress(x)))
        y = channel_shuffle(y, self.groups)
        y = self.bn3(self.expand(self.bn2(self.dw(y))))
        if self.stride == 2:
            return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1))
        return F.relu(x + y)


@network("shufflenet_v1_g3", (2, 3, 32, 32), note="three groups whose borders a concatenation and a shuffle cross")
class ShuffleNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.stage2 = nn.Sequential(ShuffleUnitV1(24, 120, 2, 3, 1), ShuffleUnitV1(120, 120, 1, 3, 3))
        self.stage3 = nn.Sequential(ShuffleUnitV1(120, 240, 2, 3, 3), ShuffleUnitV1(240, 240, 1, 3, 3))
        self.fc = nn.Linear(240, 10)

    def forward(self, x):
        x = self.stage3(self.stage2(self.stem(x)))
        return self.fc(x.mean([2, 3]))


class MBConv(nn.Module):
    def __init__(self, inp, out, expand, kernel, stride):
        super().__init__()
        mid = inp * expand
        self.expand = nn.Sequential(nn.Conv2d(inp, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.SiLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(mid, mid, kernel, stride, kernel // 2, groups=mid, bias=False),
            nn.BatchNorm2d(mid),
            nn.SiLU(),
        )
        self.se_reduce = nn.Conv2d(mid, max(1, inp // 4), 1)
        self.se_expand = nn.Conv2d(max(1, inp // 4), mid, 1)
        self.project = nn.Sequential(nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out))
        self.skip = stride == 1 and inp == out

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        s = y.mean((2, 3), keepdim=True)
        s = self.se_expand(F.silu(self.se_reduce(s)))
        y = self.project(torch.sigmoid(s) * y)
        if self.skip:
            y = y + x
        return y


@network("efficientnet", (2, 3, 32, 32), note="MBConv with SiLU and squeeze-excitation, 5 x 5 depthwise")
class EfficientNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.blocks = nn.Sequential(MBConv(16, 16, 4, 3, 1), MBConv(16, 24, 6, 5, 2), MBConv(24, 24, 6, 5, 1))
        self.head = nn.Sequential(nn.Conv2d(24, 96, 1, bias=False), nn.BatchNorm2d(96), nn.SiLU())
        self.classifier = nn.Linear(96, 10)

    def forward(self, x):
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


class GhostModule(nn.Module):
    def __init__(self, inp, oup, relu=True):
        super().__init__()
        self.oup = oup
        init_channels = (oup + 1) // 2
        self.primary_conv = nn.Sequential(
            nn.Conv2d(inp, init_channels, 1, bias=False), nn.BatchNorm2d(init_channels),
            nn.ReLU(inplace=True) if relu else nn.Sequential(),
        )  # fmt: skip
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(init_channels, init_channels, 3, 1, 1, groups=init_channels, bias=False),
            nn.BatchNorm2d(init_channels),
            nn.ReLU(inplace=True) if relu else nn.Sequential(),
        )

    def forward(self, x):
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        out = torch.cat([x1, x2], dim=1)
        return out[:, : self.oup, :, :]


class GhostBottleneck(nn.Module):
    def __init__(self, inp, hidden, oup):
        super().__init__()
        self.ghost1 = GhostModule(inp, hidden)
        self.ghost2 = GhostModule(hidden, oup, relu=False)
        self.shortcut = nn.Sequential()
        if inp != oup:
            self.shortcut = nn.Sequential(nn.Conv2d(inp, oup, 1, bias=False), nn.BatchNorm2d(oup))

    def forward(self, x):
        return self.ghost2(self.ghost1(x)) + self.shortcut(x)


@network("ghostnet", (2, 3, 32, 32), note="half of the channels computed from the other half, then added")
class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.layers = nn.Sequential(
            GhostBottleneck(16, 48, 24), GhostBottleneck(24, 64, 24), GhostBottleneck(24, 64, 32)
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.layers(F.relu(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@network("ds_cnn", (2, 1, 40, 16), note="keyword spotting on 40 mel bands as a 1-D depthwise separable network")
class DsCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_channels = 64
        self.conv_in = nn.Conv1d(40, self.n_channels, 3, padding=1)
        self.layers = nn.ModuleList()
        for _ in range(3):
            self.layers.append(nn.Conv1d(64, 64, 3, padding=1, groups=64))
            self.layers.append(nn.BatchNorm1d(64))
            self.layers.append(nn.Conv1d(64, 64, 1))
        self.final_bn = nn.BatchNorm1d(64)
        self.fc = nn.Linear(self.n_channels, 12)

    def forward(self, x):
        x = x.squeeze(1)
        x = F.relu(self.conv_in(x))
        for i in range(0, len(self.layers), 3):
            x = F.relu(self.layers[i + 2](F.relu(self.layers[i + 1](self.layers[i](x)))))
        x = self.final_bn(x)
        x = F.avg_pool1d(x, x.shape[-1]).view(-1, self.n_channels)
        return F.log_softmax(self.fc(x), dim=1)
