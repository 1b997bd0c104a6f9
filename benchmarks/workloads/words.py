"""Texts as rows of numbers: what the two text workloads share.

A word's number is its rank among the training texts' words; 0 is padding, 1 any word that is not among the most
frequent. Rows have one length.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from labelled import Labelled

DATA = Path(os.environ.get("BENCHMARK_TEXTS", Path(__file__).resolve().parent.parent / ".data"))
WORDS, FIRST = 2000, 2
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")


def numbered(texts: Sequence[str], labels: Sequence[int], *, length: int, held_out: int, test: int) -> Labelled:
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
    return Labelled(inputs=(torch.from_numpy(rows),), labels=answers, held_out=held_out, test=test)


def some_words(length: int) -> tuple[torch.Tensor, ...]:
    """Return one row of random words, as example input."""
    return (torch.randint(WORDS, (1, length), generator=torch.Generator().manual_seed(0)),)
