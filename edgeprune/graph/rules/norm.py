"""Normalisations. Those whose statistics run over channels are marked: fewer channels mean other statistics."""

from __future__ import annotations

from typing import Any

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Widths, resize, rule
from edgeprune.graph.labels import Pin


@rule("batch_norm", "instance_norm")
def per_channel(flow: Flow, call: Call) -> None:
    """Statistics per channel (dimension 1): the parameters go with it."""
    x = call.args["input"]
    labels = flow.of(x)
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = call.args.get(name)
        if isinstance(parameter, Ref):
            flow.join(labels[1], flow.of(parameter)[0], call)
    for label in [labels[0], *labels[2:]]:
        flow.pin(label, call, "normalised over this dimension")
    flow.set(call.result, labels)


@rule("layer_norm", "rms_norm")
def layer_norm(flow: Flow, call: Call) -> None:
    """Statistics over the last dimensions."""
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
    flow.set(call.result, labels)


@rule("group_norm")
def group_norm(flow: Flow, call: Call) -> None:
    """Statistics over blocks of channels: the same positions of every block go together, or whole blocks."""
    x, groups = call.args["input"], int(call.args["num_groups"])
    labels = list(flow.of(x))
    for name in ("weight", "bias"):
        parameter = call.args.get(name)
        if isinstance(parameter, Ref):
            flow.join(labels[1], flow.of(parameter)[0], call)
    for label in labels[2:]:
        flow.pin(label, call, "normalised over this dimension")
    each = x.shape[1] // groups
    if groups > 1 and each > 1:
        flow.atoms.split(labels[1], (groups, each), Pin(reason="blocks of group_norm stay equal", where=call.where))
    if each > 1:
        flow.mark(call, {("input", 1): labels[1]})
    flow.set(call.result, labels)


@resize("layer_norm", "rms_norm")
def normalized_shape(call: Call, widths: Widths) -> dict[str, Any]:
    over = len(call.args["normalized_shape"])
    return {**call.args, "normalized_shape": list(widths.shape(call.result)[-over:])}


@resize("group_norm")
def norm_groups(call: Call, widths: Widths) -> dict[str, Any]:
    kept = widths.kept(call.args["input"], 1).reshape(int(call.args["num_groups"]), -1)
    return {**call.args, "num_groups": int(kept.any(axis=1).sum())}


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin")
def softmax(flow: Flow, call: Call) -> None:
    """The sum over one dimension."""
    x = call.args["self"]
    labels = flow.of(x)
    axis = call.args["dim"] % len(labels)
    flow.mark(call, {("self", axis): labels[axis]})
    flow.set(call.result, labels)
