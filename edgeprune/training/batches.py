"""What a batch of the user's data means: its inputs, its place, and each process's share of an epoch.

Owns the one convention by which a network is called on a batch. Scoring and calibration use it too. Does not know
what a batch is used for, and never looks at labels.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from edgeprune.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    Tensors = tuple[torch.Tensor, ...]

T = TypeVar("T")

_FIX = "let the data give tensors, or tuples whose first element is the input (a tuple of tensors for several inputs)"


def model_inputs(batch: Any) -> Tensors:
    """Return the tensors with which the network is called on a batch: `model(*model_inputs(batch))`.

    Args:
        batch: A tensor (the only input), or a tuple or list whose first element is the input: a tensor, or a tuple
            or list of tensors for a network of several inputs. What follows (labels, weights) is left out.

    Raises:
        ModelError: The batch is a mapping, is empty, or its first element holds something else than tensors.
    """
    if isinstance(batch, torch.Tensor):
        return (batch,)
    if isinstance(batch, Mapping):
        names = ", ".join(str(key) for key in list(batch)[:4])
        raise ModelError(f"a batch is a dict ({names}), and which of it the network gets is unknown", fix=_FIX)
    if not isinstance(batch, tuple | list):
        raise ModelError(f"a batch is {type(batch).__name__}, not a tensor or a tuple", fix=_FIX)
    if not batch:
        raise ModelError(f"a batch is an empty {type(batch).__name__}", fix=_FIX)
    first = batch[0]
    inputs = tuple(first) if isinstance(first, tuple | list) else (first,)
    for position, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            place = f"batch[0][{position}]" if isinstance(first, tuple | list) else "batch[0]"
            raise ModelError(f"{place} is {type(value).__name__}, not a tensor", fix=_FIX)
    if not inputs:
        raise ModelError("batch[0] is empty: the network gets no input", fix=_FIX)
    return inputs


def inputs_for(model: nn.Module, batch: Any) -> Tensors:
    """Return the tensors of a batch with which a network is called, after comparing their number with its forward.

    Raises:
        ModelError: There are more or fewer than the forward takes.
    """
    tensors = model_inputs(batch)
    try:
        inspect.signature(model.forward).bind(*tensors)
    except TypeError as error:
        text = f"a batch gives the network {len(tensors)} inputs, which does not suit its forward: {error}"
        fix = "several inputs are one tuple: ((a, b), labels), or ((a, b),) without labels"
        raise ModelError(text, fix=fix) from error
    return tensors


def to_device(value: Any, device: torch.device) -> Any:
    """Return a batch with every tensor in it on a device; tuples, named tuples, lists and dicts keep their type."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value


def share(batches: Iterable[T], rank: int, processes: int) -> Iterator[T]:
    """Yield every `processes`-th batch, starting at `rank`; every process gets equally many.

    Where the number of batches is no multiple of `processes`, the last round is filled up with the first batches of
    the epoch, so that no batch is lost. Every process goes through all batches and keeps its own.
    """
    source = iter(batches)
    first: list[T] = []
    while group := list(itertools.islice(source, processes)):
        first.extend(group[: processes - len(first)])
        group.extend(itertools.islice(itertools.cycle(first), processes - len(group)))
        yield group[rank]


def count_batches(batches: Any) -> int | None:
    """Return the number of batches where the iterable knows it, else None."""
    try:
        return len(batches)
    except TypeError:  # no __len__, or a DataLoader over an iterable dataset of unknown length
        return None
