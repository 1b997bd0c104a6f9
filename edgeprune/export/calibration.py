"""Calibration data as samples of a file: read from the user's batches, checked, and cut to the file's batch.

Owns what can be wrong with such data. Reads no more batches than it needs and holds one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import ConfigError, ModelError
from edgeprune.values import Notice, TensorSpec

if TYPE_CHECKING:
    import torch

    from edgeprune.export.capture import Subject

_MARGIN = 0.1
_FIX = "give batches as for the network's inputs():  def calibration_data(): yield (x,)"


@dataclass(slots=True)
class Seen:
    """What was read: how many samples, the largest batch that they came in, and whether each input ever changed."""

    samples: int = 0
    largest: int = 0
    first: list[Any] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)


def samples_of(batches: Iterable[Any], subject: Subject, limit: int, seen: Seen) -> Iterator[list[np.ndarray]]:
    """Yield samples in the file's batch, one where the network takes any, at most `limit` of them.

    Args:
        batches: Tensors, or tuples as training data have them; labels are left out.
        seen: Filled while samples are read; see `check_seen`.

    Raises:
        ModelError: A batch has another number of inputs, shape or dtype than the network, or values that are not
            finite.
    """
    from edgeprune.export.capture import to_array
    from edgeprune.training.batches import model_inputs

    step = subject.batch or 1
    for place, batch in enumerate(batches):
        arrays = [to_array(tensor) for tensor in model_inputs(batch)]
        checked = _checked(arrays, subject.inputs, f"calibration batch {place}")
        split = [spec.shape[:1] == (None,) for spec in subject.inputs]
        counts = {len(array) for array, free in zip(checked, split, strict=True) if free} or {step}
        if len(counts) > 1:
            raise ModelError(f"calibration batch {place} has {sorted(counts)} samples of different inputs", fix=_FIX)
        count = counts.pop()
        seen.largest = max(seen.largest, count)
        for start in range(0, count - count % step, step):
            sample = [a[start : start + step] if free else a for a, free in zip(checked, split, strict=True)]
            _note(seen, sample)
            yield sample
            if seen.samples >= limit:
                return


def kept_samples(
    source: Iterable[list[np.ndarray]], limit_bytes: int, kept: list[list[np.ndarray]]
) -> Iterator[list[np.ndarray]]:
    """Pass samples on, and keep as many of the first of them in a list as fit into a limit, at least one."""
    size = 0
    for sample in source:
        size += sum(array.nbytes for array in sample)
        if size <= limit_bytes or not kept:
            kept.append([np.array(array) for array in sample])
        yield sample


def check_seen(seen: Seen, specs: Sequence[TensorSpec]) -> None:
    """Check that there were samples, and that they say something.

    Raises:
        ConfigError: There were none, or a float input had one and the same value throughout.
    """
    if seen.samples == 0 and seen.largest:
        raise ConfigError(
            f"the network takes batches of a fixed size, and those of the calibration data have at most {seen.largest}",
            fix="give batches as large as those of inputs()",
        )
    if seen.samples == 0:
        raise ConfigError("int8 needs calibration data, and there are no samples in it", fix=_FIX)
    for spec, first, changed in zip(specs, seen.first, seen.changed, strict=True):
        if not changed and spec.dtype.startswith("float") and np.size(first) > 1:
            value = float(np.ravel(first)[0])
            raise ConfigError(
                f"calibration input '{spec.name}' is {value:g} everywhere, so nothing can be learnt from it",
                fix="calibrate on true inputs, prepared as in training",
            )


def judged_on(
    samples: Sequence[Sequence[np.ndarray]],
    inputs: Sequence[torch.Tensor],
    more: Sequence[Sequence[torch.Tensor]],
    specs: Sequence[TensorSpec],
) -> tuple[list[Sequence[torch.Tensor]], tuple[Notice, ...]]:
    """Return the inputs that an int8 file is judged on: calibration samples, and of the user's those in their range.

    Examples are often random numbers that only have the right shape. Far outside of the calibrated range they would
    say nothing about the file; but they may also be right, and calibration data not prepared like them. So the user is
    told.
    """
    import torch

    split = [spec.shape[:1] == (None,) for spec in specs]
    columns = list(zip(*samples, strict=True))
    joined = [
        torch.from_numpy(np.concatenate(column) if free else column[0])
        for column, free in zip(columns, split, strict=True)
    ]
    parts, notices = [joined], list[Notice]()
    for tensors in (inputs, *more):
        outside = [spec for spec, own, seen in zip(specs, tensors, joined, strict=True) if _beyond(own, seen)]
        if not outside:
            parts.append(list(tensors))
        elif not notices:
            notices.append(_out_of_range(outside[0], tensors[specs.index(outside[0])], joined[specs.index(outside[0])]))
    if not any(split):
        return list(parts), tuple(notices)
    # Together: of a single sample whose outputs happen to be small, the ratio to the noise says little.
    together = [
        torch.cat([values.detach().to("cpu") for values in column]) if free else column[0]
        for column, free in zip(zip(*parts, strict=True), split, strict=True)
    ]
    return [together], tuple(notices)


def _beyond(own: torch.Tensor, seen: torch.Tensor) -> bool:
    """Return whether values lie outside of what was seen by more than a tenth of its width."""
    if not own.is_floating_point():
        return False
    low, high = float(seen.min()), float(seen.max())
    margin = _MARGIN * max(high - low, 1e-12)
    return float(own.min()) < low - margin or float(own.max()) > high + margin


def _out_of_range(spec: TensorSpec, own: torch.Tensor, seen: torch.Tensor) -> Notice:
    text = (
        f"input '{spec.name}' reaches from {float(own.min()):.3g} to {float(own.max()):.3g} in the example inputs, and "
        f"from {float(seen.min()):.3g} to {float(seen.max()):.3g} in the calibration data"
    )
    return Notice(code="calibration-range", text=text, fix="prepare both as in training, unless inputs() is random")


def _note(seen: Seen, sample: list[np.ndarray]) -> None:
    seen.samples += 1
    if not seen.first:
        seen.first = [np.array(array) for array in sample]
        seen.changed = [bool(array.size) and not bool((array == array.ravel()[0]).all()) for array in sample]
        return
    seen.changed = [
        known or not np.array_equal(array, first)
        for known, array, first in zip(seen.changed, sample, seen.first, strict=True)
    ]


def _checked(arrays: list[np.ndarray], specs: Sequence[TensorSpec], where: str) -> list[np.ndarray]:
    if len(arrays) != len(specs):
        raise ModelError(f"{where} has {len(arrays)} inputs, the network takes {len(specs)}", fix=_FIX)
    for array, spec in zip(arrays, specs, strict=True):
        wanted = spec.shape[1:] if spec.shape[:1] == (None,) else spec.shape
        found = array.shape[1:] if spec.shape[:1] == (None,) else array.shape
        if found != wanted:
            text = f"{where}: input '{spec.name}' has shape {found} after the batch, the network takes {wanted}"
            raise ModelError(text, fix=_FIX)
        if array.dtype.name != spec.dtype:
            text = f"{where}: input '{spec.name}' is {array.dtype.name}, the network takes {spec.dtype}"
            raise ModelError(text, fix=_FIX)
        if not np.isfinite(array).all():
            text = f"{where}: input '{spec.name}' is not finite"
            raise ModelError(text, fix="look for NaN and infinity in calibration_data()")
    return arrays


def read_calibration(path: Any, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield batches from a `.npz` or `.safetensors` file with one array per input, or a `.npy` file for one input.

    Raises:
        ResolveError: The file cannot be read.
        ConfigError: It does not hold an array for every input.
    """
    import torch

    arrays = _arrays(path, names)
    for name, array in zip(names, arrays, strict=True):
        if array.ndim == 0 or array.dtype.kind not in "fiub":
            found = "one value" if array.ndim == 0 else f"of type {array.dtype}"
            raise ConfigError(f"'{name}' in {path} is {found}", fix="save an array of numbers, samples first")
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ConfigError(f"{path} holds {sorted(lengths)} samples for different inputs", fix="save as many for each")
    for start in range(0, lengths.pop(), 32):
        yield (tuple(torch.from_numpy(np.array(array[start : start + 32])) for array in arrays),)


