"""CREPE tiny, 486,552 parameters: see crepe_pitch.py."""

from __future__ import annotations

from collections.abc import Iterable

import crepe_pitch
import torch
from crepe_pitch import evaluate_outputs, inputs
from torch import nn

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data"]


def model() -> nn.Module:
    return crepe_pitch.network("tiny")


def calibration_data() -> Iterable[tuple[torch.Tensor, ...]]:
    return crepe_pitch.calibration(batches=192, batch_size=32)


def evaluate(model: nn.Module) -> dict[str, float]:
    return crepe_pitch.evaluate(model, "tiny")


def test_data() -> Iterable[tuple[torch.Tensor, ...]]:
    return crepe_pitch.test_data("tiny")
