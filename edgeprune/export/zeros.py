"""How many zeros the constants of a file hold: whether pruned weights arrived in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune.errors import ConfigError
from edgeprune.quantise.flatbuffer import unpacked


def zeros_in(path: Path) -> int:
    """Return the number of zeros among the floating-point constants of an `.onnx` or `.tflite` file.

    Raises:
        ConfigError: The suffix is unknown.
    """
    readers = {".onnx": _onnx_constants, ".tflite": _tflite_constants}
    if path.suffix not in readers:
        raise ConfigError(f"'{path}' is neither .onnx nor .tflite", fix="name a file that ends in .onnx or .tflite")
    return sum(int((values == 0).sum()) for values in readers[path.suffix](path))


def _onnx_constants(path: Path) -> Iterator[Any]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model(str(path)).graph
    attributes = [value for node in graph.node if node.op_type == "Constant" for value in node.attribute]
    constants = [value.t for value in attributes if value.type == onnx.AttributeProto.TENSOR]
    for tensor in (*graph.initializer, *constants):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f":
            yield values


def _tflite_constants(path: Path) -> Iterator[Any]:
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    kinds = {schema.TensorType.FLOAT32: "<f4", schema.TensorType.FLOAT16: "<f2"}
    model = unpacked(path.read_bytes())
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and tensor.type in kinds:
                yield np.frombuffer(data.tobytes(), dtype=kinds[tensor.type])
