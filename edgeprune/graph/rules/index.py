"""Operators that cut dimensions into pieces, put pieces together, or pick positions."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import torch

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Widths, refs, resize, rule

# A cut at 1/2, 1/3, ... of a dimension is taken for a share of it; other cuts for literal positions.
MAX_PIECES = 4


@rule("cat", "concat", "concatenate")
def cat(flow: Flow, call: Call) -> None:
    """Positions follow one another along one dimension; the others are one."""
    tensors = [ref for ref in refs(call.args["tensors"]) if ref.shape != (0,)]
    result = call.result
    axis = call.args["dim"] % len(result.shape)
    labels = list(flow.of(tensors[0]))
    for other in tensors[1:]:
        for position, label in enumerate(flow.of(other)):
            if position != axis:
                flow.join(labels[position], label, call)
    labels[axis] = flow.atoms.concatenate([flow.of(ref)[axis] for ref in tensors], [ref.shape[axis] for ref in tensors])
    flow.set(result, labels)


@rule("stack")
def stack(flow: Flow, call: Call) -> None:
    """All dimensions are one; the new one is fixed."""
    tensors = refs(call.args["tensors"])
    labels = list(flow.of(tensors[0]))
    for other in tensors[1:]:
        for mine, label in zip(labels, flow.of(other), strict=True):
            flow.join(mine, label, call)
    labels.insert(call.args["dim"] % len(call.result.shape), None)
    flow.set(call.result, labels)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")
def split(flow: Flow, call: Call) -> None:
    """Pieces of a dimension, one after the other."""
    source = call.args["self"]
    axis = call.args["dim"] % len(source.shape)
    labels = list(flow.of(source))
    pieces = refs(call.result)
    sizes = [piece.shape[axis] for piece in pieces]
    flow.cut(labels[axis], sizes, call, equal=len(set(sizes)) == 1)
    label = flow.atoms.resolve(labels[axis])
    start = 0
    for piece, size in zip(pieces, sizes, strict=True):
        labels[axis] = None if label is None else label[:, start : start + size]
        flow.set(piece, labels)
        start += size


@resize("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")
def split_widths(call: Call, widths: Widths) -> tuple[Any, dict[str, Any]] | dict[str, Any]:
    source = call.args["self"]
    axis = call.args["dim"] % len(source.shape)
    if widths.kept(source, axis).all():
        return call.args
    sizes = [widths.shape(piece)[axis] for piece in refs(call.result)]
    return torch.ops.aten.split_with_sizes.default, {"self": source, "split_sizes": sizes, "dim": axis}


@rule("slice", "narrow")
def cut(flow: Flow, call: Call) -> None:
    """A run of positions, or every step-th of them."""
    source, result = call.args["self"], call.result
    axis = call.args["dim"] % len(source.shape)
    size, kept = source.shape[axis], result.shape[axis]
    labels = list(flow.of(source))
    if kept == size:
        flow.set(result, labels)
        return
    start, step = _start(call, size), call.args.get("step", 1) or 1
    if start is None:
        flow.pin(labels[axis], call, "cut at a position that is computed")
        labels[axis] = None
    else:
        stop = start + max((kept - 1) * step + 1, 0)
        unit = gcd(gcd(size, start), kept)
        if step == 1 and 1 < size // unit <= MAX_PIECES:
            flow.cut(labels[axis], [unit] * (size // unit), call, equal=True)
        else:
            flow.cut(labels[axis], [n for n in (start, stop - start, size - stop) if n > 0], call, equal=False)
        label = flow.atoms.resolve(labels[axis])
        labels[axis] = None if label is None else label[:, start:stop:step]
        flow.picked(source, label, labels[axis])
    flow.set(result, labels)


@resize("slice", "narrow")
def cut_widths(call: Call, widths: Widths) -> tuple[Any, dict[str, Any]] | dict[str, Any]:
    source, result = call.args["self"], call.result
    axis = call.args["dim"] % len(source.shape)
    kept = widths.kept(source, axis)
    start, step = _start(call, len(kept)), call.args.get("step", 1) or 1
    if start is None or kept.all():
        return call.args
    wanted = np.arange(start, start + result.shape[axis] * step, step)
    number = np.cumsum(kept) - 1
    left = number[wanted[kept[wanted]]]
    if len(left) == 0 or left[-1] - left[0] + 1 == len(left):
        first = int(left[0]) if len(left) else 0
        arguments = {"self": source, "dim": axis, "start": first, "end": first + len(left), "step": 1}
        return torch.ops.aten.slice.Tensor, arguments
    return torch.ops.aten.index_select.default, {"self": source, "dim": axis, "index": torch.from_numpy(left)}


def _start(call: Call, size: int) -> int | None:
    start = call.args["start"]
    if isinstance(start, Ref):
        return None
    start = 0 if start is None else int(start)
    return min(max(start + size if start < 0 else start, 0), size)


@rule("select")
def select(flow: Flow, call: Call) -> None:
    """One position of one dimension: it stays, the others may go."""
    source, index = call.args["self"], call.args["index"]
    axis = call.args["dim"] % len(source.shape)
    labels = list(flow.of(source))
    label = flow.atoms.resolve(labels[axis])
    if label is not None:
        picked = label if isinstance(index, Ref) else label[:, index % source.shape[axis]]
        flow.pin(picked, call, "one position of it is picked by number")
        flow.picked(source, label, picked.reshape(len(label), -1))
    del labels[axis]
    flow.set(call.result, labels)


@resize("select")
def select_position(call: Call, widths: Widths) -> dict[str, Any]:
    source = call.args["self"]
    axis = call.args["dim"] % len(source.shape)
    kept = widths.kept(source, axis)
    if kept.all():
        return call.args
    return {**call.args, "index": int(kept[: call.args["index"] % len(kept)].sum())}


@rule("unbind")
def unbind(flow: Flow, call: Call) -> None:
    """Every position apart; that dimension is fixed."""
    source = call.args["self"]
    axis = call.args["dim"] % len(source.shape)
    labels = list(flow.of(source))
    flow.pin(labels[axis], call, "unbind takes its positions apart")
    del labels[axis]
    for piece in refs(call.result):
        flow.set(piece, labels)


@rule("flip")
def flip(flow: Flow, call: Call) -> None:
    """Positions in reverse order."""
    labels = list(flow.of(call.args["self"]))
    for dim in call.args["dims"]:
        label = flow.atoms.resolve(labels[dim % len(labels)])
        labels[dim % len(labels)] = None if label is None else label[:, ::-1]
    flow.set(call.result, labels)


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
      "reflection_pad3d", "replication_pad3d")  # fmt: skip
def pad(flow: Flow, call: Call) -> None:
    """New positions at the ends of dimensions; they are fixed. Only constants may be added to channels."""
    source, amounts = (
        call.args["self"],
        [int(amount) for amount in call.args["pad" if "pad" in call.args else "padding"]],
    )
    labels = list(flow.of(source))
    constant = call.name == "constant_pad_nd" or call.args.get("mode", "") == "constant"
    for pair in range(len(amounts) // 2):
        before, after = amounts[2 * pair : 2 * pair + 2]
        axis = len(labels) - 1 - pair
        if labels[axis] is None or (before == 0 and after == 0):
            continue
        if not constant or before < 0 or after < 0:
            flow.pin(labels[axis], call, "padded along this dimension")
        label = flow.atoms.resolve(labels[axis])
        labels[axis] = None if label is None else np.pad(label, ((0, 0), (before, after)))
    flow.set(call.result, labels)


@rule("embedding")
def embedding(flow: Flow, call: Call) -> None:
    """Rows of a table by number: the rows are fixed, the columns are channels."""
    weight, indices = call.args["weight"], call.args["indices"]
    rows, columns = flow.of(weight)
    flow.pin(rows, call, "rows of an embedding are picked by number")
    flow.produced(weight, 1)
    flow.set(call.result, [*flow.of(indices), columns])
