"""Weights of an ONNX file in half of the bytes or a quarter, while its operators go on in float32.

Owns which initialisers are weights, and along which axis each output channel has a scale of its own. The runtime widens
the weights once, when it loads the file, so speed and memory stay those of float32: what gets smaller is the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

_FLOAT = 1
_LARGEST = 127
# Below this a scale per channel and another node would cost as much as is won.
_FEWEST = 256
_RECURRENT = ("LSTM", "GRU", "RNN")


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its float32 initialisers as float16, each behind a Cast; values beyond 65,504 stay."""
    from onnx import helper, numpy_helper

    nodes = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 2 or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        stored = f"{name}_half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        nodes.append(helper.make_node("Cast", [stored], [name], name=f"{name}_widen", to=_FLOAT))
    _put_first(model, nodes)
    return model


def with_integer_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its weights as int8 per output channel, symmetric, each behind a Cast and a Mul.

    A DequantizeLinear would say it in one node, but ONNX Runtime joins that with the product behind it and quantises
    the activations too: 40 dB are left where float32 arithmetic has more than 100.
    """
    from onnx import helper, numpy_helper

    axes = _axes(model)
    nodes, added = [], []
    for tensor in model.graph.initializer:
        if tensor.name not in axes:
            continue
        name, axis = tensor.name, axes[tensor.name]
        values = numpy_helper.to_array(tensor)
        integers, scales = per_channel(values, axis)
        tensor.CopyFrom(numpy_helper.from_array(integers, f"{name}_int8"))
        added.append(numpy_helper.from_array(scales, f"{name}_scale"))
        nodes.append(helper.make_node("Cast", [f"{name}_int8"], [f"{name}_whole"], name=f"{name}_widen", to=_FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name], name=f"{name}_scaled"))
    model.graph.initializer.extend(added)
    _put_first(model, nodes)
    return model


def per_channel(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values and the float32 scale of every channel along an axis, shaped to multiply them.

    A channel of zeros, or of numbers too small to be divided, has scale 1.
    """
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.abs(values).max(axis=others)
    shape = [-1 if index == axis else 1 for index in range(values.ndim)]
    steps = (largest / np.float32(_LARGEST)).astype(np.float32)
    scales = np.where(steps > 0, steps, np.float32(1)).reshape(shape)
    integers = np.clip(np.rint(values / scales), -_LARGEST, _LARGEST)
    return integers.astype(np.int8), scales


def _axes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the channel axis of every weight whose readers all agree on it."""
    from onnx import numpy_helper

    sizes = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == _FLOAT and int(np.prod(tensor.dims)) >= _FEWEST:
            values = numpy_helper.to_array(tensor)
            if np.isfinite(values).all():
                sizes[tensor.name] = values.ndim
    found: dict[str, set[int | None]] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in sizes:
                found.setdefault(name, set()).add(_axis(node, position, sizes[name]))
    outputs = {value.name for value in model.graph.output}
    return {
        name: axis
        for name, axes in found.items()
        if len(axes) == 1 and name not in outputs and (axis := next(iter(axes))) is not None
    }


def _axis(node: Any, position: int, rank: int) -> int | None:
    """Return the axis of a weight's output channels at an operator's input; None where the input is no weight."""
    if node.op_type == "Conv" and position == 1:
        return 0
    if node.op_type == "ConvTranspose" and position == 1:
        return 1
    if node.op_type == "Gemm" and position == 1:
        turned = next((item.i for item in node.attribute if item.name == "transB"), 0)
        return 0 if turned else 1
    if node.op_type == "MatMul" and position in (0, 1) and rank >= 2:
        return rank - 1 if position == 1 else rank - 2
    if node.op_type == "Gather" and position == 0 and rank >= 2:
        return 0
    return 1 if node.op_type in _RECURRENT and position in (1, 2) else None


def _put_first(model: onnx.ModelProto, nodes: list[Any]) -> None:
    """Put nodes that read initialisers only before all others, where ONNX wants them."""
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
