"""Fashion-MNIST: a MobileNetV2-like network of 0.1 M parameters, trained by benchmarks/train_fashion_mnist.py.

Data, splits and metric are those of fashion_mnist.py. The blocks are those of Sandler et al. (2018): a 1 x 1
convolution that widens, a depthwise one, a 1 x 1 convolution that narrows without an activation behind it, and a
shortcut where the shape stays.
"""

from __future__ import annotations

from pathlib import Path

import torch
from fashion_mnist import (
    calibration_data,
    evaluate,
    evaluate_outputs,
    inputs,
    test_data,
    train_data,
    train_step,
)
from stored import weights_file, with_weights
from torch import nn

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data", "train_data"]
__all__ += ["train_step", "trained", "untrained", "weights"]

STEM, LAST, EXPANSION = 16, 160, 4
# width and stride of every block
BLOCKS = ((24, 2), (24, 1), (40, 1), (40, 1), (64, 2), (64, 1))


def scaled(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution and its BatchNorm."""
    convolution = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


class InvertedResidual(nn.Module):
    """Wide inside, narrow outside."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        inside = EXPANSION * width_in
        self.widen = scaled(width_in, inside, 1)
        self.depthwise = scaled(inside, inside, 3, stride, groups=inside)
        self.narrow = scaled(inside, width, 1)
        self.activation = nn.ReLU6()
        self.shortcut = stride == 1 and width_in == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.activation(self.depthwise(self.activation(self.widen(x))))
        out = self.narrow(out)
        return x + out if self.shortcut else out


class Mobile(nn.Module):
    """Input (N, 1, 28, 28), normalised; output (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = scaled(1, STEM, 3, 2)
        blocks, width = [], STEM
        for width_out, stride in BLOCKS:
            blocks.append(InvertedResidual(width, width_out, stride))
            width = width_out
        self.blocks = nn.Sequential(*blocks)
        self.last = scaled(width, LAST, 1)
        self.activation = nn.ReLU6()
        self.fc = nn.Linear(LAST, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.activation(self.stem(x)))
        return self.fc(self.activation(self.last(x)).mean((2, 3)))


def weights(seed: int = 0) -> Path:
    """Return where the weights are that were trained from a seed."""
    return weights_file("fashion_mnist_mobile", seed)


def untrained() -> nn.Module:
    return Mobile()


def trained(seed: int = 0) -> nn.Module:
    return with_weights(untrained(), weights(seed))


def model() -> nn.Module:
    return trained()
