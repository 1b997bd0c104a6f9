"""A workload of a few milliseconds: 8x8 pictures in four classes, a network of two convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.classify = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.classify(x.mean(dim=(2, 3)))


def _pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    pictures = torch.randn(count, 1, 8, 8, generator=generator) * 0.3
    for index, label in enumerate(labels.tolist()):
        pictures[index, 0, 2 * label : 2 * label + 2] += 1.0
    return pictures, labels


def model() -> nn.Module:
    torch.manual_seed(7)
    return Tiny()


def inputs() -> tuple[torch.Tensor, ...]:
    return (_pictures(2, 1)[0],)


def train_step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    pictures, labels = batch
    return F.cross_entropy(model(pictures), labels)


def train_data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    pictures, labels = _pictures(96, 2)
    order = torch.randperm(len(labels))
    return [(pictures[part], labels[part]) for part in order.split(16)]


def evaluate(model: nn.Module) -> dict[str, float]:
    pictures, labels = _pictures(64, 3)
    with torch.no_grad():
        return {"top1": (model(pictures).argmax(1) == labels).float().mean().item()}


def test_data() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    pictures, labels = _pictures(64, 4)
    yield from zip(pictures.split(16), labels.split(16), strict=True)


def evaluate_outputs(pairs: Iterable[tuple[list[Any], tuple[torch.Tensor, torch.Tensor]]]) -> dict[str, float]:
    right = [outputs[0].argmax(1) == labels.numpy() for outputs, (_, labels) in pairs]
    return {"top1": sum(int(row.sum()) for row in right) / sum(len(row) for row in right)}
