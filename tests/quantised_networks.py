"""Small networks for the tests of quantisation, with calibration data, and their files once per test process."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from edgeprune.export import Exported, export
from edgeprune.quantise import Quantisation
from edgeprune.quantise.ends import Io
from edgeprune.values import Layout, Precision
from tests.export_networks import _seeded

Tensors = tuple[torch.Tensor, ...]


class Pictures(nn.Module):
    """Convolution, padded max pooling, depthwise, classes and the best of them: three outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise, self.wide = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.pool(torch.relu(self.norm(self.stem(image))))
        x = torch.relu(self.wide(torch.relu(self.depthwise(x))))
        logits = self.head(x.mean((2, 3)))
        return {"zebra": logits, "best": logits.argmax(1), "map": x}


class Words(nn.Module):
    """Tokens in a table beside numbers, the numbers first in alphabet and last in the call; a norm and a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.given = nn.Embedding(50, 32), nn.Linear(8, 32)
        self.norm, self.wide, self.head = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, tokens: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens).mean(1) + self.given(extra)
        out: torch.Tensor = self.head(nn.functional.gelu(self.wide(self.norm(x))))
        return out


class Loud(nn.Module):
    """Products of many terms with large weights: their sums overflow 16 bits where they are saturated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8))
        for layer in (self.layers[0], self.layers[2]):
            layer.weight.data = layer.weight.data.sign() * (1 + layer.weight.data.abs())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def _pictures(count: int, seed: int) -> Tensors:
    return (torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),)


def _words(count: int, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (count, 6), generator=generator), torch.randn(count, 8, generator=generator)


def _loud(count: int, seed: int) -> Tensors:
    return (torch.randn(count, 256, generator=torch.Generator().manual_seed(seed)).abs(),)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Tensors]]] = {
    "pictures": (Pictures, _pictures),
    "words": (Words, _words),
    "loud": (Loud, _loud),
}


@functools.cache
def network(name: str) -> nn.Module:
    """Return a network; tests do not change it."""
    return _seeded(NETWORKS[name][0])


def inputs(name: str, count: int = 1, seed: int = 1) -> Tensors:
    """Return samples of a network."""
    return NETWORKS[name][1](count, seed)


def calibration(name: str, batches: int = 10) -> list[tuple[Tensors, str]]:
    """Return batches of four samples with labels."""
    return [(inputs(name, 4, 100 + place), "label") for place in range(batches)]


@functools.cache
def lowered(
    name: str, suffix: str, precision: Precision, io: Io = "float32", layout: Layout = "nchw"
) -> tuple[Path, Exported]:
    """Return a verified file of a network in a precision; tests only read it."""
    path = Path(_folder().name) / f"{name}-{precision}-{io}-{layout}{suffix}"
    source = lowered(name, suffix, "fp32", layout=layout)[0] if precision != "fp32" else None
    settings = Quantisation(methods=("minmax", "mse"), io=io)
    return path, export(
        network(name),
        inputs(name),
        path,
        precision=precision,
        calibration=calibration(name) if precision == "int8" else None,
        quantisation=settings,
        source=source,
        layout=layout,
        metadata={"plan": "5f0c"},
    )


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgeprune-tests-")
