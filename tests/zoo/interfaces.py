"""Networks with several inputs or outputs, and with constants of their own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import network


@network("multi_input", (2, 3, 12, 12), (2, 7), note="an image and a vector, joined late")
class MultiInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.fc_image = nn.Linear(32, 24)
        self.fc_vector = nn.Linear(7, 24)
        self.fc = nn.Linear(48, 4)

    def forward(self, image, vector):
        a = F.relu(self.conv(image)).mean((2, 3))
        a = F.relu(self.fc_image(a))
        b = F.relu(self.fc_vector(vector))
        return self.fc(torch.cat([a, b], dim=-1))


@network("two_inputs_sum", (2, 3, 8, 8), (2, 3, 8, 8), note="a siamese network: one encoder on both inputs")
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2), nn.ReLU()
        )
        self.fc = nn.Linear(32, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, a, b):
        a = self.fc(self.encoder(a).mean((2, 3)))
        b = self.fc(self.encoder(b).mean((2, 3)))
        return self.out(torch.abs(a - b))


@network("output_tuple", (2, 3, 12, 12), note="a tuple of outputs; the features are one of them")
class OutputTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.classes = nn.Linear(32, 5)
        self.boxes = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        features = F.relu(self.conv2(x))
        return self.classes(features.mean((2, 3))), self.boxes(x), features


@network("output_dict", (2, 3, 12, 12), note="a dict of outputs")
class OutputDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.logits = nn.Linear(32, 5)
        self.aux = nn.Linear(32, 2)

    def forward(self, x):
        x = F.relu(self.conv(x)).mean((2, 3))
        return {"logits": self.logits(x), "aux": torch.sigmoid(self.aux(x))}


@network("buffers", (2, 3, 12, 12), note="input normalisation, per-channel scale buffer and a constant kernel")
class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.register_buffer("scale", torch.linspace(0.5, 2, 32).view(1, 32, 1, 1))
        blur = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (blur[:, None] * blur / 16).expand(32, 1, 3, 3).clone())
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = (x - self.mean) / self.std
        x = F.relu(self.conv1(x)) * self.scale
        x = F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])
        return self.head(x)


@network("bare_parameters", (2, 20), note="weights as nn.Parameter with functional calls and matmul")
class BareParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(64, 20) / math.sqrt(20))
        self.b1 = nn.Parameter(torch.zeros(64))
        self.w2 = nn.Parameter(torch.randn(64, 32) / 8)
        self.scale = nn.Parameter(torch.rand(32) + 0.5)
        self.out = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(F.linear(x, self.w1, self.b1))
        x = torch.matmul(x, self.w2) * self.scale
        return self.out(F.relu(x))


@network("position_embedding", (2, 3, 16, 16), note="a learned parameter added to every position of a sequence")
class PositionEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 16, 48) * 0.1)
        self.norm = nn.LayerNorm(48)
        self.fc1 = nn.Linear(48, 64)
        self.fc2 = nn.Linear(64, 48)
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return self.head(x[:, 0])
