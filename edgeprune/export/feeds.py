"""The inputs that two sides are compared on: the user's, random ones and edge values, in batches that both take.

Owns what is tried and in which order. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeprune.values import TensorSpec

_SAMPLES = 3
Arrays = list[np.ndarray]
Kind = Literal["user", "random", "edge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSet:
    """Inputs of one kind under one name: one list of arrays for every run."""

    kind: Kind
    name: str
    feeds: tuple[Arrays, ...]
    batch_size: int


def input_sets(
    specs: Sequence[TensorSpec], examples: Sequence[Arrays], step: int | None, *, edges: bool
) -> list[InputSet]:
    """Return everything that is tried; the first set comes again at the end, which finds a file that keeps state.

    Args:
        specs: Names, shapes and ranges of the inputs; None in a shape is the batch.
        examples: The user's inputs, batch first.
        step: The only batch that both sides take, None for any.
        edges: Whether edge values are tried too.
    """
    batched = [spec.shape[:1] == (None,) for spec in specs]

    def given(kind: Kind, name: str, arrays: Arrays) -> InputSet:
        feeds = in_batches(arrays, batched, step)
        size = next((len(array) for array, split in zip(feeds[0], batched, strict=True) if split), 1)
        return InputSet(kind=kind, name=name, feeds=tuple(feeds), batch_size=size)

    sets = [given("user", "user inputs", arrays) for arrays in examples]
    sets.append(given("random", "random inputs", draw(specs, step or 1, seed=0)))
    several = "random inputs" if step is None else f"random inputs, {_SAMPLES * step} samples"
    sets.append(given("random", several, draw(specs, _SAMPLES * (step or 1), seed=1)))
    if edges:
        values = tuple(edge_values(specs, step or 1))
        sets.append(InputSet(kind="edge", name="edge values", feeds=values, batch_size=step or 1))
    first = sets[0]
    sets.append(InputSet(kind=first.kind, name=f"{first.name} again", feeds=first.feeds, batch_size=first.batch_size))
    return sets


def draw(specs: Sequence[TensorSpec], count: int, seed: int) -> list[np.ndarray]:
    """Return random inputs of `count` samples, integers inside [low, high] and floats spread over it.

    A float input whose example is constant is drawn around that constant, since one value would prove little.
    """
    rng = np.random.default_rng(seed)
    arrays = []
    for spec in specs:
        shape = tuple(count if size is None else size for size in spec.shape)
        if spec.dtype == "bool":
            arrays.append(np.asarray(rng.integers(0, 2, shape), dtype=bool))
        elif np.issubdtype(np.dtype(spec.dtype), np.integer):
            arrays.append(np.asarray(rng.integers(int(spec.low), int(spec.high) + 1, shape), dtype=spec.dtype))
        else:
            margin = 1.0 if spec.low == spec.high else 0.0
            arrays.append(np.asarray(rng.uniform(spec.low - margin, spec.high + margin, shape), dtype=spec.dtype))
    return arrays


def edge_values(specs: Sequence[TensorSpec], count: int) -> list[Arrays]:
    """Return inputs of `count` samples at the ends of their range: all low, all high, zeros, low and high in turn.

    Zeros only where they lie inside the range of every float, and no inputs twice. Whole numbers always in turn: they
    are tokens and masks, and a mask that hides everything means nothing to a network.
    """
    tried: list[Arrays] = []
    floats = [spec for spec in specs if spec.dtype.startswith("float")]
    for pattern in ("low", "high", "zero", "turn"):
        if pattern == "zero" and not all(spec.low <= 0 <= spec.high for spec in floats):
            continue
        arrays = [_edge(spec, count, pattern if spec in floats else "turn") for spec in specs]
        known = any(all(map(np.array_equal, arrays, others)) for others in tried)
        if not known:
            tried.append(arrays)
    return tried


def _edge(spec: TensorSpec, count: int, pattern: str) -> np.ndarray:
    shape = tuple(count if size is None else size for size in spec.shape)
    low, high = (0.0, 1.0) if spec.dtype == "bool" else (spec.low, spec.high)
    # Float64 holds both ends; ranges of integers are read from examples, so casting them back is exact.
    values = np.full(shape, {"low": low, "high": high, "zero": 0.0, "turn": low}[pattern])
    if pattern == "turn":
        values.reshape(-1)[1::2] = high
    return np.asarray(values.astype(spec.dtype))


def in_batches(arrays: Arrays, batched: Sequence[bool], step: int | None) -> list[Arrays]:
    """Return the inputs in batches that both sides take; the last sample fills up the last batch."""
    count = next((len(array) for array, split in zip(arrays, batched, strict=True) if split), None)
    if step is None or count is None or count == step:
        return [arrays]
    rows = [np.minimum(np.arange(start, start + step), count - 1) for start in range(0, count, step)]
    return [[a[r] if split else a for a, split in zip(arrays, batched, strict=True)] for r in rows]
