"""Fashion-MNIST: a ResNet-8 of 0.3 M parameters, trained by benchmarks/train_fashion_mnist.py.

The images come from Debian's package dataset-fashion-mnist. 5,000 of the 60,000 training images are held out and
score the network while it is trained; the 10,000 test images score the exported files, once, at the end.
"""

from __future__ import annotations

import functools
import gzip
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from labelled import Batch, accuracy, calibration, evaluate_outputs, in_batches, shuffled, train_step
from stored import weights_file, with_weights
from torch import nn

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data", "train_data"]
__all__ += ["train_step", "trained", "untrained", "weights"]

DATA = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
MEAN, DEVIATION = 72.94, 90.02
HELD_OUT = 5000


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet8(nn.Module):
    """Input (N, 1, 28, 28), normalised; output (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.layer1 = Block(32, 32, 1)
        self.layer2 = Block(32, 64, 2)
        self.layer3 = Block(64, 128, 2)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def weights(seed: int = 0) -> Path:
    """Return where the weights are that were trained from a seed."""
    return weights_file("fashion_mnist_resnet8", seed)


def untrained() -> nn.Module:
    return ResNet8()


def trained(seed: int = 0) -> nn.Module:
    return with_weights(untrained(), weights(seed))


def model() -> nn.Module:
    return trained()


def inputs() -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)


def train_data() -> Iterable[Batch]:
    images, labels = training_split()
    chosen = slice(0, len(labels) - HELD_OUT)
    return shuffled((images[chosen], labels[chosen]), 128)


def calibration_data() -> Iterable[tuple[Any, ...]]:
    return calibration(training_split(), 128)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Score the held-out training images."""
    images, labels = training_split()
    return accuracy(model, (images[-HELD_OUT:], labels[-HELD_OUT:]))


def test_data() -> Iterable[Batch]:
    return in_batches(read_split("t10k"), 250)


@functools.cache
def training_split() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 60,000 training images and labels in a fixed random order; the last 5,000 are held out."""
    images, labels = read_split("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


@functools.cache
def read_split(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised images (N, 1, 28, 28) and labels (N,) of `train` or `t10k`.

    Raises:
        FileNotFoundError: The data set is not installed.
    """
    paths = [DATA / f"{name}-images-idx3-ubyte.gz", DATA / f"{name}-labels-idx1-ubyte.gz"]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path}; on Debian or Ubuntu: apt-get install -y dataset-fashion-mnist, "
                "or set FASHION_MNIST to the folder that holds the four .gz files"
            )
    raw = [gzip.decompress(path.read_bytes()) for path in paths]
    pixels = np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)
    images = (torch.from_numpy(pixels.copy()).float() - MEAN) / DEVIATION
    return images, torch.from_numpy(np.frombuffer(raw[1], np.uint8, offset=8).astype(np.int64))
