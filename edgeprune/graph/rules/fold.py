"""Windows as a dimension: im2col and its inverse, sliding windows, strides."""

from __future__ import annotations

from math import prod

import numpy as np

from edgeprune.graph.capture import Call
from edgeprune.graph.flow import Flow, rule
from edgeprune.graph.labels import Pin


@rule("im2col")
def im2col(flow: Flow, call: Call) -> None:
    """(N, C, H, W) to (N, C * kernel, L): the values of a window stand next to one another for every channel."""
    labels = list(flow.of(call.args["self"]))
    for label in labels[-2:]:
        flow.pin(label, call, "a kernel slides over it")
    channels = flow.atoms.resolve(labels[-3])
    window = prod(call.args["kernel_size"])
    repeated = None if channels is None else np.repeat(channels, window, axis=1)
    flow.set(call.result, [*labels[:-3], repeated, None])


@rule("col2im")
def col2im(flow: Flow, call: Call) -> None:
    """(N, C * kernel, L) to (N, C, H, W): the values of a window go together."""
    labels = list(flow.of(call.args["self"]))
    flow.pin(labels[-1], call, "every position of it is one place of the kernel")
    window = prod(call.args["kernel_size"])
    pin = Pin(reason="the values of a window are mixed by fold", where=call.where)
    channels, inside = flow.atoms.split(labels[-2], (call.result.shape[-3], window), pin)
    flow.pin(inside, call, "the values of a window go with their channel")
    flow.set(call.result, [*labels[:-2], channels, None, None])


@rule("unfold")
def unfold(flow: Flow, call: Call) -> None:
    """Tensor.unfold: windows of one dimension, their positions in a new last one."""
    source = call.args["self"]
    if not source.shape:
        flow.give_up(call)
        return
    axis = call.args["dimension"] % len(source.shape)
    labels = list(flow.of(source))
    flow.pin(labels[axis], call, "a window of fixed size slides over it")
    labels[axis] = None
    flow.set(call.result, [*labels, None])


@rule("as_strided")
def as_strided(flow: Flow, call: Call) -> None:
    """Any places of the memory of a tensor: everything is fixed."""
    for label in flow.of(call.args["self"]):
        flow.pin(label, call, "as_strided picks places by their distance in memory")
    flow.set(call.result, [None] * len(call.result.shape))
