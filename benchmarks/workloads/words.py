"""Texts as rows of numbers: what the two text workloads share.

A word's number is its rank among the training texts' words; 0 is padding, 1 any word that is not among the most
frequent. Rows have one length.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DATA = Path(os.environ.get("BENCHMARK_TEXTS", Path(__file__).resolve().parent.parent / ".data"))
WORDS, FIRST = 2000, 2
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Rows of words (N, length) and labels (N,), in a fixed random order: training, held-out and test texts."""

    rows: torch.Tensor
    labels: torch.Tensor
    held_out: int
    test: int

    @property
    def training(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All but the held-out texts and the test texts, which are the last ones."""
        end = len(self.labels) - self.held_out - self.test
        return self.rows[:end], self.labels[:end]

    @property
    def validation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The held-out texts."""
        end = len(self.labels) - self.test
        return self.rows[end - self.held_out : end], self.labels[end - self.held_out : end]

    @property
    def testing(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The test texts."""
        return self.rows[-self.test :], self.labels[-self.test :]


def numbered(texts: Sequence[str], labels: Sequence[int], *, length: int, held_out: int, test: int) -> Texts:
    """Return texts as rows of word numbers. Only training texts decide which words have one."""
    order = np.random.default_rng(0).permutation(len(texts))
    split = [_WORD.findall(texts[index].lower())[:length] for index in order]
    counts = Counter(word for words in split[: len(split) - held_out - test] for word in words)
    known = sorted(counts, key=lambda word: (-counts[word], word))[: WORDS - FIRST]
    number = {word: rank + FIRST for rank, word in enumerate(known)}
    rows = np.zeros((len(split), length), np.int64)
    for row, words in zip(rows, split, strict=True):
        row[: len(words)] = [number.get(word, 1) for word in words]
    answers = torch.from_numpy(np.asarray(labels)[order].astype(np.int64))
    return Texts(rows=torch.from_numpy(rows), labels=answers, held_out=held_out, test=test)


def shuffled(texts: Texts) -> Iterable[list[torch.Tensor]]:
    """Return the training texts in batches of 64, in a new order each time."""
    return DataLoader(TensorDataset(*texts.training), batch_size=64, shuffle=True, drop_last=True)


def some_words(length: int) -> tuple[torch.Tensor, ...]:
    """Return one row of random words, as example input."""
    return (torch.randint(WORDS, (1, length), generator=torch.Generator().manual_seed(0)),)


def in_batches(part: tuple[torch.Tensor, ...], size: int) -> list[tuple[torch.Tensor, ...]]:
    """Return texts and what belongs to them, such as labels, in batches, in their order."""
    return [tuple(tensor[i : i + size] for tensor in part) for i in range(0, len(part[0]), size)]


def calibration(texts: Texts) -> list[tuple[torch.Tensor, ...]]:
    """Return the first 512 training texts without labels, in batches of 64."""
    rows, _ = texts.training
    return [(rows[i : i + 64],) for i in range(0, 512, 64)]


def train_step(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the loss of a batch."""
    rows, labels = batch
    return F.cross_entropy(model(rows), labels)


def accuracy(model: nn.Module, part: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Score a network on texts."""
    model.eval()
    rows, labels = part
    with torch.no_grad():
        logits = torch.cat([model(rows[i : i + 250]) for i in range(0, len(rows), 250)])
    return {"top1": (logits.argmax(1) == labels).float().mean().item()}


def evaluate_outputs(pairs: Iterable[tuple[list[np.ndarray], tuple[torch.Tensor, ...]]]) -> dict[str, float]:
    """Score the test texts from the outputs of an exported file."""
    right = total = 0
    for (logits, *_), (_, labels) in pairs:
        right += int((logits.argmax(1) == labels.numpy()).sum())
        total += len(labels)
    return {"top1": right / total}
