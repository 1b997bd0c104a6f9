"""Networks of a few operators, written as .onnx and .tflite files without any converter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np

from edgeprune.values import Artifact, TensorSpec


def write_dense_onnx(path: Path, features: int = 8, layers: int = 1) -> Path:
    """Write y = x W1 W2 ... with x of shape (batch, features) and a free batch."""
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(features)
    weights = [rng.normal(size=(features, features)).astype(np.float32) / features for _ in range(layers)]
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    constants = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    _save_onnx(path, nodes, [("x", "float32", ["batch", features])], ["y"], constants)
    return path


def write_difference_onnx(path: Path) -> Path:
    """Write zeta - alpha, inputs in this order, shapes (batch, 3)."""
    from onnx import helper

    node = helper.make_node("Sub", ["zeta", "alpha"], ["difference"])
    shape: list[str | int] = ["batch", 3]
    _save_onnx(path, [node], [("zeta", "float32", shape), ("alpha", "float32", shape)], ["difference"])
    return path


def write_lookup_onnx(path: Path, rows: int = 10) -> Path:
    """Write a lookup in a table of that many rows: an index outside of it fails when it runs."""
    from onnx import helper, numpy_helper

    table = numpy_helper.from_array(np.arange(rows * 2, dtype=np.float32).reshape(rows, 2), "table")
    node = helper.make_node("Gather", ["table", "tokens"], ["vectors"])
    _save_onnx(path, [node], [("tokens", "int64", ["batch", 4])], ["vectors"], [table])
    return path


def _save_onnx(
    path: Path,
    nodes: Sequence[object],
    inputs: Sequence[tuple[str, str, list[str | int]]],
    outputs: Sequence[str],
    constants: Sequence[object] = (),
) -> None:
    from onnx import TensorProto, helper

    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    given = [helper.make_tensor_value_info(name, kinds[dtype], shape) for name, dtype, shape in inputs]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "tiny", given, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def write_negations_tflite(path: Path, names: Sequence[str], signature: Sequence[str] | None = None) -> Path:
    """Write one negation per name: input i has shape (1, i + 1), and its output is called like it with an `o`.

    The signature lists the names in the order of `signature` (default: alphabetical, as converters do).
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    for index, name in enumerate(names):
        for side in ("in", "out"):
            tensor = schema.TensorT()
            tensor.shape, tensor.type = [1, index + 1], schema.TensorType.FLOAT32
            tensor.buffer, tensor.name = 0, f"{side}_{name}"
            graph.tensors.append(tensor)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, [2 * index], [2 * index + 1]
        graph.operators.append(operator)
    graph.inputs = [2 * index for index in range(len(names))]
    graph.outputs = [2 * index + 1 for index in range(len(names))]
    order = [names.index(name) for name in (sorted(names) if signature is None else signature)]
    definition = schema.SignatureDefT()
    definition.signatureKey, definition.subgraphIndex = "serving_default", 0
    definition.inputs = [_tensor_map(names[index], 2 * index) for index in order]
    definition.outputs = [_tensor_map("o" + names[index], 2 * index + 1) for index in order]
    path.write_bytes(_pack(graph, [definition]))
    return path


def _tensor_map(name: str, tensor: int) -> object:
    from ai_edge_litert import schema_py_generated as schema

    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def _pack(graph: object, signatures: list[object]) -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.NEG
    code.version = 1
    model = schema.ModelT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], [code]
    model.subgraphs, model.signatureDefs = [graph], signatures
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def artifact_of(path: Path, inputs: Sequence[TensorSpec] = ()) -> Artifact:
    """Return the Artifact of a file, with the given inputs."""
    content = path.read_bytes()
    return Artifact(
        path=str(path),
        format=cast("Literal['onnx', 'tflite']", path.suffix[1:]),
        precision="fp32",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        inputs=tuple(inputs),
        outputs=(),
        metadata={},
    )
