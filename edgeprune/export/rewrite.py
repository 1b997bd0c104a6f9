"""Operators of a captured graph that converters refuse, rewritten into operators that they take.

Every rewrite gives the same values and changes the graph in place; it returns how many operators it replaced. Owns
nothing about formats but the lists at the end: which rewrites each of them needs. Shapes come from the capture.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

Rewrite = Callable[[torch.fx.Graph], int]
_ATEN = torch.ops.aten
_TRANSPOSED = {
    _ATEN.conv_transpose1d.default: 1,
    _ATEN.conv_transpose2d.input: 2,
    _ATEN.conv_transpose3d.input: 3,
}
_TRANSPOSED_DEFAULTS = (None, None, None, [1], [0], [0], 1, [1])
_ADAPTIVE_MAX = {_ATEN.adaptive_max_pool1d.default: 1, _ATEN.adaptive_max_pool2d.default: 2}
_BROADCASTING = (_ATEN.mul.Tensor, _ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.div.Tensor)


def plain_rrelu_(graph: torch.fx.Graph) -> int:
    """Write RReLU as the leaky ReLU with the mean slope that it is in evaluation mode."""
    found = _calls(graph, (_ATEN.rrelu.default,))
    for node in found:
        source, lower, upper = (*node.args, *(1 / 8, 1 / 3)[len(node.args) - 1 :])[:3]
        node.target, node.args = _ATEN.leaky_relu.default, (source, (lower + upper) / 2)
    return len(found)


def plain_max_pool_(graph: torch.fx.Graph) -> int:
    """Write adaptive max pooling as the maximum over each of its windows, one dimension after the other.

    Pooling whose indices are used stays as it is.
    """
    replaced = 0
    for node in _calls(graph, tuple(_ADAPTIVE_MAX)):
        dims, (source, wanted) = _ADAPTIVE_MAX[node.target], node.args[:2]
        reads = list(node.users)
        if any(read.target is not operator.getitem or (read.args[1] != 0 and read.users) for read in reads):
            continue
        sizes = list(source.meta["val"].shape[-dims:])
        if not all(isinstance(size, int) for size in sizes):
            continue
        value = source
        with graph.inserting_before(node):
            for index, (size, count) in enumerate(zip(sizes, (list(wanted) * dims)[:dims], strict=True)):
                value = _windows(graph, value, index - dims, size, count)
        for read in reads:
            read.replace_all_uses_with(value)
            graph.erase_node(read)
        graph.erase_node(node)
        replaced += 1
    return replaced


def no_output_padding_(graph: torch.fx.Graph) -> int:
    """Write a transposed convolution with output padding as one without any padding, and a crop.

    Without padding it gives every position that its inputs reach; the wanted output is a window of that, and
    positions beyond it hold the bias alone.
    """
    replaced = 0
    for node in _calls(graph, tuple(_TRANSPOSED)):
        arguments = (*node.args, *_TRANSPOSED_DEFAULTS[len(node.args) :])
        if any(arguments[5]):
            _crop_transposed_(graph, node, _TRANSPOSED[node.target], arguments)
            replaced += 1
    return replaced


def implicit_expand_(graph: torch.fx.Graph) -> int:
    """Drop an expand before arithmetic that broadcasts anyway, because its other operand has the full shape."""
    replaced = 0
    for node in _calls(graph, (_ATEN.expand.default, _ATEN.expand_as.default)):
        for user in list(node.users):
            if user.target in _BROADCASTING and _full_shape_without(user, node):
                user.replace_input_with(node, node.args[0])
                replaced += 1
        if not node.users:
            graph.erase_node(node)
    return replaced


FOR_ALL: tuple[Rewrite, ...] = (plain_rrelu_, plain_max_pool_)
FOR_TFLITE: tuple[Rewrite, ...] = (*FOR_ALL, no_output_padding_, implicit_expand_)


def _calls(graph: torch.fx.Graph, targets: tuple[Any, ...]) -> list[Any]:
    return [node for node in graph.nodes if node.op == "call_function" and node.target in targets]


def _windows(graph: torch.fx.Graph, value: Any, dim: int, size: int, count: int) -> Any:
    """Reduce one dimension to `count` maxima over the windows of adaptive pooling."""
    if count == size:
        return value
    parts = []
    for index in range(count):
        start, end = index * size // count, -(-(index + 1) * size // count)
        part = value if count == 1 else graph.call_function(_ATEN.slice.Tensor, (value, dim, start, end))
        parts.append(graph.call_function(_ATEN.amax.default, (part, [dim], True)))
    return parts[0] if count == 1 else graph.call_function(_ATEN.cat.default, (parts, dim))


def _crop_transposed_(graph: torch.fx.Graph, node: Any, dims: int, arguments: tuple[Any, ...]) -> None:
    source, weight, bias, stride, padding, extra, groups, dilation = arguments
    stride, padding, extra, dilation = [(list(v) * dims)[:dims] for v in (stride, padding, extra, dilation)]
    beyond = [max(more - pad, 0) for more, pad in zip(extra, padding, strict=True)]
    sizes = [int(size) for size in node.meta["val"].shape[-dims:]]
    zeros = [0] * dims
    with graph.inserting_before(node):
        inner_bias = None if any(beyond) else bias
        value = graph.call_function(node.target, (source, weight, inner_bias, stride, zeros, zeros, groups, dilation))
        if any(beyond):
            pads = [amount for more in reversed(beyond) for amount in (0, more)]
            value = graph.call_function(_ATEN.constant_pad_nd.default, (value, pads, 0.0))
        for index in range(dims):
            bounds = (padding[index], padding[index] + sizes[index])
            value = graph.call_function(_ATEN.slice.Tensor, (value, index - dims, *bounds))
        if any(beyond) and bias is not None:
            column = graph.call_function(_ATEN.view.default, (bias, [-1] + [1] * dims))
            value = graph.call_function(_ATEN.add.Tensor, (value, column))
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _full_shape_without(user: Any, expanded: Any) -> bool:
    others = [value for value in user.args[:2] if value is not expanded]
    shape = user.meta["val"].shape
    return len(others) == 1 and hasattr(others[0], "meta") and others[0].meta["val"].shape == shape
