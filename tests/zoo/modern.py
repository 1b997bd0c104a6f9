"""Newer shapes: ConvNeXt, MLP-Mixer, RepVGG before fusion, CBAM attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import network


class LayerNormFirst(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(dim) + 0.5)
        self.bias = nn.Parameter(torch.randn(dim) * 0.2)
        self.eps = 1e-6

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.rand(dim))

    def forward(self, x):
        shortcut = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        return shortcut + x


@network("convnext", (2, 3, 32, 32), note="channels-last layer norm and linears, layer scale")
class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, stride=4)
        self.norm0 = nn.LayerNorm(32)
        self.stage1 = nn.Sequential(ConvNeXtBlock(32), ConvNeXtBlock(32))
        self.down = nn.Conv2d(32, 48, 2, stride=2)
        self.stage2 = ConvNeXtBlock(48)
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = self.norm0(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.stage2(self.down(self.stage1(x)))
        return self.head(self.norm(x.mean([-2, -1])))


@network("convnext_channels_first", (2, 3, 16, 16), note="layer norm over channels written out by hand")
class ConvNeXtFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 2, stride=2), LayerNormFirst(32))
        self.expand = nn.Conv2d(32, 64, 1)
        self.project = nn.Conv2d(64, 32, 1)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(F.gelu(self.expand(x)))
        return self.head(x)


class MixerBlock(nn.Module):
    def __init__(self, tokens, channels):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.token_mix = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.norm2 = nn.LayerNorm(channels)
        self.channel_mix = nn.Sequential(nn.Linear(channels, 96), nn.GELU(), nn.Dropout(0.1), nn.Linear(96, channels))

    def forward(self, x):
        y = self.norm1(x).transpose(1, 2)
        x = x + self.token_mix(y).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


@network("mlp_mixer", (2, 3, 16, 16), note="linear layers over tokens and over channels in turn")
class MlpMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 48, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(16, 48), MixerBlock(16, 48))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = self.embed(x)
        b, c, h, w = x.shape
        x = x.view(b, c, h * w).permute(0, 2, 1)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class RepVggBlock(nn.Module):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(in_channels) if in_channels == out_channels and stride == 1 else None
        self.rbr_dense = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.rbr_1x1 = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.nonlinearity = nn.ReLU()

    def forward(self, inputs):
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return self.nonlinearity(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + id_out)


@network("repvgg", (2, 3, 32, 32), note="three parallel branches per block, one of them only a batch norm")
class RepVgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage0 = RepVggBlock(3, 16, 2)
        self.stage1 = nn.Sequential(RepVggBlock(16, 32, 2), RepVggBlock(32, 32))
        self.stage2 = nn.Sequential(RepVggBlock(32, 64, 2), RepVggBlock(64, 64))
        self.gap = nn.AdaptiveAvgPool2d(output_size=1)
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        out = self.stage2(self.stage1(self.stage0(x)))
        out = self.gap(out)
        out = out.view(out.size(0), -1)
        return self.linear(out)


class Cbam(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1, bias=False), nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1, bias=False),
        )  # fmt: skip
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        gate = torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
        x = x * gate
        avg = torch.mean(x, dim=1, keepdim=True)
        top, _ = torch.max(x, dim=1, keepdim=True)
        return x * torch.sigmoid(self.spatial(torch.cat([avg, top], dim=1)))


@network("cbam", (2, 3, 16, 16), note="attention over channels and over space: mean and maximum of the channels")
class CbamNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.attention = Cbam(32)
        self.conv2 = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.fc = nn.Linear(48, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + self.attention(x)
        x = F.relu(self.conv2(x))
        return self.fc(x.mean((2, 3)))
