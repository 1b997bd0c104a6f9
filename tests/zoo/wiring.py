"""One small network per way of connecting layers: sums, products, concatenation, views, shuffles, sharing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import network


@network("residual", (2, 3, 12, 12), note="two additions that tie three convolutions")
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.a1 = nn.Conv2d(32, 48, 3, padding=1)
        self.a2 = nn.Conv2d(48, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a2(F.relu(self.a1(x))))
        out = self.b(x)
        out += x
        return self.fc(out.mean(dim=[2, 3]))


@network("se_mul", (2, 3, 12, 12), note="squeeze and excitation: channels multiplied by a gate")
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.channels = 64
        self.conv = nn.Conv2d(3, self.channels, 3, padding=1)
        self.fc1 = nn.Linear(self.channels, self.channels // 4)
        self.fc2 = nn.Linear(self.channels // 4, self.channels)
        self.out = nn.Conv2d(self.channels, 5, 1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        s = F.adaptive_avg_pool2d(x, 1).view(-1, self.channels)
        s = torch.sigmoid(self.fc2(F.relu(self.fc1(s))))
        x = x * s.view(-1, self.channels, 1, 1)
        return self.out(x)


@network("se_expand_as", (2, 3, 12, 12), note="the same gate with x.size() and expand_as")
class SqueezeExciteExpand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.gate = nn.Sequential(nn.Linear(32, 8, bias=False), nn.ReLU(inplace=True), nn.Linear(8, 32, bias=False))
        self.out = nn.Conv2d(32, 5, 1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        b, c, _, _ = x.size()
        y = self.gate(x.mean((2, 3))).sigmoid().view(b, c, 1, 1)
        return self.out(x * y.expand_as(x))


@network("cat", (2, 3, 12, 12), note="concatenation of branches, of a branch with itself and with the input")
class Cat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.b = nn.Conv2d(3, 32, 3, padding=1)
        self.bn = nn.BatchNorm2d(16 + 32 + 3)
        self.mix = nn.Conv2d(51, 32, 3, padding=1)
        self.last = nn.Conv2d(64, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        y = torch.cat([self.a(x), self.b(x), x], dim=1)
        y = F.relu(self.mix(F.relu(self.bn(y))))
        y = torch.cat((y, -y), 1)
        return self.fc(F.relu(self.last(y)).mean((2, 3)))


@network("split_chunk", (2, 3, 12, 12), note="split, chunk and slices of one convolution's channels")
class SplitChunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 3, padding=1)
        self.a = nn.Conv2d(16, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 32, 3, padding=1)
        self.c = nn.Conv2d(16, 8, 1)
        self.d = nn.Conv2d(16, 8, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        first, second = torch.split(x, [16, 32], dim=1)
        y = self.a(first) + self.b(second)
        lo, hi = y.chunk(2, dim=1)
        y = torch.cat([self.c(lo), self.d(hi)], 1)
        return self.head(F.relu(y))


@network("slices", (2, 20), note="halves taken by slicing with a literal and with a size from the tensor")
class Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 64)
        self.fc2 = nn.Linear(32, 48)
        self.fc3 = nn.Linear(24, 5)

    def forward(self, x):
        x = self.fc1(x)
        x = F.relu(x[:, :32]) * torch.sigmoid(x[:, 32:])
        x = self.fc2(x)
        half = x.shape[1] // 2
        return self.fc3(torch.tanh(x[:, :half]) + x[:, half:])


@network("lenet", (2, 3, 32, 32), note="LeNet with the literal view(-1, 16 * 5 * 5)")
class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


@network("view_attribute", (2, 3, 16, 16), note="view with own attributes for the number of features")
class ViewAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.channels = 32
        self.features = self.channels * 16
        self.conv = nn.Conv2d(3, self.channels, 3, stride=4, padding=1)
        self.fc = nn.Linear(self.features, 10)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc(x.view(x.size(0), self.features))


@network("view_sizes", (2, 3, 16, 16), note="view and reshape with sizes read from the tensor")
class ViewSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.fc = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        n, c, h, w = x.shape
        x = x.reshape(n, c, h * w).reshape(n, c, h, w)
        x = F.relu(self.conv2(x))
        return self.fc(x.reshape(n, -1))


@network("permute", (2, 3, 12, 12), note="NHWC layer norm and linear, flatten after permute, transpose and back")
class Permute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(32)
        self.fc1 = nn.Linear(32, 48)
        self.fc2 = nn.Linear(48 * 6 * 6, 16)
        self.fc3 = nn.Linear(16, 4)

    def forward(self, x):
        x = self.conv(x).permute(0, 2, 3, 1)
        x = F.gelu(self.fc1(self.norm(x)))
        x = x.flatten(1)
        return self.fc3(F.relu(self.fc2(x)))


@network("tokens_transpose", (2, 3, 16, 16), note="patches to a sequence by flatten(2).transpose(1, 2)")
class TokensTranspose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 48, 4, stride=4)
        self.fc1 = nn.Linear(48, 96)
        self.fc2 = nn.Linear(96, 48)
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.fc2(F.gelu(self.fc1(x)))
        return self.head(x.mean(1))


@network("squeeze_unsqueeze", (2, 40), note="1-D signal: unsqueeze, squeeze, stack, pad")
class SqueezeUnsqueeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 32, 5, stride=2)
        self.conv2 = nn.Conv1d(32, 32, 3)
        self.mix = nn.Conv2d(32, 16, (2, 1))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.conv1(x.unsqueeze(1)))
        y = F.relu(self.conv2(F.pad(x, (1, 1))))
        z = torch.stack([x, y], dim=2)
        z = F.relu(self.mix(z)).squeeze(2)
        return self.fc(z.mean(-1))


@network("interpolate", (2, 3, 16, 16), note="nearest and bilinear resizing by factor and to another tensor's size")
class Interpolate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv4 = nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        a = F.relu(self.conv1(x))
        b = F.relu(self.conv2(a))
        c = F.relu(self.conv3(b))
        b = b + self.up(c)
        b = F.interpolate(self.conv4(b), size=a.shape[2:], mode="bilinear", align_corners=False)
        return self.head(a + b)


@network("pixel_shuffle", (2, 3, 8, 8), note="super resolution with sub-pixel convolution, then a convolution")
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 16 * 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.conv3 = nn.Conv2d(16, 3 * 4, 3, padding=1)

    def forward(self, x):
        x = torch.tanh(self.conv1(x))
        x = F.relu(self.shuffle(self.conv2(x)))
        return F.pixel_shuffle(self.conv3(x), 2)


@network("pixel_unshuffle", (2, 3, 16, 16), note="space to depth between convolutions")
class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = F.pixel_unshuffle(F.relu(self.conv1(x)), 2)
        return self.head(F.relu(self.conv2(x)))


@network("channel_shuffle", (2, 3, 12, 12), note="grouped convolutions with a hand-written channel shuffle between")
class ChannelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups = 2
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 32, 1, groups=2)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.head = nn.Conv2d(32, 4, 1)

    def shuffle(self, x):
        b, c, h, w = x.size()
        x = x.view(b, self.groups, c // self.groups, h, w)
        x = torch.transpose(x, 1, 2).contiguous()
        return x.view(b, -1, h, w)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.shuffle(F.relu(self.conv1(x)))
        x = F.relu(self.conv2(x))
        return self.head(x)


@network("embedding", (2, 12), tokens=50, note="token embedding, mean over time, MLP")
class EmbeddingMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 48)
        self.fc1 = nn.Linear(48, 64)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(64, 3)

    def forward(self, tokens):
        x = self.embed(tokens).mean(dim=1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


@network("embedding_conv", (2, 16), tokens=80, note="text CNN: embedding, parallel 1-D convolutions, max over time")
class TextCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, 32, padding_idx=0)
        self.convs = nn.ModuleList([nn.Conv1d(32, 24, k) for k in (3, 4, 5)])
        self.fc = nn.Linear(24 * 3, 4)

    def forward(self, tokens):
        x = self.embed(tokens).transpose(1, 2)
        x = torch.cat([F.relu(conv(x)).max(dim=2)[0] for conv in self.convs], 1)
        return self.fc(x)


@network("dropout", (2, 3, 12, 12), note="dropout of elements, of channels and functional")
class Dropouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.drop = nn.Dropout2d(0.3)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.alpha = nn.AlphaDropout(0.1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.drop(F.relu(self.conv1(x)))
        x = F.selu(self.alpha(self.conv2(x)))
        x = F.dropout(x.mean((2, 3)), 0.5, training=self.training)
        return self.fc(x)


@network("shared_module", (2, 3, 12, 12), note="one convolution and one batch norm used three times")
class SharedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block = nn.Conv2d(32, 32, 3, padding=1)
        self.bn = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.relu(self.bn(self.block(x)))
        return self.head(x)


@network("tied_weights", (2, 24), note="an autoencoder whose decoder is the transposed encoder")
class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(24, 64)
        self.mid = nn.Linear(64, 64)
        self.bias = nn.Parameter(torch.zeros(24))

    def forward(self, x):
        x = F.relu(self.encoder(x))
        x = F.relu(self.mid(x))
        return F.linear(x, self.encoder.weight.t(), self.bias)


@network("module_list", (2, 3, 12, 12), note="loops over ModuleList and ModuleDict, zip and enumerate")
class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [16, 24, 32]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        previous = 3
        for width in widths:
            self.convs.append(nn.Conv2d(previous, width, 3, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(width))
            previous = width
        self.heads = nn.ModuleDict({"a": nn.Linear(32, 4), "b": nn.Linear(32, 4)})

    def forward(self, x):
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if i < 2:
                x = F.max_pool2d(x, 2)
        x = x.mean((2, 3))
        return sum(head(x) for head in self.heads.values())


@network("nested_sequential", (2, 3, 12, 12), note="Sequential in Sequential, built by functions")
class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def block(a, b):
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.Sequential(nn.BatchNorm2d(b), nn.ReLU()))

        self.net = nn.Sequential(
            nn.Sequential(block(3, 16), block(16, 32)),
            nn.MaxPool2d(2),
            nn.Sequential(block(32, 32), nn.Identity()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )

    def forward(self, x):
        return self.net(x)
