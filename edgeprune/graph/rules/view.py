"""Operators that rearrange dimensions without touching values: views, permutations, tilings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Widths, dims, refs, resize, rule
from edgeprune.graph.labels import Label, Pin


@rule(
    "view", "reshape", "flatten", "unflatten", "unsafe_view", "_unsafe_view", "_reshape_alias", "view_as", "reshape_as",
    "ravel",
)  # fmt: skip
def reshape(flow: Flow, call: Call) -> None:
    """Split both shapes into segments of equal product; inside a segment merge all dimensions and split again."""
    if np.prod(call.args["self"].shape) != np.prod(call.result.shape):  # view(dtype) of another width
        flow.give_up(call)
        return
    flow.set(
        call.result,
        reshaped(flow, call, flow.of(call.args["self"]), call.args["self"].shape, call.result.shape),
    )


@resize("view", "reshape", "unflatten", "unsafe_view", "_unsafe_view", "_reshape_alias")
def view_sizes(call: Call, widths: Widths) -> dict[str, Any]:
    name = "sizes" if "sizes" in call.args else "size" if "size" in call.args else "shape"
    sizes, after = call.args[name], widths.shape(call.result)
    if call.name == "unflatten":
        axis = call.args["dim"] % len(call.args["self"].shape)
        return {**call.args, name: _written(sizes, call.result.shape[axis:], after[axis:])}
    return {**call.args, name: _written(sizes, call.result.shape, after)}


def _written(sizes: Sequence[int], before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return sizes as the code gave them (-1 included), with those replaced that changed."""
    return [size if old == new or size == -1 else new for size, old, new in zip(sizes, before, after, strict=False)]


def reshaped(
    flow: Flow, call: Call, labels: Sequence[Label], before: tuple[int, ...], after: tuple[int, ...]
) -> list[Label]:
    """Return the labels after a view from one shape to another."""
    result: list[Label] = [None] * len(after)
    pin = Pin(reason="its channels are mixed by a view", where=call.where)
    for old, new in _segments(before, after):
        if len(old) == 1 and len(new) == 1:
            result[new[0]] = labels[old[0]]
            continue
        if all(labels[axis] is None for axis in old):
            continue
        merged = flow.atoms.flatten([labels[axis] for axis in old], [before[axis] for axis in old])
        if len(new) == 1:
            result[new[0]] = merged
        else:
            parts = flow.atoms.split(merged, [after[axis] for axis in new], pin)
            for axis, part in zip(new, parts, strict=True):
                result[axis] = part
    return result


