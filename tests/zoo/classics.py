"""Classification architectures: VGG, ResNet, wide ResNet, DenseNet, Inception, SqueezeNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import network


@network("vgg", (2, 3, 32, 32), note="layers from a configuration list, classifier on 7 x 7 style flatten")
class Vgg(nn.Module):
    cfg = (16, "M", 32, "M", 48, 48, "M", 64, "M")

    def __init__(self) -> None:
        super().__init__()
        self.features = self._make_layers()
        self.classifier = nn.Sequential(
            nn.Linear(64 * 2 * 2, 96),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(96, 64),
            nn.ReLU(True),
            nn.Linear(64, 10),
        )

    def _make_layers(self):
        layers, width = [], 3
        for v in self.cfg:
            if v == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                layers += [nn.Conv2d(width, v, 3, padding=1), nn.BatchNorm2d(v), nn.ReLU(inplace=True)]
                width = v
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.features(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class BasicBlock(nn.Module):
    def __init__(self, inplanes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


@network("resnet_basic", (2, 3, 32, 32), note="ResNet with basic blocks, stem with max pooling")
class ResNetBasic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inplanes = 16
        self.conv1 = nn.Conv2d(3, self.inplanes, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._make_layer(16, 2)
        self.layer2 = self._make_layer(32, 2, stride=2)
        self.layer3 = self._make_layer(64, 1, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, 10)

    def _make_layer(self, planes, blocks, stride=1):
        layers = [BasicBlock(self.inplanes, planes, stride)]
        self.inplanes = planes
        for _ in range(1, blocks):
            layers.append(BasicBlock(planes, planes))
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.shortcut = nn.Sequential()
        if stride != 1 or inplanes != planes * self.expansion:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inplanes, planes * self.expansion, 1, stride, bias=False),
                nn.BatchNorm2d(planes * self.expansion),
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.shortcut(x)
        return F.relu(out)


@network("resnet_bottleneck", (2, 3, 32, 32), note="ResNet with bottleneck blocks")
class ResNetBottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Bottleneck(16, 16), Bottleneck(64, 16), Bottleneck(64, 32, 2), Bottleneck(128, 32))
        self.linear = nn.Linear(128, 10)

    def forward(self, x):
        out = self.blocks(self.stem(x))
        out = F.avg_pool2d(out, 8)
        out = out.view(out.size(0), -1)
        return self.linear(out)


class PreActivationBlock(nn.Module):
    def __init__(self, in_planes, planes, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.drop_rate = 0.3
        self.equal = in_planes == planes
        self.conv_shortcut = None if self.equal else nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)

    def forward(self, x):
        pre = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(pre)))
        out = F.dropout(out, p=self.drop_rate, training=self.training)
        out = self.conv2(out)
        return torch.add(x if self.equal else self.conv_shortcut(pre), out)


@network("wide_resnet", (2, 3, 16, 16), note="pre-activation blocks: batch norm after the addition, on the stream")
class WideResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nChannels = 64
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(PreActivationBlock(16, 32, 1), PreActivationBlock(32, 32, 1))
        self.block2 = nn.Sequential(PreActivationBlock(32, 64, 2), PreActivationBlock(64, 64, 1))
        self.bn = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        out = self.block2(self.block1(self.conv1(x)))
        out = self.relu(self.bn(out))
        out = F.avg_pool2d(out, 8)
        out = out.view(-1, self.nChannels)
        return self.fc(out)


class DenseLayer(nn.Module):
    def __init__(self, width, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features):
        x = torch.cat(features, 1)
        x = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(x)))


@network("densenet", (2, 3, 32, 32), note="every layer reads all layers before it; transitions halve the width")
class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        growth, width = 12, 16
        self.conv0 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            block = nn.ModuleList()
            for i in range(3):
                block.append(DenseLayer(width + i * growth, growth))
            self.blocks.append(block)
            width += 3 * growth
            self.transitions.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(width, width // 2, 1, bias=False),
                    nn.AvgPool2d(2, 2),
                )
            )
            width //= 2
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x):
        x = self.conv0(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = transition(torch.cat(features, 1))
        x = F.relu(self.norm(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class ConvBn(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(args[1], eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch1x1 = ConvBn(width, 16, 1)
        self.branch5x5_1 = ConvBn(width, 12, 1)
        self.branch5x5_2 = ConvBn(12, 16, 5, padding=2)
        self.branch7_1 = ConvBn(width, 16, 1)
        self.branch7_2 = ConvBn(16, 16, (1, 7), padding=(0, 3))
        self.branch7_3 = ConvBn(16, 24, (7, 1), padding=(3, 0))
        self.split_a = ConvBn(24, 12, (1, 3), padding=(0, 1))
        self.split_b = ConvBn(24, 12, (3, 1), padding=(1, 0))
        self.branch_pool = ConvBn(width, 16, 1)

    def forward(self, x):
        b7 = self.branch7_3(self.branch7_2(self.branch7_1(x)))
        b7 = [self.split_a(b7), self.split_b(b7)]
        pool = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        outputs = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            torch.cat(b7, 1),
            self.branch_pool(pool),
        ]
        return torch.cat(outputs, 1)


@network("inception", (2, 3, 32, 32), note="parallel branches with asymmetric kernels, concatenated twice")
class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBn(3, 32, 3, stride=2, padding=1)
        self.mixed1 = InceptionBlock(32)
        self.reduce = nn.MaxPool2d(3, stride=2)
        self.side = ConvBn(72, 24, 3, stride=2)
        self.mixed2 = InceptionBlock(96)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(72, 10)

    def forward(self, x):
        x = self.mixed1(self.stem(x))
        x = torch.cat([self.reduce(x), self.side(x)], 1)
        x = self.mixed2(x)
        x = self.dropout(x.mean(3).mean(2))
        return self.fc(x)


class Fire(nn.Module):
    def __init__(self, inplanes, squeeze, expand1x1, expand3x3):
        super().__init__()
        self.squeeze = nn.Conv2d(inplanes, squeeze, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand1x1, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeeze, expand3x3, kernel_size=3, padding=1)

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


@network("squeezenet", (2, 3, 33, 33), note="fire modules, pooling with ceil_mode, a convolution as classifier")
class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(32, 16, 24, 24),
            Fire(48, 16, 32, 32),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(64, 24, 32, 32),
        )
        self.final_conv = nn.Conv2d(64, 10, kernel_size=1)

    def forward(self, x):
        x = F.relu(self.final_conv(self.features(x)))
        return torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)
