"""Compare networks and files on the same inputs.

Owns which inputs are tried, how a difference is measured and what counts as equal. Writes and renames nothing.
Relative difference = max |a - b| / max(max |a|, 1e-6) per output, the worst output counts, and a value that is not
finite fails. Every file is opened once for all its inputs, so one that keeps state between samples is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import ConfigError, ModelError, VerificationError
from edgeprune.export.opened import OpenArtifact, open_artifact
from edgeprune.values import Check, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeprune.export.capture import Subject

_SAMPLES = 3
_FLOOR = 1e-6
_MOST_DB = 200.0
Arrays = list[np.ndarray]
Feeds = list[Arrays]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of two things that are compared. `batch` is the only batch that it takes, None for any."""

    run: Callable[[Sequence[np.ndarray]], Arrays]
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    label: str


def verify_artifact(
    subject: Subject,
    opened: OpenArtifact,
    *,
    examples: Sequence[Sequence[Tensor]],
    tolerance: float,
    name: str,
) -> tuple[Check, ...]:
    """Compare a file with the network that it was made from.

    Args:
        examples: The user's inputs, batch first; the first of them are tried again at the end.
        name: What the file is called in the checks.
    """
    network = Side(run=subject.run, outputs=subject.outputs, batch=subject.batch, label="the network")
    file = _file_side(opened, name)
    return _compare(network, file, subject.inputs, [_arrays(tensors) for tensors in examples], tolerance)


def verify_pair(
    a: nn.Module | str | Path,
    b: nn.Module | str | Path,
    *,
    inputs: Sequence[Tensor] | None = None,
    tolerance: float = 1e-4,
) -> tuple[Check, ...]:
    """Compare any two of networks and `.onnx` or `.tflite` files; `a` is the reference.

    Random inputs in the range of the examples, or of a file's record, are tried besides `inputs`. Checks that failed
    are returned like the others; `require` turns them into an error.

    Args:
        inputs: Example tensors, batch first; needed when neither side is a file.

    Raises:
        ConfigError: Two networks and no inputs.
        ResolveError: A file is missing or cannot be read.
        VerificationError: The sides do not have the same inputs and outputs, or a runtime fails.
    """
    opened = [open_artifact(Path(side)) if isinstance(side, str | Path) else None for side in (a, b)]
    files = [file for file in opened if file is not None]
    if inputs is None and not files:
        raise ConfigError("two networks cannot be compared without inputs", fix="give example inputs")
    # A file with a record knows the range of its inputs, so it is asked first.
    files.sort(key=lambda file: file.record is None)
    specs = files[0].inputs if files else ()
    sides = []
    for value, file in zip((a, b), opened, strict=True):
        if file is not None:
            sides.append(_file_side(file, file.path.name))
            continue
        subject = _subject(value, inputs, files[0] if files else None)
        specs = subject.inputs if inputs is not None else specs
        sides.append(Side(run=subject.run, outputs=subject.outputs, batch=subject.batch, label="the network"))
    counts = [len(file.inputs) for file in files] + ([len(inputs)] if inputs is not None else [])
    if len(set(counts)) > 1:
        raise VerificationError(f"the sides have {' and '.join(map(str, counts))} inputs, so they cannot be equal")
    examples = [_arrays(inputs)] if inputs is not None else []
    return _compare(sides[0], sides[1], specs, examples, tolerance)


def require(checks: Sequence[Check], where: str | None = None) -> None:
    """Raise the worst failed check as an error; nothing happens when all passed.

    Raises:
        VerificationError: At least one check failed.
    """
    failed = [check for check in checks if not check.passed]
    if not failed:
        return
    worst = max(failed, key=lambda check: check.max_rel)
    near = worst.max_rel < 100 * worst.tolerance
    raise VerificationError(
        f"{worst.name}: '{worst.output}' differs by {worst.max_rel:.1e} of its largest value, "
        f"limit {worst.tolerance:.1e} ({worst.inputs}, batch {worst.batch_size})",
        where=where,
        fix="if rounding explains this difference, raise export.tolerance" if near else None,
    )


def _file_side(opened: OpenArtifact, name: str) -> Side:
    return Side(run=opened.run_all, outputs=opened.outputs, batch=opened.batch, label=name)


def _subject(model: nn.Module | str | Path, inputs: Sequence[Tensor] | None, file: OpenArtifact | None) -> Subject:
    import torch

    from edgeprune.export.capture import draw, prepare

    assert isinstance(model, torch.nn.Module)
    if inputs is None:
        assert file is not None
        inputs = [torch.from_numpy(array) for array in draw(file.inputs, file.batch or 1, seed=0)]
    return prepare(model, inputs)