def _segments(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair runs of dimensions with equal products; dimensions of size 1 belong to nobody."""
    old = [axis for axis, size in enumerate(before) if size != 1]
    new = [axis for axis, size in enumerate(after) if size != 1]
    if 0 in before or 0 in after:
        return []
    segments = []
    while old or new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := int(np.prod([before[i] for i in left]))) != (b := int(np.prod([after[i] for i in right]))):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        segments.append((left, right))
    return segments


@rule("unsqueeze", "squeeze", "atleast_2d", "atleast_3d")
def squeeze(flow: Flow, call: Call) -> None:
    """Dimensions of size 1 come and go; the others keep their order."""
    source = call.args["self"]
    kept = [label for label, size in zip(flow.of(source), source.shape, strict=True) if size != 1]
    for result in refs(call.result):
        queue = iter(kept)
        flow.set(result, [next(queue) if size != 1 else None for size in result.shape])


@resize("squeeze")
def squeezed_dims(call: Call, widths: Widths) -> tuple[Any, dict[str, Any]] | dict[str, Any]:
    """Without a dimension, `squeeze` would drop those that shrink to one position too."""
    source = call.args["self"]
    axes = dims(call.args.get("dim"), len(source.shape))
    ones = [axis for axis in axes if source.shape[axis] == 1]
    return torch.ops.aten.squeeze.dims, {"self": source, "dim": ones}


@rule(
    "permute",
    "transpose",
    "t",
    "numpy_T",
    "mT",
    "movedim",
    "moveaxis",
    "swapaxes",
    "swapdims",
    "matrix_H",
    "adjoint",
)
def permute(flow: Flow, call: Call) -> None:
    """Dimensions change places."""
    source = call.args["self"]
    labels = list(flow.of(source))
    flow.set(call.result, [labels[axis] for axis in _order(call, len(source.shape))])


def _order(call: Call, rank: int) -> list[int]:
    axes = list(range(rank))
    if call.name == "permute":
        return dims(call.args["dims"], rank)
    if call.name in ("movedim", "moveaxis"):
        source, target = dims(call.args["source"], rank), dims(call.args["destination"], rank)
        rest = iter([axis for axis in axes if axis not in source])
        return [source[target.index(axis)] if axis in target else next(rest) for axis in axes]
    if call.name in ("transpose", "swapaxes", "swapdims"):
        keys = ("axis0", "axis1") if call.name == "swapaxes" else ("dim0", "dim1")
        first, second = (call.args[key] % rank for key in keys)
    elif call.name == "numpy_T":
        return axes[::-1]
    else:
        if rank < 2:
            return axes
        first, second = rank - 2, rank - 1
    axes[first], axes[second] = axes[second], axes[first]
    return axes


@rule("expand", "expand_as", "broadcast_to")
def expand(flow: Flow, call: Call) -> None:
    """New and stretched dimensions follow the other tensor of expand_as; else whatever they meet later."""
    source, result = call.args["self"], call.result
    other = call.args.get("other")
    labels = list(flow.of(source))
    padded: list[Label] = [*[None] * (len(result.shape) - len(labels)), *labels]
    sizes = (1,) * (len(result.shape) - len(labels)) + source.shape
    followed = flow.of(other) if isinstance(other, Ref) else None
    for axis, size in enumerate(sizes):
        if size == 1 and result.shape[axis] > 1:
            padded[axis] = followed[axis] if followed is not None else flow.atoms.fresh(result.shape[axis])
        elif followed is not None:
            flow.join(padded[axis], followed[axis], call)
    flow.set(result, padded)


@resize("expand", "broadcast_to")
def expand_sizes(call: Call, widths: Widths) -> dict[str, Any]:
    return {**call.args, "size": _written(call.args["size"], call.result.shape, widths.shape(call.result))}


@rule("repeat", "tile")
def repeat(flow: Flow, call: Call) -> None:
    """A dimension several times over: its copies go together."""
    source, result = call.args["self"], call.result
    labels = list(flow.of(source))
    missing = len(result.shape) - len(labels)
    padded: list[Label] = [*[None] * missing, *labels]
    sizes = (1,) * missing + source.shape
    out: list[Label] = []
    for label, size, total in zip(padded, sizes, result.shape, strict=True):
        resolved = flow.atoms.resolve(label)
        if resolved is not None:
            out.append(np.tile(resolved, (1, total // size)))
        else:
            out.append(flow.atoms.fresh(total) if size == 1 and total > 1 else None)
    flow.set(result, out)


@resize("repeat", "tile")
def repeat_times(call: Call, widths: Widths) -> dict[str, Any]:
    name = "repeats" if "repeats" in call.args else "dims"
    source, after = call.args["self"], widths.shape(call.result)
    missing = len(after) - len(source.shape)
    written = [1] * (len(after) - len(call.args[name])) + list(call.args[name])
    left = [1] * missing + [int(widths.kept(source, axis).sum()) for axis in range(len(source.shape))]
    times = [new // size if size == 1 else old for old, new, size in zip(written, after, left, strict=True)]
    return {**call.args, name: times}


@rule("repeat_interleave")
def repeat_interleave(flow: Flow, call: Call) -> None:
    """Every position several times in a row."""
    source, result, dim = call.args["self"], call.result, call.args.get("dim")
    if dim is None or not isinstance(call.args.get("repeats"), int):
        flow.give_up(call)
        return
    labels = list(flow.of(source))
    axis = dim % len(source.shape)
    resolved = flow.atoms.resolve(labels[axis])
    labels[axis] = None if resolved is None else np.repeat(resolved, call.args["repeats"], axis=1)
    flow.set(result, labels)


@resize("repeat_interleave")
def repeated_size(call: Call, widths: Widths) -> dict[str, Any]:
    if call.args.get("output_size") is None:
        return call.args
    return {**call.args, "output_size": widths.shape(call.result)[call.args["dim"] % len(call.result.shape)]}


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, call: Call) -> None:
    """Every output channel takes r * r neighbouring input channels."""
    source, result, factor = call.args["self"], call.result, call.args["upscale_factor"]
    labels = list(flow.of(source))
    _pin_axes(flow, call, labels[-2:])
    channels = result.shape[-3]
    parts = flow.atoms.split(
        labels[-3], (channels, factor * factor), Pin(reason="mixed by pixel_shuffle", where=call.where)
    )
    flow.pin(parts[1], call, "positions inside a pixel_shuffle block go with their block")
    flow.set(result, [*labels[:-3], parts[0], None, None])


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, call: Call) -> None:
    """Every input channel becomes r * r neighbouring output channels."""
    source, result, factor = call.args["self"], call.result, call.args["downscale_factor"]
    labels = list(flow.of(source))
    _pin_axes(flow, call, labels[-2:])
    resolved = flow.atoms.resolve(labels[-3])
    out = None if resolved is None else np.repeat(resolved, factor * factor, axis=1)
    flow.set(result, [*labels[:-3], out, None, None])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, call: Call) -> None:
    """View as (groups, n), swap, merge."""
    source, groups = call.args["self"], call.args["groups"]
    labels = list(flow.of(source))
    each = source.shape[1] // groups
    outer, inner = flow.atoms.split(labels[1], (groups, each), Pin(reason="mixed by channel_shuffle", where=call.where))
    flow.pin(outer, call, "the number of shuffled groups is written in the code")
    labels[1] = flow.atoms.flatten([inner, outer], [each, groups])
    flow.set(call.result, labels)


def _pin_axes(flow: Flow, call: Call, labels: Sequence[Label]) -> None:
    for label in labels:
        flow.pin(label, call, f"{call.name} mixes this dimension with its neighbours")
