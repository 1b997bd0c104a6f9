"""A small training that draws from every random generator, also run as a program of its own by the tests.

python -m tests.training_case killed CHECKPOINT       SIGKILL in the middle of the second epoch
python -m tests.training_case "killed sparse" FILE    the same, with most weights held at zero
python -m tests.training_case "killed features" FILE   the same, compared with a dense network inside
python -m tests.training_case "killed METHOD" FILE    the same, pruned meanwhile by a method of `gradual`
torchrun ... -m tests.training_case together FOLDER   several trainings in two processes
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune as ep
from edgeprune.config import FinetuneConfig, validate
from edgeprune.dynamic import recipe
from edgeprune.pruning import Masks
from edgeprune.training import FinetuneResult, Progress, features_of, finetune
from edgeprune.training.checkpoint import network_tensors
from edgeprune.training.features import Features

CLASSES = 4
EXAMPLE = (torch.zeros(1, 1, 6, 6),)
ROOT = Path(__file__).resolve().parents[1]


class SmallNet(nn.Module):
    """Convolution, BatchNorm and dropout on images of shape (N, 1, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8 * 9, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.max_pool2d(F.relu(self.norm(self.conv(images))), 2)
        return self.head(self.drop(hidden.flatten(1)))


def small_net(seed: int = 0) -> SmallNet:
    """Return a network in evaluation mode, untrained, without touching the global generators."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallNet().eval()


def samples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy images of shape (N, 1, 6, 6), one bright quarter each, and which quarter it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator)
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[index, 0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 1.0
    return images, labels


def train_data(count: int = 96, size: int = 16) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield shuffled, augmented batches; draws from torch, numpy and Python while the epoch goes on."""
    images, labels = samples(count, seed=1)
    for chosen in torch.randperm(count).split(size):
        noise = torch.from_numpy(np.random.standard_normal((len(chosen), 1, 6, 6)).astype(np.float32))
        yield images[chosen] + 0.1 * random.random() * noise, labels[chosen]


def train_step(model: nn.Module, batch: Any) -> torch.Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def evaluate(model: nn.Module) -> dict[str, float]:
    images, labels = samples(200, seed=2)
    with torch.no_grad():
        scores = model(images)
    return {"top1": (scores.argmax(1) == labels).double().mean().item()}


def settings(**changes: Any) -> FinetuneConfig:
    return FinetuneConfig(**({"epochs": 3, "lr": 0.01, "warmup_steps": 2, "checkpoint_every_s": 0} | changes))


def _finetuned(
    model: nn.Module,
    config: FinetuneConfig,
    checkpoint: Path | None,
    on_progress: Callable[[Progress], None] | None,
    **more: Any,
) -> FinetuneResult:
    """Fine-tune on the small data from one seed."""
    given = {"step": train_step, "evaluate": evaluate} | more
    return finetune(
        model, data=train_data, config=config, checkpoint=checkpoint, on_progress=on_progress, seed=7, **given
    )


def in_two_processes(words: list[str], folder: Path) -> None:
    """Run a module under torchrun, in two processes, and check that it succeeds."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def killed(what: str, checkpoint: Path) -> None:
    """Run this module as a program until it kills itself in the middle of an epoch."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.training_case", what, str(checkpoint)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr


def assert_same_training(one: FinetuneResult, other: FinetuneResult) -> None:
    """Compare two trainings bit by bit, times excepted."""
    first, second = network_tensors(one.model), network_tensors(other.model)
    assert list(first) == list(second)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert one.best_epoch == other.best_epoch
    assert [(r.train, r.validation, r.lr) for r in one.history] == [
        (r.train, r.validation, r.lr) for r in other.history
    ]


def train(
    checkpoint: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    step: Callable[[nn.Module, Any], torch.Tensor] = train_step,
    **changes: Any,
) -> FinetuneResult:
    """Fine-tune the small network as every test of resuming does."""
    return _finetuned(small_net(), settings(**changes), checkpoint, on_progress, step=step)


def train_sparse(
    checkpoint: Path | None = None, on_progress: Callable[[Progress], None] | None = None, amount: float = 0.6
) -> tuple[Masks, FinetuneResult]:
    """Fine-tune the small network with most of its weights held at zero."""
    sparse, masks = ep.sparsify(small_net(), method="lamp", amount=amount)
    return masks, _finetuned(sparse, settings(weight_decay=0.01), checkpoint, on_progress, masks=masks)


def train_gradual(
    method: str,
    checkpoint: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = evaluate,
    **changes: Any,
) -> FinetuneResult:
    """Fine-tune the small network while half of its channels, or most of its weights, go."""
    sections: dict[str, Any] = {"gradual": {"method": method} | changes, "prune": {"align": 1}}
    if method in ("weights", "rigl"):
        sections["sparsify"] = {"method": "lamp", "amount": 0.6}
    config = validate(sections)
    model = small_net()
    made = recipe(model, EXAMPLE, config.gradual, prune=config.prune, sparsify=config.sparsify, align=1)
    config_of_training = settings(weight_decay=0.01)
    return _finetuned(model, config_of_training, checkpoint, on_progress, evaluate=evaluate, recipe=made)


def pruned_small_net() -> tuple[SmallNet, SmallNet, Features]:
    """Return a small network, the same with half of its channels, and what both have inside."""
    dense = small_net(1)
    plan = ep.plan(dense, EXAMPLE, align=1)
    small = ep.apply(dense, plan, EXAMPLE)
    assert isinstance(small, SmallNet)
    return dense, small, features_of(small, dense, plan, EXAMPLE)


def train_featured(
    checkpoint: Path | None = None, on_progress: Callable[[Progress], None] | None = None
) -> FinetuneResult:
    """Fine-tune the pruned small network on its loss and on what the whole one gives and has inside."""
    dense, small, features = pruned_small_net()
    config = settings(features=1.0, distill=0.5)
    return _finetuned(small, config, checkpoint, on_progress, teacher=dense, features=features)


def kill_at(epoch: int, step: int, number: signal.Signals) -> Callable[[Progress], None]:
    """Return a progress function that sends this process a signal after one step."""

    def send(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            os.kill(os.getpid(), number)

    return send


class SpareNet(SmallNet):
    """The small network with a layer that its forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)


def two_views(model: nn.Module, batch: Any) -> torch.Tensor:
    """Call the network twice in one step, as contrastive losses do."""
    images, labels = batch
    return F.cross_entropy(model(images), labels) + F.mse_loss(model(images.flip(0)), model(images).flip(0))


def train_joined(joined: int) -> FinetuneResult:
    """Train a network without BatchNorm and dropout on batches that are `joined` of the usual ones."""
    images, labels = samples(96, seed=1)
    size = 8 * joined
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    return finetune(
        model,
        step=train_step,
        data=lambda: list(zip(images.split(size), labels.split(size), strict=True)),
        config=settings(epochs=8, optimizer="sgd", lr=0.1),
        evaluate=evaluate,
    )


def _together(folder: Path) -> None:
    """Train, be interrupted and go on, and train on a number of batches that two processes cannot share evenly."""
    rank = int(os.environ["RANK"])
    plain = train(checkpoint_every_s=3600)
    try:
        train(folder / "checkpoint", kill_at(2, 2, signal.SIGINT), checkpoint_every_s=3600)
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    resumed = train(folder / "checkpoint")
    uneven = finetune(
        SpareNet(), step=two_views, data=lambda: train_data(80), config=settings(distill=0.5), teacher=small_net(3)
    )
    joined = train_joined(1)
    masks, sparse = train_sparse()
    moved = train_gradual("rigl")
    featured = train_featured()
    facts = {
        "featured": featured.model.state_dict(),
        "feature loss": [record.train["feature_loss"] for record in featured.history],
        "moved": moved.model.state_dict(),
        "moved zeros": sum(int((tensor == 0).sum()) for tensor in moved.model.parameters()),
        "sparse": sparse.model.state_dict(),
        "zeros kept": all(bool((sparse.model.get_parameter(n)[~m] == 0).all()) for n, m in masks.kept.items()),
        "joined": joined.model.state_dict(),
        "joined top1": joined.history[-1].validation["top1"],
        "plain": plain.model.state_dict(),
        "resumed": resumed.model.state_dict(),
        "uneven": uneven.model.state_dict(),
        "stopped": stopped,
        "top1": [record.validation["top1"] for record in plain.history],
        "loss": [record.train["loss"] for record in plain.history],
        "spare": uneven.model.spare.weight.detach(),
    }
    torch.save(facts, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, path = sys.argv[1:]
    if command == "killed":
        train(Path(path), kill_at(2, 3, signal.SIGKILL))
    elif command == "killed sparse":
        train_sparse(Path(path), kill_at(2, 3, signal.SIGKILL))
    elif command == "killed features":
        train_featured(Path(path), kill_at(2, 3, signal.SIGKILL))
    elif command.startswith("killed "):
        train_gradual(command.removeprefix("killed "), Path(path), kill_at(2, 3, signal.SIGKILL))
    elif command == "together":
        _together(Path(path))
