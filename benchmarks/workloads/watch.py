"""Exercises of the shoulder from a smartwatch: convolutions and an LSTM, 0.1 M parameters.

benchmarks/train_watch.py trained it. Windows of two seconds, six channels, seven exercises. Nobody is in two splits:
six of the ten people train the network, two score it meanwhile and two at the end.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from labelled import Batch, Labelled, accuracy, calibration, evaluate_outputs, in_batches, shuffled, train_step
from stored import weights_file, with_weights
from torch import nn
from watch_series import read, windows

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data", "train_data"]
__all__ += ["train_step", "trained", "untrained", "weights"]

CLASSES, CHANNELS, LENGTH = 7, 6, 100
TRAINING, HELD_OUT, TEST = (1, 2, 3, 4, 5, 6), (7, 8), (9, 10)
STEP = 25
TURNING = slice(3, CHANNELS)


class WatchNet(nn.Module):
    """Input (N, 6, 100), output (N, 7) logits."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [CHANNELS, *4 * [width]]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, after, 5, stride=1 + index % 2, padding=2, bias=False)
            for index, (before, after) in enumerate(itertools.pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in self.convs)
        self.dropout = nn.Dropout(0.3)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        out, _ = self.lstm(self.dropout(x).transpose(1, 2))
        return self.fc(self.dropout(out[:, -1]))


def weights(seed: int = 0) -> Path:
    """Return where the weights are that were trained from a seed."""
    return weights_file("watch", seed)


def untrained() -> nn.Module:
    return WatchNet()


def trained(seed: int = 0) -> nn.Module:
    return with_weights(untrained(), weights(seed))


def model() -> nn.Module:
    return trained()


def inputs() -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, CHANNELS, LENGTH, generator=torch.Generator().manual_seed(0)),)


def train_data() -> Iterable[Batch]:
    return shuffled(movements().training, 64)


def calibration_data() -> Iterable[tuple[torch.Tensor, ...]]:
    return calibration(movements().training, 64)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Score the windows of the two people who are held out."""
    return accuracy(model, movements().validation)


def test_data() -> Iterable[Batch]:
    return in_batches(movements().testing, 250)


@functools.cache
def movements() -> Labelled:
    """Return the windows of everyone: those of TRAINING in a random order, then HELD_OUT, then TEST.

    Accelerations are in units of gravity as they are; turning rates are divided by their deviation in TRAINING.

    Raises:
        FileNotFoundError: The package is not installed where it is looked for.
    """
    series = read()
    parts = []
    for subjects in (TRAINING, HELD_OUT, TEST):
        chosen = [one for one in series if one.subject in subjects]
        cut = [windows(one, LENGTH, STEP) for one in chosen]
        labels = np.repeat([one.label for one in chosen], [len(rows) for rows in cut])
        parts.append((np.concatenate(cut), labels))
    rows, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    training, held_out, test = (len(labels) for _, labels in parts)
    order = np.arange(len(rows))
    order[:training] = np.random.default_rng(0).permutation(training)
    rows[:, TURNING] /= rows[:training, TURNING].std()
    return Labelled(
        inputs=(torch.from_numpy(rows.astype(np.float32)[order]),),
        labels=torch.from_numpy(labels.astype(np.int64)[order]),
        held_out=held_out,
        test=test,
    )
