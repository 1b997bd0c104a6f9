"""Random numbers that repeat: every epoch's data and every step have a stream of their own.

Three generators are covered: torch's default one, numpy's and Python's. A step's stream depends on (seed, epoch,
step, rank) alone, so a training that goes on in the middle of an epoch draws what it would have drawn without the
break, and nothing about generators has to be stored. Generators that the user's code makes itself are not covered.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgeprune.training.batches import count_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomState:
    """The state of the three global generators, and of the current CUDA device where CUDA is in use."""

    torch_cpu: torch.Tensor
    torch_cuda: torch.Tensor | None
    numpy: dict[str, Any]
    python: tuple[Any, ...]


def capture() -> RandomState:
    """Return the present state of the global generators."""
    return RandomState(
        torch_cpu=torch.get_rng_state(),
        torch_cuda=torch.cuda.get_rng_state() if _uses_cuda() else None,
        numpy=np.random.get_state(legacy=False),
        python=random.getstate(),
    )


def restore(state: RandomState) -> None:
    """Put the global generators into an earlier state."""
    torch.set_rng_state(state.torch_cpu)
    if state.torch_cuda is not None:
        torch.cuda.set_rng_state(state.torch_cuda)
    np.random.set_state(state.numpy)
    random.setstate(state.python)


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the global generators after the block as they were before it."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


def seed_stream(*parts: int | str) -> None:
    """Seed the global generators from the digest of some numbers and words, such as (seed, epoch, step).

    torch's default CPU generator is seeded directly: `torch.manual_seed` also records a call stack for devices that
    have not been started, which costs more than a small training step.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest[:7]))
    if _uses_cuda():
        torch.cuda.manual_seed(int.from_bytes(digest[:7]))
    np.random.seed(int.from_bytes(digest[8:12]))
    random.seed(int.from_bytes(digest[12:20]))


class EpochData:
    """The batches of one epoch, drawn from a random stream that nothing else touches.

    The stream is seeded with (seed, epoch) before `data()` is called, and set aside between two batches. So the
    order and the augmentation of the batches do not depend on dropout in the network or on anything else that draws.
    The global generators are left in the stream's state: whoever draws next seeds its own stream first.
    """

    def __init__(self, data: Callable[[], Iterable[Any]], seed: int, epoch: int) -> None:
        seed_stream("data", seed, epoch)
        batches = data()
        self.length = count_batches(batches)
        self._iterator = iter(batches)
        self._state = capture()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        restore(self._state)
        batch = next(self._iterator)
        self._state = capture()
        return batch
