"""The networks of the suite: trained weights from several seeds, and their data in three parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edgeprune.workload import import_code

WORKLOADS = Path(__file__).resolve().parent.parent / "workloads"
Rows = tuple[torch.Tensor, torch.Tensor]
# Of the 5,000 held-out images: half of them decide as well and cost half.
IMAGES_TO_CHOOSE_BY = 2500
SCOPES, KEPT = ("local", "global"), "stream kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network and its data.

    Attributes:
        build: Returns the trained network of a seed; that of seed 0 where a seed has no weights of its own.
        step: Returns the loss of a batch.
        training: Inputs and labels to train on; calibration takes inputs of it.
        validation: Returns the accuracy on held-out data, in percent; everything is chosen by it.
        test: The same on test data.
        heads: Names of the linear layers that make heads, and how many; Torch-Pruning has to be told.
        shares: Of the dense multiply-accumulates that the pruned networks keep.
        stream: Names of the layers that write into the residual stream, where both tools may try to keep it whole.
    """

    name: str
    build: Callable[[int], nn.Module]
    step: Callable[[nn.Module, Any], torch.Tensor]
    training: Rows
    validation: Callable[[nn.Module], float]
    test: Callable[[nn.Module], float]
    batch_size: int
    heads: dict[str, int] = field(default_factory=dict)
    shares: tuple[float, ...] = (0.5, 0.25)
    stream: tuple[str, ...] = ()

    def scopes(self) -> tuple[str, ...]:
        """Return how units are ranked: by layer or over the network, and with the residual stream kept whole."""
        return SCOPES + (tuple(f"{scope}, {KEPT}" for scope in SCOPES) if self.stream else ())

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Return example inputs, a batch of 32."""
        return (self.training[0][:32],)

    def calibration(self, seed: int, count: int) -> list[tuple[torch.Tensor, ...]]:
        """Return unlabelled batches, other ones for every seed, `count` samples in all."""
        rows = self.training[0]
        start = seed * 1024 % max(len(rows) - count, 1)
        return [(batch,) for batch in rows[start : start + count].split(128)]

    def labelled(self, seed: int, batches: int) -> list[list[torch.Tensor]]:
        """Return batches of 128 for criteria that need gradients, from where the calibration samples begin."""
        inputs, labels = self.training
        start = seed * 1024 % max(len(inputs) - 128 * batches, 1)
        chosen = slice(start, start + 128 * batches)
        return [list(pair) for pair in zip(inputs[chosen].split(128), labels[chosen].split(128), strict=True)]

    def epoch(self, seed: int) -> Iterable[list[torch.Tensor]]:
        """Return all training batches in an order that the seed decides."""
        order = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(*self.training), self.batch_size, shuffle=True, drop_last=True, generator=order)


def _of_workload(
    name: str, file: str, training: Callable[[ModuleType], Rows], held_out: Callable[[ModuleType], Rows], **more: Any
) -> Case:
    workload = import_code(str(WORKLOADS / file))

    def test(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            pairs = [([model(inputs).numpy()], (inputs, labels)) for inputs, labels in workload.test_data()]
        return 100 * float(workload.evaluate_outputs(pairs)["top1"])

    return Case(
        name=name,
        build=lambda seed: workload.trained(seed if workload.weights(seed).is_file() else 0),
        step=workload.train_step,
        training=training(workload),
        validation=lambda model: _accuracy(model, held_out(workload)),
        test=test,
        **more,
    )


def _accuracy(model: nn.Module, rows: Rows) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(inputs).argmax(1) == labels).sum())
            for inputs, labels in zip(rows[0].split(250), rows[1].split(250), strict=True)
        )
    return 100 * right / len(rows[1])


def _images(workload: ModuleType) -> Rows:
    fashion_mnist = import_code(str(WORKLOADS / "fashion_mnist.py"))
    images, labels = fashion_mnist.training_split()
    end = len(labels) - fashion_mnist.HELD_OUT
    return images[:end], labels[:end]


def _held_out_images(workload: ModuleType) -> Rows:
    images, labels = import_code(str(WORKLOADS / "fashion_mnist.py")).training_split()
    return images[-IMAGES_TO_CHOOSE_BY:], labels[-IMAGES_TO_CHOOSE_BY:]


def resnet8() -> Case:
    """Return the ResNet-8 on Fashion-MNIST, 0.31 M parameters."""
    return _of_workload("resnet8", "fashion_mnist.py", _images, _held_out_images, batch_size=128)


def mobile() -> Case:
    """Return the MobileNetV2-like network on Fashion-MNIST, 0.10 M parameters."""
    return _of_workload("mobile", "fashion_mnist_mobile.py", _images, _held_out_images, batch_size=128)


def spam_lstm() -> Case:
    """Return the LSTM on mails, 0.16 M parameters."""
    return _of_workload(
        "spam_lstm",
        "spam_lstm.py",
        lambda workload: workload.mails().training,
        lambda workload: workload.mails().validation,
        batch_size=64,
        shares=(0.5, 0.26),  # no width of the state alone, all that Torch-Pruning cuts, is within 2 % of 0.25
    )


def tweets_transformer() -> Case:
    """Return the Transformer on tweets, 0.2 M parameters."""
    heads = {f"layers.{n}.attention.{role}": 4 for n in range(2) for role in ("query", "key", "value")}
    return _of_workload(
        "tweets_transformer",
        "tweets_transformer.py",
        lambda workload: workload.tweets().training,
        lambda workload: workload.tweets().validation,
        batch_size=64,
        heads=heads,
        stream=("embedding", *(f"layers.{n}.{name}" for n in range(2) for name in ("attention.out", "narrow"))),
    )


CASES: dict[str, Callable[[], Case]] = {
    "resnet8": resnet8,
    "mobile": mobile,
    "spam_lstm": spam_lstm,
    "tweets_transformer": tweets_transformer,
}
