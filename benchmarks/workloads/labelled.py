"""Labelled samples in three parts, and what classifiers on them share: batches, loss and accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

# The inputs, each with one row a sample, and behind them the labels (N,).
Part = tuple[torch.Tensor, ...]
# The input, or a tuple of them where a network has several, and the labels.
Batch = tuple[torch.Tensor | tuple[torch.Tensor, ...], torch.Tensor]
Pairs = Iterable[tuple[list[np.ndarray], Batch]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Samples in a fixed order: training, then `held_out` of them that choose, then `test` of them."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    held_out: int
    test: int

    @property
    def training(self) -> Part:
        """All but the held-out and the test samples."""
        return self._part(0, len(self.labels) - self.held_out - self.test)

    @property
    def validation(self) -> Part:
        """The held-out samples."""
        end = len(self.labels) - self.test
        return self._part(end - self.held_out, end)

    @property
    def testing(self) -> Part:
        """The test samples."""
        return self._part(len(self.labels) - self.test, len(self.labels))

    def _part(self, start: int, end: int) -> Part:
        return tuple(rows[start:end] for rows in (*self.inputs, self.labels))


def shuffled(part: Part, size: int) -> Iterable[Batch]:
    """Return samples in full batches, in a new order each time."""
    data = TensorDataset(*part)
    return DataLoader(data, size, shuffle=True, drop_last=True, collate_fn=lambda rows: batch_of(default_collate(rows)))


def in_batches(part: Part, size: int) -> list[Batch]:
    """Return samples in batches, in their order."""
    return [batch_of(rows) for rows in zip(*(rows.split(size) for rows in part), strict=True)]


def batch_of(part: Sequence[torch.Tensor]) -> Batch:
    """Return inputs and labels as edgeprune reads a batch: several inputs are one tuple."""
    *inputs, labels = part
    return (inputs[0] if len(inputs) == 1 else tuple(inputs)), labels


def calibration(part: Part, size: int) -> list[tuple[torch.Tensor | tuple[torch.Tensor, ...]]]:
    """Return the first 512 samples without labels, in batches."""
    return [(inputs,) for inputs, _ in in_batches(tuple(rows[:512] for rows in part), size)]


def called(model: nn.Module, inputs: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the logits of a network."""
    return model(inputs) if isinstance(inputs, torch.Tensor) else model(*inputs)


def train_step(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the loss of a batch."""
    inputs, labels = batch
    return F.cross_entropy(called(model, inputs), labels)


def outputs(model: nn.Module, batches: Iterable[Batch]) -> Pairs:
    """Return what a network says of each batch, as an exported file would, with the batch."""
    model.eval()
    with torch.no_grad():
        return [([called(model, batch[0]).numpy()], batch) for batch in batches]


def accuracy(model: nn.Module, part: Part) -> dict[str, float]:
    """Score a network on samples."""
    return evaluate_outputs(outputs(model, in_batches(part, 250)))


def evaluate_outputs(pairs: Pairs) -> dict[str, float]:
    """Score outputs: the share of samples whose largest logit is that of their label."""
    right = total = 0
    for (logits, *_), (_, labels) in pairs:
        right += int((logits.argmax(1) == labels.numpy()).sum())
        total += len(labels)
    return {"top1": right / total}