def _arrays(path: Any, names: Sequence[str]) -> list[np.ndarray]:
    from zipfile import BadZipFile

    from safetensors import SafetensorError

    from edgeprune.errors import ResolveError

    try:
        if path.suffix == ".npy":
            data = np.load(path, allow_pickle=False)
            if not isinstance(data, np.ndarray):
                data.close()
                raise ValueError("it is an archive, as .npz files are")
            found = {names[0]: data} if len(names) == 1 else {}
        elif path.suffix == ".npz":
            data = np.load(path, allow_pickle=False)
            if isinstance(data, np.ndarray):
                raise ValueError("it is a single array, as .npy files hold it")
            with data:
                found = {name: data[name] for name in data.files}
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found = load_file(path)
        else:
            raise ConfigError(f"{path} is neither .npy, .npz nor .safetensors", fix="np.savez('calibration.npz', x=x)")
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, SafetensorError) as error:
        raise ResolveError(f"cannot read {path}: {error}", fix="np.savez('calibration.npz', x=x) writes one") from error
    if len(names) == 1 and len(found) == 1:
        return list(found.values())
    missing = [name for name in names if name not in found]
    if missing:
        raise ConfigError(
            f"{path} holds no array '{missing[0]}'; the network's inputs are {', '.join(names)}",
            fix=f"np.savez('calibration.npz', {', '.join(f'{name}=...' for name in names)})",
        )
    return [found[name] for name in names]
