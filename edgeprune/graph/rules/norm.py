"""Normalisations. Those whose statistics run over channels are marked: fewer channels mean other statistics."""

from __future__ import annotations

from typing import Any

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Widths, refs, resize, rule
from edgeprune.graph.labels import Label, Pin


@rule("batch_norm", "instance_norm")
def per_channel(flow: Flow, call: Call) -> None:
    """Statistics per channel (dimension 1): the parameters go with it."""
    x = call.args["input"]
    labels = flow.of(x)
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = call.args.get(name)
        if isinstance(parameter, Ref):
            flow.tie(labels[1], parameter, 0, call)
    for label in [labels[0], *labels[2:]]:
        flow.pin(label, call, "normalised over this dimension")
    flow.set(call.result, labels)


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def layer_norm(flow: Flow, call: Call) -> None:
    """Statistics over the last dimensions; the native forms return them too."""
    x = call.args["input"]
    labels = flow.of(x)
    over = len(call.args["normalized_shape"])
    for name in ("weight", "bias"):
        parameter = call.args.get(name)
        if isinstance(parameter, Ref):
            for label, own in zip(labels[-over:], flow.of(parameter), strict=True):
                flow.join(label, own, call)
    flow.mark(
        call,
        {("input", len(labels) - over + axis): labels[len(labels) - over + axis] for axis in range(over)},
    )
    for result in refs(call.result):
        flow.set(result, labels if result.shape == x.shape else [*labels[:-over], *[None] * over])


@rule("group_norm", "native_group_norm")
def group_norm(flow: Flow, call: Call) -> None:
    """Statistics over blocks of channels: the same positions of every block go together, or whole blocks."""
    x, groups = call.args["input"], int(call.args["num_groups" if "num_groups" in call.args else "group"])
    labels = list(flow.of(x))
    for name in ("weight", "bias"):
        parameter = call.args.get(name)
        if isinstance(parameter, Ref):
            flow.join(labels[1], flow.of(parameter)[0], call)
    for label in labels[2:]:
        flow.pin(label, call, "normalised over this dimension")
    each = x.shape[1] // groups
    blocks = labels[1] if each == 1 else None
    if groups > 1 and each > 1:
        pin = Pin(reason="blocks of group_norm stay equal", where=call.where)
        blocks = flow.atoms.split(labels[1], (groups, each), pin)[0]
    if each > 1:
        flow.mark(call, {("input", 1): labels[1]})
    result, *statistics = refs(call.result)
    flow.set(result, labels)
    for statistic in statistics:
        flow.set(statistic, [labels[0], blocks])


@resize("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def normalized_shape(call: Call, widths: Widths) -> dict[str, Any]:
    x, over = call.args["input"], len(call.args["normalized_shape"])
    rank = len(x.shape)
    sizes = [int(widths.kept(x, axis).sum()) for axis in range(rank - over, rank)]
    return {**call.args, "normalized_shape": sizes}


@resize("group_norm", "native_group_norm")
def norm_groups(call: Call, widths: Widths) -> dict[str, Any]:
    name = "num_groups" if "num_groups" in call.args else "group"
    kept = widths.kept(call.args["input"], 1)
    groups = int(kept.reshape(int(call.args[name]), -1).any(axis=1).sum())
    width = {"C": int(kept.sum())} if "C" in call.args else {}
    return {**call.args, name: groups, **width}


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "special_softmax", "special_log_softmax")
def softmax(flow: Flow, call: Call) -> None:
    """The sum over one dimension."""
    x = call.args["self"]
    labels = flow.of(x)
    axis = call.args["dim"] % len(labels)
    flow.mark(call, {("self", axis): labels[axis]})
    flow.set(call.result, labels)


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(flow: Flow, call: Call) -> None:
    """A weight v made as long as g says along one dimension; its length depends on all others."""
    v, g, dim = call.args["v"], call.args["g"], call.args["dim"]
    labels = flow.of(v)
    scale: list[Label] = [None] * len(g.shape)
    if dim % len(labels) < len(g.shape) and g.shape[dim % len(labels)] == v.shape[dim % len(labels)]:
        scale = list(flow.of(g))
        flow.join(labels[dim % len(labels)], scale[dim % len(labels)], call)
    flow.produced(v, max(dim, 0))
    flow.mark(call, {("v", axis): label for axis, label in enumerate(labels)})
    for result in refs(call.result):
        flow.set(result, labels if result.shape == v.shape else scale)


@rule("renorm")
def renorm(flow: Flow, call: Call) -> None:
    """Slices along one dimension are made no longer than a limit; their length depends on all others."""
    labels = flow.of(call.args["self"])
    axis = call.args["dim"] % len(labels)
    flow.mark(call, {("self", other): label for other, label in enumerate(labels) if other != axis})
    flow.set(call.result, labels)
