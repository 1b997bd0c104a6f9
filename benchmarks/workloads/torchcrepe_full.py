"""CREPE full, 22.2 M parameters: see crepe_pitch.py."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from crepe_pitch import calibration, evaluate, evaluate_outputs, inputs, network, test_data
from torch import nn

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data"]


def model() -> nn.Module:
    return network("full")


def calibration_data() -> Iterable[tuple[torch.Tensor, ...]]:
    return calibration(batches=192, batch_size=16)
