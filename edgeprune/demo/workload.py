"""The workload of `edgeprune demo`: the file that `edgeprune init` writes, plus optional calibration data.

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
    "model",
    "test_data",
    "train_data",
    "train_step",
]


def calibration_data() -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield 8 batches of training images, each a tuple of one tensor of shape (32, 1, 8, 8)."""
    images, _ = split("train")[:256]
    for batch in images.split(32):
        yield (batch,)
