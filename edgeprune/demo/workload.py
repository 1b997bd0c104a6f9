"""The workload of `edgeprune demo`: what `edgeprune init` writes, calibration data, labels and preprocessing.

It is the template itself, so what the demo shows and what a new user starts from cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgeprune.demo.workload_template import (
    evaluate,
    evaluate_outputs,
    inputs,
    model,
    split,
    test_data,
    train_data,
    train_step,
)

__all__ = [
    "calibration_data",
    "evaluate",
    "evaluate_outputs",
    "inputs",
    "labels",
    "model",
    "preprocessing",
    "test_data",
    "train_data",
    "train_step",
]


def calibration_data() -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield 8 batches of training images, each a tuple of one tensor of shape (32, 1, 8, 8)."""
    images, _ = split("train")[:256]
    for batch in images.split(32):
        yield (batch,)


def labels() -> list[str]:
    """Return the names of the ten classes, in the order of the outputs."""
    return [str(digit) for digit in range(10)]


def preprocessing() -> dict[str, object]:
    """Say that the digits of the file, 0 to 16, come to the network as 0 to 1."""
    return {"kind": "image", "scale": 1 / 16, "description": "8 x 8 grey values of a handwritten digit, 0 to 16"}
