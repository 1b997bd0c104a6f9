"""Int8 files whose inputs and outputs are integers too, for programs and accelerators that have no floats.

Owns how the ends of a file get their type, and what scale and zero point they have then.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Io = Literal["float32", "int8", "uint8"]
IOS: tuple[Io, ...] = ("float32", "int8", "uint8")
Ends = dict[str, tuple[float, int]]
_SHIFT = {"int8": 0, "uint8": 128}
_TYPES = {"int8": 3, "uint8": 2}  # of the ONNX format


def onnx_with_integer_ends(content: bytes, io: Io) -> tuple[bytes, Ends]:
    """Return an ONNX file of QuantizeLinear and DequantizeLinear pairs with integer ends, and their scales.

    Ends that are float32 inside, because the operator there stayed in float32, and ends that are no floats stay as
    they are.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(content)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    ends: Ends = {}
    for value in model.graph.input:
        readers = [node for node in model.graph.node if value.name in node.input]
        found = [node for node in readers if node.op_type == "QuantizeLinear"]
        if found:
            scale, zero = _step(constants, found[0])
            ends[value.name] = (scale, zero + _SHIFT[io])
            _integer_input_(model.graph, value, found[0], readers, io, ends[value.name])
    for value in model.graph.output:
        maker = next((node for node in model.graph.node if value.name in node.output), None)
        if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] not in constants:
            scale, zero = _step(constants, maker)
            ends[value.name] = (scale, zero + _SHIFT[io])
            _integer_output_(model.graph, value, maker, io, ends[value.name])
    return bytes(model.SerializeToString()), ends


def _step(constants: dict[str, np.ndarray], node: Any) -> tuple[float, int]:
    return float(constants[node.input[1]]), int(constants[node.input[2]])


def _integer_input_(graph: Any, value: Any, quantise: Any, readers: list[Any], io: Io, step: tuple[float, int]) -> None:
    """Make an input integers: a DequantizeLinear gives all its readers the floats; int8 ones skip the first pair."""
    floats = f"{value.name}_float"
    for node in readers:
        for position, name in enumerate(node.input):
            if name == value.name:
                node.input[position] = floats
    value.type.tensor_type.elem_type = _TYPES[io]
    widen = _pair_node(graph, "DequantizeLinear", value.name, floats, io, step)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([widen, *kept])
    if io == "int8":
        _skip_(graph, quantise, value.name)


def _integer_output_(graph: Any, value: Any, widen: Any, io: Io, step: tuple[float, int]) -> None:
    """Make an output integers: what was its float becomes an inner value, which only other readers need."""
    floats = f"{value.name}_float"
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == value.name:
                node.input[position] = floats
    widen.output[0] = floats
    value.type.tensor_type.elem_type = _TYPES[io]
    graph.node.append(_pair_node(graph, "QuantizeLinear", floats, value.name, io, step))


def _skip_(graph: Any, node: Any, name: str) -> None:
    """Let the readers of a node read something else, and drop it."""
    for reader in graph.node:
        for position, read in enumerate(reader.input):
            if read == node.output[0]:
                reader.input[position] = name
    graph.node.remove(node)


def _pair_node(graph: Any, kind: str, source: str, target: str, io: Io, step: tuple[float, int]) -> Any:
    from onnx import helper, numpy_helper

    names = [f"{target}_end_scale", f"{target}_end_zero"]
    graph.initializer.append(numpy_helper.from_array(np.array(step[0], np.float32), names[0]))
    graph.initializer.append(numpy_helper.from_array(np.array(step[1], np.dtype(io)), names[1]))
    return helper.make_node(kind, [source, *names], [target], name=f"{target}_end")


def tflite_ends(content: bytes) -> Ends:
    """Return scale and zero point of the integer inputs and outputs of a TFLite file, by the names of its signature."""
    from edgeprune.quantise.flatbuffer import unpacked

    model = unpacked(content)
    ends: Ends = {}
    for signature in model.signatureDefs or ():
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        for end in (*signature.inputs, *signature.outputs):
            steps = tensors[end.tensorIndex].quantization
            if steps is not None and steps.scale is not None and len(steps.scale) == 1:
                zero = steps.zeroPoint[0] if steps.zeroPoint is not None else 0
                ends[end.name.decode()] = (float(steps.scale[0]), int(zero))
    return ends
