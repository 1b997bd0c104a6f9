"""Small networks for the tests of export, and files converted from them once per test process."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.export import Exported, export

Tensors = tuple[torch.Tensor, ...]


class Everything(nn.Module):
    """Image and tokens in, a dict out: depthwise, squeeze-and-excite, transposed convolutions, embedding, argmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate = nn.Linear(16, 16)
        self.up = nn.ConvTranspose2d(16, 6, 3, stride=2, padding=1, output_padding=1)
        self.up_far = nn.ConvTranspose2d(16, 6, 2, stride=2, output_padding=1)
        self.table = nn.Embedding(11, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.relu(self.depthwise(x))
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = gate.expand_as(x) * x
        logits = self.head(x.mean((2, 3)) + self.table(tokens).sum(1))
        return {"zebra": logits, "best": logits.argmax(1), "mask": self.up(x), "far": self.up_far(x)}


class Waves(nn.Module):
    """One-dimensional convolutions, rare pooling and activations, a nested tuple out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 5, padding=2)
        self.activation = nn.RReLU()
        self.pool = nn.AdaptiveMaxPool1d(3)
        self.head = nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        x = self.activation(self.conv(x))
        pooled = self.pool(x)
        return self.head(pooled.flatten(1)), [pooled, None]


class OneBatch(nn.Module):
    """The batch is baked in: only one sample works."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.view(1, -1))


class Centred(nn.Module):
    """Samples of a batch influence each other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x.flatten(1))
        return x - x.mean(0, keepdim=True) / 2


def everything() -> tuple[nn.Module, Tensors]:
    """Return the network and two samples."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 3, 10, 10, generator=generator)
    return _seeded(Everything), (image, torch.randint(2, 11, (2, 4), generator=generator))


def waves() -> tuple[nn.Module, Tensors]:
    """Return the network and one sample."""
    return _seeded(Waves), (torch.randn(1, 4, 20, generator=torch.Generator().manual_seed(4)),)


def linear(features: int = 6) -> tuple[nn.Module, Tensors]:
    """Return a network that exports in no time, and one sample of shape (1, features)."""
    model = _seeded(lambda: nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 3)))
    return model, (torch.randn(1, features, generator=torch.Generator().manual_seed(5)),)


@functools.cache
def converted(name: str, suffix: str) -> tuple[Path, Exported]:
    """Return a verified file of one of the networks above; tests only read it."""
    model, inputs = getattr(sys.modules[__name__], name)()
    path = Path(_folder().name) / f"{name}{suffix}"
    return path, export(model, inputs, path, metadata={"plan": "5f0c"})


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgeprune-tests-")


def _seeded(build: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2, generator=torch.Generator().manual_seed(1))
    return model.eval()
