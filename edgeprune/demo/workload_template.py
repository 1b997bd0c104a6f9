"""The workload: what edgeprune needs to know about your network. Replace the example below by your own.

Seven functions, of which model() and inputs() are required. Delete those you have no use for: without
train_step() and train_data() there is no fine-tuning, without evaluate() no metric. The example is a small
residual network that reads handwritten digits of 8x8 pixels; its data and weights come with edgeprune, so the
file runs as it is:

    edgeprune inspect workload.py
    edgeprune compress workload.py --ratio 0.5
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

EXAMPLE = files("edgeprune.demo")  # the example's data and weights; yours are read from your own paths


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class Separable(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise one; a shortcut where the shape stays the same."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and channels == out
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.depthwise(x)))
        y = self.norm2(self.pointwise(y))
        return F.relu(x + y) if self.shortcut else F.relu(y)


class DigitsNet(nn.Module):
    """(N, 1, 8, 8) grey values in [0, 1] to (N, 10) scores, one for each digit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.block1 = Residual(64)
        self.down = Separable(64, 128, stride=2)
        self.block2 = Separable(128, 128, stride=1)
        self.classify = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block2(self.down(self.block1(self.stem(x))))
        scores: torch.Tensor = self.classify(x.mean(dim=(2, 3)))
        return scores


def split(name: str) -> TensorDataset:
    """One of the example's fixed splits, `train`, `validation` or `test`, as pairs of image and digit."""
    with np.load(io.BytesIO(EXAMPLE.joinpath("digits.npz").read_bytes()), allow_pickle=False) as data:
        chosen = data["split"] == ("train", "validation", "test").index(name)
        images = data["images"][chosen, None].astype(np.float32) / 16
        digits = data["digits"][chosen].astype(np.int64)
    return TensorDataset(torch.from_numpy(images), torch.from_numpy(digits))


def model() -> nn.Module:
    """Required. Return the trained network; a file of weights can also be given by --weights."""
    network = DigitsNet()
    network.load_state_dict(load(EXAMPLE.joinpath("digits.safetensors").read_bytes()))
    return network


def inputs() -> tuple[torch.Tensor, ...]:
    """Required. Return one tuple of example tensors, batch first. Checks and timing use them."""
    images, _ = split("validation")[:1]
    return (images,)


def train_step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the loss of one batch of train_data(). Fine-tuning and gradient criteria call it."""
    images, digits = batch
    return F.cross_entropy(model(images), digits)


def train_data() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Return the training batches. Called once for each epoch."""
    return DataLoader(split("train"), batch_size=32, shuffle=True)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Return metrics on validation data. Higher is better, unless a name ends in _loss or _error.

    The first metric chooses the best epoch, so keep the test data out of here.
    """
    model.eval()
    images, digits = split("validation")[:]
    with torch.no_grad():
        scores = model(images)
    top1 = (scores.argmax(1) == digits).float().mean().item()
    return {"top1": top1, "cross_entropy_loss": F.cross_entropy(scores, digits).item()}


def test_data() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Return test batches, input tensors first. Exported files are scored on them, in their own runtimes."""
    return DataLoader(split("test"), batch_size=60)


def evaluate_outputs(pairs: Iterable[tuple[list[np.ndarray], Any]]) -> dict[str, float]:
    """Return metrics from pairs of (list of output arrays, batch of test_data)."""
    right = total = 0
    for outputs, (_, digits) in pairs:
        right += int((outputs[0].argmax(1) == digits.numpy()).sum())
        total += len(digits)
    return {"top1": right / total}
