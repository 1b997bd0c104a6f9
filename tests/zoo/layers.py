"""One small network per kind of layer: convolutions, linear, normalisations, activations, pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import network


@network("linear_mlp", (2, 20), note="linear layers, dropout, no convolution")
class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 64)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, 5)

    def forward(self, x):
        x = self.drop(F.relu(self.fc1(x)))
        x = torch.tanh(self.fc2(x))
        return self.fc3(x)


@network("conv1d", (2, 4, 64), note="1-D convolutions with stride, dilation and batch norm")
class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 32, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm1d(32)
        self.conv2 = nn.Conv1d(32, 48, 3, padding=2, dilation=2, bias=False)
        self.bn2 = nn.BatchNorm1d(48)
        self.pool = nn.AvgPool1d(2)
        self.fc = nn.Linear(48, 6)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        return self.fc(x.mean(dim=2))


@network("conv2d", (2, 3, 16, 16), note="convolutions, batch norm, max pooling, flatten over space")
class Conv2d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(64 * 4 * 4, 10)

    def forward(self, x):
        x = F.max_pool2d(self.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(self.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        return self.fc(x)


@network("depthwise", (2, 3, 16, 16), note="depthwise separable convolutions")
class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.pointwise = nn.Conv2d(32, 64, 1)
        self.depthwise2 = nn.Conv2d(64, 64, 5, padding=2, groups=64)
        self.head = nn.Conv2d(64, 7, 1)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        x = F.relu6(self.bn(self.depthwise(x)))
        x = F.relu6(self.depthwise2(self.pointwise(x)))
        return self.head(x).mean([2, 3])


@network("depth_multiplier", (2, 3, 12, 12), note="depthwise convolution with two outputs per channel")
class DepthMultiplier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.expand = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x):
        return self.head(torch.relu(self.expand(torch.relu(self.stem(x)))))


@network("grouped", (2, 3, 16, 16), note="grouped convolutions between dense ones")
class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.mid = nn.Conv2d(32, 64, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.mix = nn.Conv2d(64, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu(self.bn2(self.mid(x)))
        x = F.relu_(self.mix(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


@network("transposed", (2, 3, 8, 8), note="transposed convolutions, one with output padding, one grouped")
class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(32, 48, 2, stride=2)
        self.bn = nn.BatchNorm2d(48)
        self.up2 = nn.ConvTranspose2d(48, 24, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.up3 = nn.ConvTranspose2d(24, 24, 4, stride=2, padding=1, groups=24)
        self.out = nn.Conv2d(24, 2, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.bn(self.up1(x)))
        x = F.leaky_relu(self.up2(x), 0.1)
        return self.out(F.relu(self.up3(x)))


@network("transposed1d", (2, 6, 16), note="1-D transposed convolutions")
class Transposed1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(6, 32, 5, padding=2)
        self.up = nn.ConvTranspose1d(32, 16, 4, stride=2, padding=1)
        self.out = nn.Conv1d(16, 1, 3, padding=1)

    def forward(self, x):
        return torch.tanh(self.out(F.elu(self.up(F.elu(self.stem(x))))))


@network("batch_norm", (2, 3, 12, 12), note="batch norm before and after, without affine, on features")
class BatchNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.bn1 = nn.BatchNorm2d(32, affine=False)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.bn2 = nn.BatchNorm2d(32, eps=1e-3)
        self.bn3 = nn.BatchNorm1d(32)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(F.relu(self.conv2(x)))
        return self.fc(self.bn3(x.amax(dim=(2, 3))))


@network("group_norm", (2, 3, 12, 12), note="group norm with several channels per group")
class GroupNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.gn1 = nn.GroupNorm(4, 32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.gn2 = nn.GroupNorm(1, 64)
        self.head = nn.Conv2d(64, 3, 1)

    def forward(self, x):
        x = F.silu(self.gn1(self.conv1(x)))
        x = F.silu(self.gn2(self.conv2(x)))
        return self.head(x)


@network("layer_norm", (2, 10, 24), note="layer norm over features of a sequence")
class LayerNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(24, 64)
        self.ln1 = nn.LayerNorm(64)
        self.fc2 = nn.Linear(64, 64)
        self.ln2 = nn.LayerNorm(64)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = F.gelu(self.ln1(self.fc1(x)))
        x = x + F.gelu(self.ln2(self.fc2(x)))
        return self.head(x.mean(dim=1))


@network("instance_norm", (2, 3, 12, 12), note="instance norm, with and without affine")
class InstanceNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.in1 = nn.InstanceNorm2d(32, affine=True)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.in2 = nn.InstanceNorm2d(32)
        self.head = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.in1(self.conv1(x)))
        x = F.relu(self.in2(self.conv2(x)))
        return self.head(x)


@network("activations", (2, 3, 8, 8), note="seventeen activation modules in turn, one after each convolution")
class Activations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        activations = [
            nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.ELU(), nn.SELU(), nn.CELU(0.7), nn.GELU(),
            nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(),
            nn.Softplus(), nn.Hardtanh(-2, 2), nn.Identity(),
        ]  # fmt: skip
        self.layers = nn.ModuleList()
        for activation in activations:
            self.layers.append(nn.Sequential(nn.Conv2d(16, 16, 1), activation))
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@network("activations_rare", (2, 12), note="activations that few networks use, as modules and functions")
class RareActivations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 32)
        self.mix = nn.ModuleList([nn.Linear(32, 32) for _ in range(11)])
        self.threshold = nn.Threshold(0.1, 0.0)
        self.rrelu = nn.RReLU()
        self.shrink = nn.Softshrink(0.1)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        x = self.stem(x)
        x = self.mix[0](F.softsign(x))
        x = self.mix[1](F.logsigmoid(x))
        x = self.mix[2](self.threshold(x))
        x = self.mix[3](self.rrelu(x))
        x = self.mix[4](self.shrink(x))
        x = self.mix[5](F.hardshrink(x, 0.1))
        x = self.mix[6](F.tanhshrink(x))
        x = self.mix[7](x.clamp(min=-1.0, max=3.0))
        x = self.mix[8](torch.square(x).sqrt())
        x = self.mix[9](x.sigmoid() * x)
        x = self.mix[10](torch.exp(-x.abs()))
        return self.head(x.relu())


@network("activations_inplace", (2, 3, 8, 8), note="in-place activations and arithmetic on the same tensor")
class InplaceActivations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.conv1(x).relu_()
        y = self.lrelu(self.conv2(x))
        y += x
        y.mul_(0.5).add_(0.1)
        z = F.hardswish(self.conv3(y), inplace=True)
        z.clamp_(-2, 2)
        return self.head(z)


@network("prelu", (2, 3, 12, 12), note="PReLU with one slope per channel and with one slope for all")
class PRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.act1 = nn.PReLU(32)
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1)
        self.act2 = nn.PReLU()
        self.fc = nn.Linear(48, 6)
        self.act3 = nn.PReLU(6)

    def forward(self, x):
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.act3(self.fc(x.mean((2, 3))))


@network("pooling", (2, 3, 32, 32), note="max, average and adaptive pooling, padded, to one and to four cells")
class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.max1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.avg = nn.AvgPool2d(2)
        self.adaptive = nn.AdaptiveAvgPool2d((2, 2))
        self.fc1 = nn.Linear(32 * 2 * 2, 16)
        self.fc2 = nn.Linear(32, 16)

    def forward(self, x):
        x = self.max1(F.relu(self.conv1(x)))
        x = self.avg(F.relu(self.conv2(x)))
        x = F.relu(self.conv3(x))
        a = self.fc1(self.adaptive(x).flatten(1))
        b = self.fc2(F.adaptive_max_pool2d(x, 1)[:, :, 0, 0])
        return a + b


@network("glu", (2, 6, 20), note="gated linear units: two halves of one convolution multiplied")
class GatedUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(6, 64, 3, padding=1)
        self.conv2 = nn.Conv1d(32, 64, 3, padding=1)
        self.glu = nn.GLU(dim=1)
        self.head = nn.Conv1d(32, 3, 1)

    def forward(self, x):
        x = F.glu(self.conv1(x), dim=1)
        x = x + self.glu(self.conv2(x))
        return self.head(x)


@network("conv3d", (2, 2, 8, 8, 8), note="volumetric convolution and pooling")
class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 16, 3, padding=1)
        self.bn = nn.BatchNorm3d(16)
        self.conv2 = nn.Conv3d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.bn(self.conv1(x))), 2)
        x = F.relu(self.conv2(x))
        return self.fc(x.flatten(2).mean(-1))
