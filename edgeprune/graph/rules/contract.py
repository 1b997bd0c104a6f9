"""Convolutions and matrix products: a weight joins the channels it reads and makes the channels it writes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Grouped, Widths, resize, rule
from edgeprune.graph.labels import Label
from edgeprune.graph.rules.elementwise import aligned, broadcast


@rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(flow: Flow, call: Call) -> None:
    """Weight (out, in / groups, *kernel), or (in, out / groups, *kernel) when transposed."""
    x, weight, bias = call.args["input"], call.args["weight"], call.args["bias"]
    transposed = "transpose" in call.name or bool(call.args.get("transposed", False))
    groups = int(call.args["groups"])
    spatial = len(weight.shape) - 2
    labels = list(flow.of(x))
    channel = len(labels) - spatial - 1
    for label in [*labels[channel + 1 :], *flow.of(weight)[2:]]:
        flow.pin(label, call, "a kernel slides over it")
    read, written = (0, 1) if transposed else (1, 0)
    if groups == 1:
        flow.tie(labels[channel], weight, read, call)
    first, second = flow.of(weight)[read], flow.of(weight)[written]
    if groups == 1:
        out = second
    elif flow.parameter(weight) in flow.in_blocks:
        first = _in_blocks(flow, call, labels[channel], x.shape[channel], groups, weight)
        out = second
    else:
        out = _grouped(flow, call, labels[channel], x.shape[channel], groups, weight, transposed)
    flow.produced(weight, written if groups == 1 or not transposed else read)
    if not fixed_weight(flow, weight):
        flow.mark(call, {("input", channel): labels[channel]})
    if isinstance(bias, Ref):
        flow.tie(out, bias, 0, call)
    positions = x if transposed else call.result
    macs = prod(weight.shape) * _positions(positions, channel)
    flow.contracted(flow.parameter(weight), macs, [first, second, *labels[:channel]])
    flow.set(call.result, [*labels[:channel], out, *[None] * spatial])


@resize(
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"
)  # fmt: skip
def convolution_groups(call: Call, widths: Widths) -> dict[str, Any]:
    x, groups = call.args["input"], int(call.args["groups"])
    channel = len(x.shape) - len(call.args["weight"].shape) + 1
    if groups == 1:
        return call.args
    kept = widths.kept(x, channel).reshape(groups, -1)
    return {**call.args, "groups": int(kept.any(axis=1).sum())}


def _positions(ref: Ref, channel: int) -> int:
    return prod(ref.shape[:channel]) * prod(ref.shape[channel + 1 :])


def _grouped(flow: Flow, call: Call, channels: Label, size: int, groups: int, weight: Ref, transposed: bool) -> Label:
    """Join both sides of a grouped convolution and return the label of its output channels.

    A removed position leaves the blocks equal: it goes with its whole group, or with the same position of every group.
    Depthwise: a channel goes with its filters.
    """
    read, written = (0, 1) if transposed else (1, 0)
    labels = flow.of(weight)
    name = flow.parameter(weight)
    each_in = size // groups
    if name is not None and fixed_weight(flow, weight) and each_in > 1 and not transposed:
        flow.grouped.append(Grouped(weight=name, groups=groups, channels=channels, rows=labels[0]))
    each_out = weight.shape[1] if transposed else weight.shape[0] // groups
    group = flow.atoms.fresh(groups)
    inner: Label = None
    outer: Label = None
    if transposed:
        outer = labels[written] if each_out > 1 else None
        inner = flow.atoms.fresh(each_in) if each_in > 1 else None
    else:
        inner = labels[read] if each_in > 1 else None
        outer = flow.atoms.fresh(each_out) if each_out > 1 and each_in > 1 else None
        if each_in == 1 and each_out > 1:
            flow.join(labels[written], np.repeat(group, each_out, axis=1), call)
    source = flow.atoms.flatten([group, inner], [groups, each_in])
    target = flow.atoms.flatten([group, outer], [groups, each_out])
    flow.join(channels, source, call)
    flow.join(labels[0], source if transposed else target, call)
    return flow.atoms.flatten([group, outer], [groups, each_out])


def _in_blocks(flow: Flow, call: Call, channels: Label, size: int, groups: int, weight: Ref) -> Label:
    """Join the channels, position by position, with the inputs of all blocks, and return the label of those.

    Any of them may go, as long as every block keeps equally many inputs, and equally many rows.
    """
    name = flow.parameter(weight)
    assert name is not None
    if name not in flow.blocked:
        flow.blocked[name] = flow.atoms.fresh(size)
    columns, rows = flow.blocked[name], flow.of(weight)[0]
    flow.join(channels, columns, call)
    flow.cut(columns, [size // groups] * groups, call, equal=False, balanced=f"the inputs of {name}")
    flow.cut(rows, [weight.shape[0] // groups] * groups, call, equal=False, balanced=f"the rows of {name}")
    return columns


@rule("linear")
def linear(flow: Flow, call: Call) -> None:
    """x (..., in) times weight (out, in)."""
    x, weight, bias = call.args["input"], call.args["weight"], call.args["bias"]
    labels = list(flow.of(x))
    flow.tie(labels[-1], weight, len(weight.shape) - 1, call)
    out = flow.of(weight)[0] if len(weight.shape) == 2 else None
    if isinstance(bias, Ref) and bias.shape:
        flow.tie(out, bias, 0, call)
    if len(weight.shape) == 2:
        flow.produced(weight, 0)
    if not fixed_weight(flow, weight):
        flow.mark(call, {("input", len(labels) - 1): labels[-1]})
    macs = prod(weight.shape) * prod(x.shape[:-1])
    flow.contracted(flow.parameter(weight), macs, [*flow.of(weight), *labels[:-1]])
    flow.set(call.result, [*labels[:-1], out][: len(call.result.shape)])


@rule("addmm")
def addmm(flow: Flow, call: Call) -> None:
    """bias + a @ b."""
    labels = _product(flow, call, call.args["mat1"], call.args["mat2"])
    flow.set(call.result, added(flow, call, labels, call.args["self"]))


@rule("matmul", "linalg_matmul", "mm", "bmm", "mv", "dot", "vdot")
def matmul(flow: Flow, call: Call) -> None:
    """a (..., n, k) @ b (..., k, m), with vectors as in torch.matmul."""
    other = next(call.args[name] for name in ("other", "mat2", "vec", "tensor") if name in call.args)
    flow.set(call.result, _product(flow, call, call.args["self"], other))


def added(flow: Flow, call: Call, labels: list[Label], term: Ref) -> list[Label]:
    """Return the labels of a product to which a tensor is added; the sum may be written over that tensor."""
    shape = call.result.shape
    return aligned(flow, call, [(labels, shape), (flow.of(term), term.shape)], shape)


def fixed_weight(flow: Flow, ref: Ref) -> bool:
    """Tell whether a tensor is a parameter as it stands, so that its removed positions are zero in the reference."""
    return flow.parameter(ref) is not None and ref.id not in flow.activations


@rule("_grouped_mm")
def grouped_product(flow: Flow, call: Call) -> None:
    """Rows (T, K) times one of E matrices (E, K, N) each, in runs that end at `offs`: the experts of a mixture."""
    rows, matrices = call.args["self"], call.args["mat2"]
    if (len(rows.shape), len(matrices.shape)) != (2, 3) or isinstance(call.args.get("bias"), Ref):
        flow.give_up(call)
        return
    labels, (experts, read, made) = flow.of(rows), flow.of(matrices)
    for label in (labels[0], experts):
        flow.pin(label, call, "rows are sent to experts by number")
    flow.join(labels[1], read, call)
    if not fixed_weight(flow, matrices):
        flow.mark(call, {("self", 1): labels[1], ("mat2", 1): read})
    flow.produced(matrices, 2)
    macs = rows.shape[0] * rows.shape[1] * matrices.shape[2]
    flow.contracted(flow.parameter(matrices), macs, [read, made])
    flow.set(call.result, [None, made])


def _product(flow: Flow, call: Call, a: Ref, b: Ref) -> list[Label]:
    left, right = list(flow.of(a)), list(flow.of(b))
    inner_a, inner_b = left[-1], right[-2] if len(right) > 1 else right[0]
    flow.join(inner_a, inner_b, call)
    if not any(fixed_weight(flow, w) and x.id in flow.activations for w, x in ((a, b), (b, a))):
        # Of two activations, a removed position may not be zero; of two weights, the sum itself becomes another one.
        mine, other = ("mat1", "mat2") if call.name == "addmm" else ("self", _other_name(call))
        flow.mark(call, {(mine, len(left) - 1): inner_a, (other, max(len(right) - 2, 0)): inner_b})
    if a.id in flow.activations and b.id in flow.activations and min(len(left), len(right)) > 2:
        flow.inside_heads(inner_a)
        flow.inside_heads(right[-1])
    for ref, made in ((b, len(right) - 1), (a, len(left) - 2)):
        if flow.parameter(ref) is not None and made >= 0 and len(ref.shape) > 1:
            flow.produced(ref, made)
    batches = [Ref(a.id, a.shape[:-2]), Ref(b.id, b.shape[:-2])]
    shape = call.result.shape
    tail = (len(a.shape) > 1) + (len(b.shape) > 1)
    labels = broadcast(flow, call, batches, shape[: len(shape) - tail])
    if len(a.shape) > 1:
        labels.append(left[-2])
    if len(b.shape) > 1:
        labels.append(right[-1])
    if tail == 2:
        macs = prod(call.result.shape) * a.shape[-1]
        flow.contracted(flow.parameter(b) or flow.parameter(a), macs, [*labels, inner_a])
    return labels


def _other_name(call: Call) -> str:
    return next(name for name in ("other", "mat2", "vec", "tensor") if name in call.args)
