"""Networks that must be refused with a reason: untraceable ones, and ones that have nothing to prune."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import UNPRUNABLE, UNTRACEABLE, network


@network("branch_on_values", (2, 3, 12, 12), into=UNTRACEABLE, note="an if on the values of a tensor")
class BranchOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        if x.mean() > 0:
            x = F.relu(self.conv2(x))
        return self.fc(x.mean((2, 3)))


@network("loop_on_values", (2, 8), into=UNTRACEABLE, note="a loop whose length comes from .item()")
class LoopOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 16)
        self.out = nn.Linear(16, 2)

    def forward(self, x):
        steps = int(x.abs().sum().item()) % 3 + 1
        x = self.fc1(x)
        for _ in range(steps):
            x = F.relu(self.fc2(x))
        return self.out(x)


@network("through_numpy", (2, 8), into=UNTRACEABLE, note="a detour through numpy that hides what depends on what")
class ThroughNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 2)

    def forward(self, x):
        x = self.fc1(x)
        x = torch.from_numpy(x.detach().numpy().clip(0))
        return self.fc2(x)


@network("single_linear", (2, 16), into=UNPRUNABLE, note="the only layer makes the output")
class SingleLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(x)


@network("output_of_every_layer", (2, 3, 8, 8), into=UNPRUNABLE, note="every layer's output leaves the network")
class EveryLayerLeaves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(16, 16, 3)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        return x, self.conv2(x)
