"""A workload that integers hurt: 8x8 pictures in four classes, channels of very different size between two layers.

The tensor between the convolutions has one step for all of its channels, and those that decide are the small ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 8
FACTOR = 1000.0


class Sensitive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.classify = nn.Linear(WIDTH * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1))


def _pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    pictures = torch.randn(count, 1, 8, 8, generator=generator) * 0.8
    for index, label in enumerate(labels.tolist()):
        pictures[index, 0, 2 * label : 2 * label + 2] += 1.0
    return pictures, labels


@functools.cache
def _trained() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = Sensitive()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        pictures, labels = _pictures(256, 2)
        for _ in range(40):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(pictures), labels))
            optimizer.step()
    with torch.no_grad():  # half of the channels larger, with the same results
        network.conv1.weight[: WIDTH // 2] *= FACTOR
        network.conv1.bias[: WIDTH // 2] *= FACTOR
        network.conv2.weight[:, : WIDTH // 2] /= FACTOR
    return network.state_dict()


def model() -> nn.Module:
    network = Sensitive()
    network.load_state_dict(_trained())
    return network


def inputs() -> tuple[torch.Tensor, ...]:
    return (_pictures(2, 1)[0],)


def train_step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    pictures, labels = batch
    return F.cross_entropy(model(pictures), labels)


def train_data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    pictures, labels = _pictures(256, 2)
    order = torch.randperm(len(labels))
    return [(pictures[part], labels[part]) for part in order.split(16)]


def evaluate(model: nn.Module) -> dict[str, float]:
    pictures, labels = _pictures(256, 3)
    with torch.no_grad():
        return {"top1": (model(pictures).argmax(1) == labels).float().mean().item()}


def test_data() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    pictures, labels = _pictures(256, 4)
    yield from zip(pictures.split(64), labels.split(64), strict=True)


def evaluate_outputs(pairs: Iterable[tuple[list[Any], tuple[torch.Tensor, torch.Tensor]]]) -> dict[str, float]:
    right = [outputs[0].argmax(1) == labels.numpy() for outputs, (_, labels) in pairs]
    return {"top1": sum(int(row.sum()) for row in right) / sum(len(row) for row in right)}