def _arrays(tensors: Sequence[Tensor]) -> Arrays:
    from edgeprune.export.capture import to_array

    return [to_array(tensor) for tensor in tensors]


def _compare(
    reference: Side, other: Side, specs: Sequence[TensorSpec], examples: Sequence[Arrays], tolerance: float
) -> tuple[Check, ...]:
    from edgeprune.export.capture import draw

    if len(reference.outputs) != len(other.outputs):
        raise VerificationError(
            f"{reference.label} has {len(reference.outputs)} outputs, {other.label} has {len(other.outputs)}"
        )
    step = max((side.batch for side in (reference, other) if side.batch is not None), default=None)
    batched = [spec.shape[:1] == (None,) for spec in specs]
    plan: list[tuple[str, Feeds]] = [("user inputs", _feeds(arrays, batched, step)) for arrays in examples]
    plan.append(("random inputs", _feeds(draw(specs, step or 1, seed=0), batched, step)))
    several = "random inputs" if step is None else f"random inputs, {_SAMPLES * step} samples"
    plan.append((several, _feeds(draw(specs, _SAMPLES * (step or 1), seed=1), batched, step)))
    first = plan[0]
    plan.append((f"{first[0]} again", first[1]))
    return tuple(_check(reference, other, batched, name, feeds, tolerance) for name, feeds in plan)


def _feeds(arrays: Arrays, batched: Sequence[bool], step: int | None) -> Feeds:
    """Return the inputs in batches that both sides take; the last sample fills up the last batch."""
    count = next((len(array) for array, split in zip(arrays, batched, strict=True) if split), None)
    if step is None or count is None or count == step:
        return [arrays]
    rows = [np.minimum(np.arange(start, start + step), count - 1) for start in range(0, count, step)]
    return [[a[r] if split else a for a, split in zip(arrays, batched, strict=True)] for r in rows]


def _check(reference: Side, other: Side, batched: Sequence[bool], inputs: str, feeds: Feeds, tolerance: float) -> Check:
    worst = (0.0, 0.0, reference.outputs[0].name)
    for arrays in feeds:
        expected, found = reference.run(arrays), other.run(arrays)
        for spec, a, b in zip(reference.outputs, expected, found, strict=True):
            difference, relative = distance(a, b)
            if relative > worst[1] or (relative == worst[1] and difference > worst[0]):
                worst = (difference, relative, spec.name)
    size = next((len(array) for array, split in zip(feeds[0], batched, strict=True) if split), 1)
    return Check(
        name=f"{other.label} against {reference.label}",
        inputs=inputs,
        batch_size=size,
        max_abs=worst[0],
        max_rel=worst[1],
        tolerance=tolerance,
        output=worst[2],
        passed=worst[1] <= tolerance,
    )


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the largest absolute difference, and that divided by the largest absolute value of `a`.

    Both are infinite when the shapes differ or a value is not finite.
    """
    if a.shape != b.shape:
        return math.inf, math.inf
    if a.size == 0:
        return 0.0, 0.0
    exact, other = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(exact).all() and np.isfinite(other).all()):
        return math.inf, math.inf
    difference = float(np.abs(exact - other).max())
    return difference, difference / max(float(np.abs(exact).max()), _FLOOR)


def sqnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Return the energy of `a` over that of the difference, in dB between -200 and 200; -200 where it means nothing."""
    exact, other = a.astype(np.float64), b.astype(np.float64)
    if exact.shape != other.shape or not (np.isfinite(exact).all() and np.isfinite(other).all()):
        return -_MOST_DB
    noise, signal = float(np.square(exact - other).sum()), float(np.square(exact).sum())
    if noise == 0.0:
        return _MOST_DB
    return float(np.clip(10.0 * np.log10(max(signal, 1e-300) / noise), -_MOST_DB, _MOST_DB))


def checked_inputs(inputs: Sequence[Tensor], more: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """Return all the user's inputs after comparing their number and shapes without the batch.

    Raises:
        ModelError: Further inputs do not look like the first ones.
    """
    for index, others in enumerate(more):
        shapes = [tuple(tensor.shape[1:]) for tensor in others]
        wanted = [tuple(tensor.shape[1:]) for tensor in inputs]
        if shapes != wanted:
            raise ModelError(f"checks_inputs[{index}] has shapes {shapes} after the batch, the inputs have {wanted}")
    return [inputs, *more]
