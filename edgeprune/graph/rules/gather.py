"""Operators that pick or put positions by the numbers in a tensor, and those in which positions have an order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Widths, refs, resize, rule
from edgeprune.graph.labels import Ids, Label
from edgeprune.graph.rules.elementwise import aligned

_BY_NUMBER = "its positions are picked by number"


def constant_of(flow: Flow, call: Call, ref: Ref) -> Ids | None:
    """Return the values of a tensor of whole numbers that does not depend on the inputs, where they are known."""
    values = flow.constant(call, ref)
    return None if values is None or values.dtype == torch.bool else values.numpy()


def _picked(flow: Flow, call: Call, label: Label, index: Ref) -> Label:
    """Return the label of a dimension that a tensor of one dimension picks from another one.

    The index stays whole: a compaction that cuts what it picks from writes its values out anew.
    """
    values = constant_of(flow, call, index)
    found = flow.atoms.resolve(label)
    flow.pin(flow.of(index)[0], call, "its values pick positions")
    if values is None or found is None:  # a mask would be no shorter: its positions are those of the source
        flow.pin(label, call, _BY_NUMBER)
        return None
    flow.picked(call.args["self"], found, found[:, values])
    return found[:, values]


@rule("index_select")
def index_select(flow: Flow, call: Call) -> None:
    """Positions of one dimension, picked by a tensor of numbers."""
    source, index = call.args["self"], call.args["index"]
    labels = list(flow.of(source))
    if labels:
        axis = call.args["dim"] % len(labels)
        if len(index.shape) == 1:
            labels[axis] = _picked(flow, call, labels[axis], index)
        else:
            flow.pin(labels[axis], call, _BY_NUMBER)
            labels[axis] = None
    flow.set(call.result, labels)


@resize("index_select")
def selected_positions(call: Call, widths: Widths) -> dict[str, Any]:
    source, index = call.args["self"], call.args["index"]
    if not source.shape:
        return call.args
    return {**call.args, "index": _renumbered(call, widths, index, call.args["dim"] % len(source.shape))}


@resize("index", "_unsafe_index")
def indexed_positions(call: Call, widths: Widths) -> dict[str, Any]:
    indices = [
        _renumbered(call, widths, index, axis) if isinstance(index, Ref) else index
        for axis, index in enumerate(call.args["indices"])
    ]
    return {**call.args, "indices": indices}


def _renumbered(call: Call, widths: Widths, index: Ref, axis: int) -> Ref | torch.Tensor:
    """Return an index that picks the same positions among those that are left; itself where nothing goes."""
    kept = widths.kept(call.args["self"], axis)
    if kept.all():
        return index
    values = call.picked[index.id].numpy() % len(kept)
    return torch.from_numpy((np.cumsum(kept) - 1)[values[kept[values]]])


@rule("index", "_unsafe_index")
def index(flow: Flow, call: Call) -> None:
    """x[..., i, j]: indexed dimensions give way to those of the indices, at the front if others lie between them."""
    source, result = call.args["self"], call.result
    found = {axis: ref for axis, ref in enumerate(call.args["indices"]) if isinstance(ref, Ref)}
    labels = list(flow.of(source))
    inner = max(len(ref.shape) for ref in found.values())
    touched = sorted(found)
    if len(labels) - len(found) + inner != len(result.shape):  # a mask covers as many dimensions as it has
        if len(found) != 1:
            flow.give_up(call)
            return
        (axis,) = found
        mask = found[axis]
        touched = list(range(axis, axis + len(mask.shape)))
        for label in [*(labels[axis] for axis in touched), *flow.of(mask)]:
            flow.pin(label, call, "a mask picks from it")
        flow.set(result, _replaced(labels, touched, [None]))
        return
    if len(found) == 1 and inner == 1:
        (axis,) = found
        labels[axis] = _picked(flow, call, labels[axis], found[axis])
        flow.set(result, labels)
        return
    for label in [*(labels[axis] for axis in touched), *(own for ref in found.values() for own in flow.of(ref))]:
        flow.pin(label, call, _BY_NUMBER)
    flow.set(result, _replaced(labels, touched, [None] * inner))


def _adjacent(axes: Sequence[int]) -> bool:
    return list(axes) == list(range(axes[0], axes[0] + len(axes)))


def _replaced(labels: Sequence[Label], touched: Sequence[int], by: Sequence[Label]) -> list[Label]:
    """Return labels with the touched ones taken out and others in their place."""
    kept = [label for axis, label in enumerate(labels) if axis not in touched]
    at = touched[0] if _adjacent(touched) else 0
    return [*kept[:at], *by, *kept[at:]]


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(flow: Flow, call: Call) -> None:
    """x[..., i, j] = values: indexed dimensions stay whole, the values broadcast against the others."""
    source, values = call.args["self"], call.args["values"]
    found = {axis: ref for axis, ref in enumerate(call.args["indices"]) if isinstance(ref, Ref)}
    labels, touched = list(flow.of(source)), sorted(found)
    masks = [axis for axis, ref in found.items() if ref.dtype == torch.bool]
    if len(found) == 1 and masks:  # a mask covers as many dimensions as it has
        touched = list(range(masks[0], masks[0] + len(found[masks[0]].shape)))
        found = {axis: Ref(ref.id, ref.shape[:1]) for axis, ref in found.items()}
        for label in flow.of(call.args["indices"][masks[0]]):
            flow.pin(label, call, "a mask picks from it")
    elif any(len(ref.shape) > 1 for ref in found.values()):
        flow.give_up(call)
        return
    for label in [*(labels[axis] for axis in touched), *(own for ref in found.values() for own in flow.of(ref))]:
        flow.pin(label, call, "its positions are written by number")
    inner: list[Label] = [None] * max(len(ref.shape) for ref in found.values())
    row = _replaced(labels, touched, inner)
    shape = [-1 if size is None else size for size in _sizes(source.shape, touched, len(inner))]
    back = len(values.shape)
    for place in range(1, min(back, len(shape)) + 1):  # as many places as the indices name, whatever their number
        if shape[-place] == -1:
            shape[-place] = values.shape[-place]
    aligned(flow, call, [(row, shape), (flow.of(values), values.shape)], shape)
    flow.set(call.result, labels)


def _sizes(shape: Sequence[int], touched: Sequence[int], inner: int) -> list[int | None]:
    kept: list[int | None] = [size for axis, size in enumerate(shape) if axis not in touched]
    at = touched[0] if _adjacent(touched) else 0
    return [*kept[:at], *[None] * inner, *kept[at:]]


@rule("gather")
def gather(flow: Flow, call: Call) -> None:
    """result[i][j] = x[index[i][j]][j]: the other dimensions are those of the index, where it covers all of them."""
    index = call.args["index"]
    _along(flow, call, call.args["self"], [index])
    flow.set(call.result, flow.of(index))


@rule("take_along_dim")
def take_along_dim(flow: Flow, call: Call) -> None:
    """As gather, with broadcasting of the other dimensions."""
    source, index, result = call.args["self"], call.args["indices"], call.result
    if call.args.get("dim") is None:
        for label in flow.of(source):
            flow.pin(label, call, _BY_NUMBER)
        flow.set(result, flow.of(index) if len(index.shape) == 1 else [None] * len(result.shape))
        for label in flow.of(index) if len(index.shape) != 1 else []:
            flow.pin(label, call, _BY_NUMBER)
        return
    axis = call.args["dim"] % len(source.shape)
    flow.pin(flow.of(source)[axis], call, _BY_NUMBER)
    own, sizes = list(flow.of(source)), list(source.shape)
    own[axis], sizes[axis] = flow.of(index)[axis], index.shape[axis]
    flow.set(result, aligned(flow, call, [(own, sizes), (flow.of(index), index.shape)], result.shape))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(flow: Flow, call: Call) -> None:
    """x[index[i][j]][j] = source[i][j]: the other dimensions go together, the one that is written to stays whole."""
    source, written = call.args["self"], call.args.get("src", call.args.get("value"))
    others = [ref for ref in (call.args["index"], written) if isinstance(ref, Ref) and ref.shape]
    labels = list(flow.of(source))
    _along(flow, call, source, others)
    for ref in others:
        for label in flow.of(ref)[call.args["dim"] % max(len(labels), 1) :][:1]:
            flow.pin(label, call, "its positions are written by number")
    flow.set(call.result, labels)


def _along(flow: Flow, call: Call, source: Ref, others: Sequence[Ref]) -> None:
    """Join all dimensions but the one that is picked from; a dimension that is covered in part is fixed."""
    rank = len(source.shape)
    axis = call.args["dim"] % max(rank, 1)
    labels = flow.of(source)
    for place in range(rank):
        if place == axis:
            flow.pin(labels[place], call, _BY_NUMBER)
            continue
        for ref in others:
            if ref.shape[place] == source.shape[place]:
                flow.join(labels[place], flow.of(ref)[place], call)
                continue
            for label in (labels[place], *(flow.of(other)[place] for other in others)):
                flow.pin(label, call, "an index covers a part of it")


@rule("index_add", "index_copy", "index_reduce", "index_fill")
def index_add(flow: Flow, call: Call) -> None:
    """Positions of one dimension are written by number, the others go together."""
    source, index, written = call.args["self"], call.args["index"], call.args.get("source")
    labels = list(flow.of(source))
    axis = call.args["dim"] % max(len(labels), 1)
    touched = [*labels[axis : axis + 1], *flow.of(index)]
    if isinstance(written, Ref) and written.shape:
        for place, (mine, other) in enumerate(zip(labels, flow.of(written), strict=True)):
            if place == axis:
                touched.append(other)
            else:
                flow.join(mine, other, call)
    for label in touched:
        flow.pin(label, call, "its positions are written by number")
    flow.set(call.result, labels)


@rule("slice_scatter", "select_scatter")
def slice_scatter(flow: Flow, call: Call) -> None:
    """A tensor with a slice of one dimension replaced: that dimension is fixed, the others go together."""
    source, written = call.args["self"], call.args["src"]
    labels, others = list(flow.of(source)), list(flow.of(written))
    axis = call.args["dim"] % len(labels)
    if call.name == "select_scatter":
        others.insert(axis, None)
    for place, (mine, other) in enumerate(zip(labels, others, strict=True)):
        if place == axis:
            flow.pin(mine, call, "written at a position that is in the code")
            flow.pin(other, call, "written at a position that is in the code")
        else:
            flow.join(mine, other, call)
    flow.set(call.result, labels)


@rule("take")
def take(flow: Flow, call: Call) -> None:
    """Values of the flattened tensor by number."""
    for label in flow.of(call.args["self"]):
        flow.pin(label, call, _BY_NUMBER)
    flow.set(call.result, flow.of(call.args["index"]))


@rule("masked_select", "masked_scatter", "nonzero", "nonzero_numpy", "argwhere", "bincount", "histc", "multinomial",
      "unique_consecutive", "unique_dim", "_unique2", "combinations", "cartesian_prod", "block_diag")  # fmt: skip
def by_value(flow: Flow, call: Call) -> None:
    """The number or place of the results depends on values: everything is fixed."""
    for ref in refs(call.args):
        for label in flow.of(ref):
            flow.pin(label, call, f"torch.{call.name} picks or counts by value")
    for result in refs(call.result):
        flow.set(result, [None] * len(result.shape))


@rule("embedding_bag", "_embedding_bag")
def embedding_bag(flow: Flow, call: Call) -> None:
    """Sums of rows of a table by number: the rows are fixed, the columns are channels."""
    weight, bags, *rest = call.args["weight"], *refs(call.result)
    rows, columns = flow.of(weight)
    flow.pin(rows, call, "rows of an embedding are picked by number")
    for ref in refs({key: value for key, value in call.args.items() if key != "weight"}):
        for label in flow.of(ref):
            flow.pin(label, call, "it says which rows of an embedding are picked")
    flow.produced(weight, 1)
    flow.set(bags, [None, columns])
    for ref in rest:
        flow.set(ref, [None, columns] if ref.shape == bags.shape else [None] * len(ref.shape))


@rule("bucketize", "searchsorted")
def bucketize(flow: Flow, call: Call) -> None:
    """The place of every value between sorted boundaries: the boundaries stay, the values keep their labels."""
    name, borders = ("self", "boundaries") if call.name == "bucketize" else ("self", "sorted_sequence")
    values, limits = call.args[name], call.args[borders]
    flow.pin(flow.of(limits)[-1], call, "boundaries are counted")
    sorter = call.args.get("sorter")
    for label in flow.of(sorter) if isinstance(sorter, Ref) else []:
        flow.pin(label, call, "boundaries are counted")
    if not isinstance(values, Ref):
        for label in flow.of(limits):
            flow.pin(label, call, "boundaries are counted")
        flow.set(call.result, [None] * len(call.result.shape))
        return
    if len(limits.shape) > 1:
        for mine, other in zip(flow.of(limits)[:-1], flow.of(values)[:-1], strict=True):
            flow.join(mine, other, call)
    flow.set(call.result, flow.of(values))


@rule("one_hot")
def one_hot(flow: Flow, call: Call) -> None:
    """A new last dimension, one position for every number: fixed."""
    flow.set(call.result, [*flow.of(call.args["self"]), None])


@rule("tril", "triu")
def triangle(flow: Flow, call: Call) -> None:
    """The last two dimensions have an order."""
    labels = flow.of(call.args["self"])
    for label in labels[-2:]:
        flow.pin(label, call, f"torch.{call.name} compares its positions with those of another dimension")
    flow.set(call.result, labels)


@rule("roll", "fft_fftshift", "fft_ifftshift")
def roll(flow: Flow, call: Call) -> None:
    """Positions move by a number that is written in the code: rolled dimensions are fixed."""
    labels = flow.of(call.args["self"])
    chosen = call.args.get("dims", call.args.get("dim"))
    chosen = [chosen] if isinstance(chosen, int) else chosen
    for axis in chosen if chosen else range(len(labels)):
        flow.pin(labels[axis], call, "its positions move by a number that is written in the code")
    flow.set(call.result, labels)


@rule("meshgrid")
def meshgrid(flow: Flow, call: Call) -> None:
    """One dimension per vector, the same for every result."""
    labels = [flow.of(ref)[0] if ref.shape else None for ref in refs(call.args["tensors"])]
    if call.args.get("indexing") == "xy" and len(labels) > 1:
        labels[:2] = labels[1::-1]
    for result in refs(call.result):
        flow.set(result, labels)


@rule("diagonal", "diag", "linalg_diagonal")
def diagonal(flow: Flow, call: Call) -> None:
    """Equal positions of two dimensions; those off the middle are pinned. Of a vector, `diag` makes a matrix."""
    source = call.args["self" if "self" in call.args else "A"]
    labels = list(flow.of(source))
    if len(labels) == 1:
        diag_embed(flow, call)
        return
    first, second = (call.args.get(key, axis) % len(labels) for key, axis in (("dim1", 0), ("dim2", 1)))
    if call.args.get("offset", call.args.get("diagonal", 0)) or source.shape[first] != source.shape[second]:
        flow.pin(labels[first], call, "a diagonal off the middle is taken")
        flow.pin(labels[second], call, "a diagonal off the middle is taken")
        taken: Label = None
    else:
        flow.join(labels[first], labels[second], call)
        taken = labels[first]
    rest = [label for axis, label in enumerate(labels) if axis not in (first, second)]
    flow.set(call.result, [*rest, taken])


@rule("diag_embed")
def diag_embed(flow: Flow, call: Call) -> None:
    """The last dimension along the diagonal of two new ones; zero elsewhere."""
    *rest, label = flow.of(call.args["self"])
    rank = len(call.result.shape)
    if call.args.get("offset", call.args.get("diagonal", 0)):
        flow.pin(label, call, "put on a diagonal off the middle")
    first, second = (call.args.get(key, axis) % rank for key, axis in (("dim1", -2), ("dim2", -1)))
    result: list[Label] = list(rest)
    for axis in sorted((first, second)):
        same = call.result.shape[axis] == call.args["self"].shape[-1]
        result.insert(axis, label if same else None)
    flow.set(call.result, result)


@rule("trace", "linalg_cross", "cross")
def tied_in_place(flow: Flow, call: Call) -> None:
    """Positions meet others by their number: the dimension is fixed."""
    tensors = refs(call.args)
    if call.name == "trace":
        for label in flow.of(tensors[0]):
            flow.pin(label, call, "a diagonal is summed")
        flow.set(call.result, [])
        return
    axis = call.args["dim"]
    shape = call.result.shape
    axis = shape.index(3) if axis is None else axis % len(shape)
    labels = aligned(flow, call, [(flow.of(ref), ref.shape) for ref in tensors], shape)
    flow.pin(labels[axis], call, "a cross product mixes its positions")
    flow.set(call.result, labels)


@rule("hstack", "vstack", "dstack", "column_stack", "row_stack")
def stacked(flow: Flow, call: Call) -> None:
    """Tensors one after another along the second, first or third dimension, made to have it first."""
    result = call.result
    axis = {"hstack": 1, "column_stack": 1, "dstack": 2}.get(call.name, 0) if len(result.shape) > 1 else 0
    rows, sizes = [], []
    for ref in refs(call.args["tensors"]):
        own, shape = list(flow.of(ref)), list(ref.shape)
        while len(shape) < len(result.shape):  # a vector is a row, for columns a column; a matrix gets depth 1
            at = 0 if len(shape) < (1 if call.name == "column_stack" else 2) and call.name != "hstack" else len(shape)
            own.insert(at, None)
            shape.insert(at, 1)
        rows.append(own)
        sizes.append(shape[axis])
    labels = list(rows[0])
    for other in rows[1:]:
        for place, label in enumerate(other):
            if place != axis:
                flow.join(labels[place], label, call)
    labels[axis] = flow.atoms.concatenate([row[axis] for row in rows], sizes)
    flow.set(result, labels)
